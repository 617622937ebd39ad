"""The memory of :mod:`vxpress.core.kernels.step_rows`, and its arguments for a model and a minibatch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vxpress.core import rule, threads
from vxpress.core.data import Batch
from vxpress.core.gradients import GradientSink
from vxpress.core.kernels import helpers, step_rows
from vxpress.core.kernels.count_likelihood import OutputLayers
from vxpress.core.kernels.hidden_layer import Norm, update_running_statistics
from vxpress.core.kernels.pointers import pointers
from vxpress.core.kernels.products import PAIRED, TILE, padded
from vxpress.core.noise import BITS

# cells of a group; with many rows of dispersions, whose gradients every group sums, groups are larger
GROUP, LARGE_GROUP, MANY_ROWS = 32, 128, 2


def floats(*shape: int) -> np.ndarray:
    """Return zeros in float32, in memory of torch, which starts at a cache line."""
    return torch.zeros(shape).numpy()


@dataclass(frozen=True)
class Networks:
    """The weights of encoder and decoder, except the output layers, and their norms."""

    first: nn.Linear
    heads: tuple[nn.Linear, nn.Linear]
    into: nn.Linear
    norms: tuple[Norm, Norm]
    bounds: tuple[np.float32, np.float32]
    """Largest log variance of the posterior, and what is added to its variance."""


@dataclass(frozen=True)
class Found:
    """What a step finds for every cell.

    The log likelihood, the KL of z, and gradients of the mean loss with respect to z, the posterior's mean, and the
    condition vector at the output layers.
    """

    value_n: np.ndarray
    kl_nd: np.ndarray
    d_z_nd: Tensor
    d_mean_nd: Tensor
    d_condition_nc: Tensor


@dataclass(frozen=True)
class Conditions:
    """What the covariates add to a minibatch: parts of the condition vector of decoder and encoder, and of mean and z.

    ``add_mean`` and ``add_z`` (n, d) have no rows if nothing is added.
    """

    decoded: Tensor
    encoded: Tensor
    add_mean: Tensor
    add_z: Tensor

    def arguments(self) -> tuple[np.ndarray, ...]:
        """Return them as arrays."""
        parts = self.decoded, self.encoded, self.add_mean, self.add_z
        return tuple(part.contiguous().numpy() for part in parts)


def _array(x: Tensor | None, dimensions: int = 1) -> np.ndarray:
    """Return the memory of a weight; an empty array if there is none."""
    return np.empty((0,) * dimensions, np.float32) if x is None else x.detach().numpy()


def _norm_settings(norm: Norm, random: np.ndarray, limit: int) -> tuple[Any, ...]:
    """Return gain, shift, epsilon, random numbers and limit of dropout, and the factor of units that are kept."""
    factor = np.float32(BITS / limit if len(random) else 1.0)
    return _array(norm.weight), _array(norm.bias), np.float32(norm.eps), random, limit, factor


@functools.lru_cache
def _plan(n_groups: int, n_tiles: int, *, by_cell: bool) -> np.ndarray:
    """Return the rounds of parts of a step, for norms of single cells or of all cells."""
    rounds = [(step_rows.PACK, 0, 0, n_tiles + 2)]
    if by_cell:
        rounds += [(step_rows.CELLS, step_rows.ENCODE, step_rows.END, n_groups)]
    else:
        for stage in range(step_rows.ENCODE, step_rows.END):
            rounds += [(step_rows.CELLS, stage, stage + 1, n_groups), (step_rows.ALL_CELLS, stage + 1, 0, 1)]
    rounds += [(step_rows.WEIGHTS, 0, 0, n_tiles + step_rows.SMALL_JOBS)]
    return np.array(rounds)


def _is_paired(n: int, layers: OutputLayers) -> bool:
    """Whether the products of the output layers use bfloat16."""
    n_out, n_features = layers.weight.shape
    return PAIRED and rule.product_dtype(n, n_features, n_out, training=True) == torch.bfloat16


class Hidden:
    """Values of a hidden layer and their gradients, (cells, units)."""

    def __init__(self, n: int, width: int) -> None:
        self.u, self.standard, self.h, self.d_h, self.d_u = (floats(n, width) for _ in range(5))
        # of each cell or, with a batch norm, of each unit
        self.inverse_sd = floats(max(n, width))

    def arguments(self, n: int) -> tuple[np.ndarray, ...]:
        """Return those of the first ``n`` cells."""
        return self.u[:n], self.standard[:n], self.h[:n], self.inverse_sd, self.d_h[:n], self.d_u[:n]


class Latent:
    """Values around z and their gradients."""

    def __init__(self, n: int, d: int, n_body: int) -> None:
        self.scale, self.z, self.kl = (floats(n, d) for _ in range(3))
        self.out, self.d_out = (floats(n, padded(2 * d)) for _ in range(2))
        self.code, self.d_z = floats(n, padded(d + n_body)), floats(n, padded(d))

    def arguments(self, n: int, eps: np.ndarray, bounds: tuple[Any, Any], d_kl: Any) -> tuple[Any, ...]:
        """Return those of the first ``n`` cells, with the noise, the bounds of the variance and the gradient of the KL."""
        values = (x[:n] for x in (self.scale, self.z, self.kl, self.code, self.d_z, self.d_out))
        return self.out[:n], eps, *values, *bounds, d_kl


class Products:
    """Memory for the products of an output layer: packed weights, and gradients of the logits, in words of four bytes."""

    def __init__(self, n: int, n_genes: int, n_features: int, *, paired: bool) -> None:
        self.per_word = 2 if paired else 1
        n_tiles = -(-n_genes // TILE)
        self.tiled = np.zeros((n_tiles, -(-n_features // self.per_word), TILE), np.int32)
        self.rows = np.zeros((-(-n_genes // self.per_word), padded(n_features)), np.int32)
        # rows are not a multiple of a large power of two apart, which would put them in the same places of the cache
        self.words = np.zeros((-(-n // self.per_word), n_tiles * TILE + 16 if n_genes else 0), np.int32)

    def arguments(self, n: int, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return bias, packed weights, gradients of the logits of the first ``n`` cells, and weights."""
        return bias, self.tiled, self.rows, self.words[: -(-n // self.per_word)], weight


class Gradients:
    """The optimizer's memory of the gradients of all weights; other memory for weights without one."""

    def __init__(self, networks: Networks, layers: OutputLayers) -> None:
        self.sinks: list[GradientSink] = []
        mean, log_variance = networks.heads
        of, first = self._of, networks.first.weight
        gates = layers.gate_weight, layers.gate_bias
        self.arguments = (
            (
                of(first, first.shape).T, of(layers.weight, layers.weight.shape), of(gates[0], (0, layers.weight.shape[1])),
                of(layers.bias, layers.bias.shape), of(gates[1], (0,)), of(layers.log_theta, layers.log_theta.shape),
            ),
            tuple(
                of(p, p.shape) for p in (
                    mean.weight, log_variance.weight, networks.into.weight, mean.bias, log_variance.bias, networks.into.bias,
                    networks.first.bias,
                )
            ),
            tuple(of(p, p.shape) for norm in networks.norms for p in (norm.weight, norm.bias)),
        )  # fmt: skip

    def _of(self, parameter: Tensor | None, shape: tuple[int, ...]) -> np.ndarray:
        sink: GradientSink | None = getattr(parameter, "grad_sink", None)
        if sink is not None:
            self.sinks.append(sink)
            return sink.gradient.numpy()
        return floats(*shape) if parameter is None else torch.empty_like(parameter).numpy()

    def written(self) -> None:
        """Note that all of them are there."""
        for sink in self.sinks:
            sink.empty = False


class StepMemory:
    """Memory of the steps of a training with up to ``n`` cells."""

    def __init__(self, n: int, networks: Networks, layers: OutputLayers, n_condition: int) -> None:
        n_genes, n_rows = layers.log_theta.shape[1], len(layers.log_theta)
        n_out, n_features = layers.weight.shape
        n_gates = 0 if layers.gate_weight is None else len(layers.gate_weight)
        (mean, log_variance), into, first = networks.heads, networks.into, networks.first
        d, width = mean.weight.shape
        self.networks, self.d = networks, d
        self.paired = _is_paired(n, layers)
        self.group = GROUP if n_rows <= MANY_ROWS else LARGE_GROUP
        self.encoder, self.decoder = Hidden(n, width), Hidden(n, width)
        self.latent = Latent(n, d, into.weight.shape[1] - d)
        self.location = Products(n, n_out, n_features, paired=self.paired)
        self.gate = Products(n, n_gates, n_features, paired=self.paired)
        self.features = np.zeros((-(-n // self.location.per_word), padded(n_features)), np.int32)
        self.value, self.d_condition = np.zeros(n), floats(n, n_condition)
        groups = -(-n // self.group)
        self.d_theta, self.d_bias, self.d_gate_bias = (
            floats(groups, *shape) for shape in ((n_rows, n_genes), (n_out,), (n_gates,))
        )
        self.d_norms = floats(groups, 4, width)
        self.ends, self.free = np.zeros(n_genes + 1, np.int64), np.zeros((groups, n_genes), np.int64)
        self.statistics = floats(4, width)
        self.scratch: tuple[np.ndarray, ...] = (np.zeros(0),) * 7
        self.nothing = floats(max(width, padded(2 * d)))
        self.entry_cells, self.entry_values = np.zeros(0, np.int32), floats(0)
        self.theta, self.inverse = floats(n_rows, n_genes), floats(n_rows, n_genes)
        self.tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        # the optimizer keeps weights and gradients in the same place during a training
        self.gradients = Gradients(networks, layers)
        self.encoder_weights = (
            first.weight.detach().t().numpy(), _array(first.bias), floats(width, padded(2 * d)), floats(padded(2 * d)),
            *(_array(p) for p in (mean.weight, log_variance.weight, mean.bias, log_variance.bias)),
        )  # fmt: skip
        self.decoder_weights = (
            floats(into.weight.shape[1], width), _array(into.bias), floats(width, padded(d)), _array(into.weight),
        )  # fmt: skip
        self.output_weights = (
            (_array(layers.weight), _array(layers.bias)),
            (_array(layers.gate_weight, 2), _array(layers.gate_bias, 1)),
        )
        self.log_theta = _array(layers.log_theta)

    def fits(self, n: int, layers: OutputLayers) -> bool:
        """Whether a minibatch of ``n`` cells can use this memory, with the precision that suits it."""
        return n <= len(self.value) and self.paired == _is_paired(n, layers)

    def cuts(self, n: int) -> np.ndarray:
        """Return the bounds of the groups of ``n`` cells, which depend on nothing else."""
        return np.append(np.arange(0, n, self.group), n)

    def __call__(
        self,
        batch: Batch,
        seen: Batch,
        conditions: Conditions,
        theta_row_n: Tensor,
        bits: tuple[np.ndarray, int],
        eps_nd: Tensor,
        kl_weight: float,
    ) -> Found:
        """Compute the ELBO of a minibatch, and write the gradient of its mean loss to the optimizer's memory."""
        n, d, networks = len(eps_nd), self.d, self.networks
        counts, encoded_counts = batch.counts.numpy(), seen.counts.numpy()
        random, limit = bits
        norm_in, norm_out = networks.norms
        by_cell = isinstance(norm_in, nn.LayerNorm)
        output = (
            self.location.arguments(n, *self.output_weights[0]),
            self.gate.arguments(n, *self.output_weights[1]),
            np.float32(-1.0 / n),
            self.paired,
            self.output_weights[0][0].shape[1] > self.encoder.h.shape[1],
        )
        cuts = self.cuts(n)
        groups, n_threads = len(cuts) - 1, threads.number()
        plan = _plan(groups, len(self.location.tiled), by_cell=by_cell)
        self.d_norms.fill(0.0)
        helpers.run(
            n_threads, step_rows.region, len(plan) + 1, pointers(by_cell=by_cell), plan, cuts,
            (*counts, batch.log_library_n1.reshape(-1).numpy()),
            (*encoded_counts, self.ends, self.free[:groups], *self._entries(*encoded_counts[:2])),
            conditions.arguments(), self.encoder_weights, self.decoder_weights, output,
            (theta_row_n.numpy(), self.theta, self.inverse, *self._tables(n), self.log_theta),
            _norm_settings(norm_in, random, limit), _norm_settings(norm_out, random[:0], limit),
            self.encoder.arguments(n), self.decoder.arguments(n),
            self.latent.arguments(n, eps_nd.numpy(), networks.bounds, np.float32(kl_weight / n)),
            (self.value[:n], self.d_condition[:n], self.features[: -(-n // self.location.per_word)],
             self.d_theta[:groups], self.d_bias[:groups], self.d_gate_bias[:groups]),
            self._scratch(n_threads), self.d_norms[:groups], self.statistics, self.gradients.arguments, self.nothing,
        )  # fmt: skip
        self.gradients.written()
        if not by_cell:
            statistics = torch.from_numpy(self.statistics).view(2, 2, -1)
            for norm, (average, variance) in zip(networks.norms, statistics, strict=True):
                update_running_statistics(cast("nn.BatchNorm1d", norm), average, variance.clone(), n)
        latent = self.latent
        return Found(
            self.value[:n],
            latent.kl[:n],
            torch.from_numpy(latent.d_z[:n, :d]),
            torch.from_numpy(latent.d_out[:n, :d]),
            torch.from_numpy(self.d_condition[:n]),
        )

    def _tables(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return memory for the tables of small counts, whose length depends on the size of the minibatch."""
        length = rule.table_length(n, len(self.theta))
        if length not in self.tables:
            shape = len(self.theta), length, self.theta.shape[1]
            self.tables[length] = floats(*shape), floats(*shape)
        return self.tables[length]

    def _scratch(self, n_threads: int) -> tuple[np.ndarray, ...]:
        """Return memory of each thread for a block of cells: features, logits and gates, also in bfloat16, and gradients."""
        if len(self.scratch[0]) < n_threads:
            size, width, columns = step_rows.BLOCK, self.location.rows.shape[1], len(self.location.tiled) * TILE
            gates = size if len(self.gate.tiled) else 0
            narrow = columns if self.paired else 0
            self.scratch = (
                floats(n_threads, size, width), np.zeros((n_threads, size, width), np.int16),
                floats(n_threads, size, columns), np.zeros((n_threads, size, narrow), np.int16),
                floats(n_threads, gates, columns), np.zeros((n_threads, gates, narrow), np.int16),
                floats(n_threads, size, width),
            )  # fmt: skip
        return self.scratch

    def _entries(self, rows: np.ndarray, indptr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return memory for the cell and value of each entry, in gene order."""
        n_entries = int((indptr[rows + 1] - indptr[rows]).sum())
        if n_entries > len(self.entry_cells):
            size = n_entries * 5 // 4
            self.entry_cells, self.entry_values = np.zeros(size, np.int32), floats(size)
        return self.entry_cells, self.entry_values
