"""The memory of :mod:`vxpress.core.kernels.step_rows` for a model and a minibatch, and the plan of its jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from vxpress.core import rule
from vxpress.core.data import Batch
from vxpress.core.gradients import GradientSink
from vxpress.core.kernels import count_rows, helpers, latent_rows, layer_rows, sparse_rows, step_rows
from vxpress.core.kernels.count_likelihood import OutputLayers
from vxpress.core.kernels.frames import Frame, Plan, Round, floats
from vxpress.core.kernels.hidden_layer import Norm, update_running_statistics
from vxpress.core.kernels.products import PAIRED, TILE, padded
from vxpress.core.kernels.team import GROUP, LARGE_GROUP, MANY_ROWS
from vxpress.core.noise import BITS


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


def _array(x: Tensor) -> np.ndarray:
    """Return the memory of a weight."""
    return x.detach().numpy()


def _is_paired(n: int, layers: OutputLayers) -> bool:
    """Whether the products of the output layers use bfloat16."""
    n_out, n_features = layers.weight.shape
    return PAIRED and rule.product_dtype(n, n_features, n_out, training=True) == torch.bfloat16


class Following(Protocol):
    """What follows the gradient in the same call: jobs, and where these read the mean loss, (1,)."""

    @property
    def rounds(self) -> tuple[Round, ...]: ...

    @property
    def loss(self) -> np.ndarray: ...


class StepMemory:
    """Memory of the steps of a training with up to ``n`` cells, in frames, and the plans of their jobs.

    The optimizer keeps weights and gradients in the same place during a training.
    """

    def __init__(
        self, n: int, networks: Networks, layers: OutputLayers, n_condition: int, after: Following | None = None
    ) -> None:
        self.after = after
        self.most, self.networks, self.layers = n, networks, layers
        self.paired = _is_paired(n, layers)
        self.per_word = 2 if self.paired else 1
        self.n_rows, self.n_genes = layers.log_theta.shape
        self.group = GROUP if self.n_rows <= MANY_ROWS else LARGE_GROUP
        self.d, self.width = networks.heads[0].weight.shape
        self.by_cell = isinstance(networks.norms[0], nn.LayerNorm)
        self.n, self.n_threads = 0, 0
        self.plans: dict[int, Plan] = {}
        self.tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.sinks: list[GradientSink] = []
        # arrays with a row for every cell (or word of cells, or group), of which a minibatch uses the first
        self.rows: list[tuple[list[tuple[Frame, Any]], np.ndarray, int]] = []
        self.step, self.seen, self.latent = Frame(step_rows.STEP), Frame(sparse_rows.ENTRIES), Frame(latent_rows.LATENT)
        self.scored = Frame(count_rows.SCORING)
        self.hidden = [layer_rows.hidden(n, self.width, by_cell=self.by_cell) for _ in networks.norms]
        # location and, with zero inflation, gate
        self.outputs = [Frame(step_rows.OUTPUT) for _ in range(1 if layers.gate_weight is None else 2)]
        self._set_encoder()
        self._set_decoder(n_condition)
        self._set_outputs()

    def fits(self, n: int, layers: OutputLayers) -> bool:
        """Whether a minibatch of ``n`` cells can use this memory, with the precision that suits it."""
        return n <= self.most and self.paired == _is_paired(n, layers)

    def cuts(self, n: int) -> np.ndarray:
        """Return the bounds of the groups of ``n`` cells, which depend on nothing else."""
        return np.append(np.arange(0, n, self.group), n)

    def _gradient(self, parameter: Tensor) -> np.ndarray:
        """Return where the gradient of a weight is written: to the optimizer's memory, or nowhere."""
        sink: GradientSink | None = getattr(parameter, "grad_sink", None)
        if sink is None:
            return torch.empty_like(parameter).numpy()
        self.sinks.append(sink)
        return sink.gradient.numpy()

    def _add(self, array: np.ndarray, *places: tuple[Frame, Any], per: int = 1) -> None:
        """Write as many rows of an array to slots as a minibatch has cells, or words or groups with ``per`` cells."""
        self.rows.append((list(places), array, per))

    def _add_floats(self, width: int, *places: tuple[Frame, Any]) -> None:
        self._add(floats(self.most, width), *places)

    def _set_encoder(self) -> None:
        """Set memory, weights and gradients of the encoder, and of both norms."""
        first, (mean, log_variance), step, latent = self.networks.first, self.networks.heads, self.step, self.latent
        d, width, g = self.d, self.width, self.n_genes
        table, d_table = first.weight.detach().t().numpy(), self._gradient(first.weight).T
        self.seen.update({
            sparse_rows.TABLE: table[:g], sparse_rows.CONDITIONS: table[g:], sparse_rows.BIAS: _array(first.bias),
            sparse_rows.D_TABLE: d_table[:g], sparse_rows.ADD: False, sparse_rows.ENDS: np.zeros(g + 1, np.int64),
            sparse_rows.CELLS: np.zeros(0, np.int32), sparse_rows.VALUES: floats(0),
        })  # fmt: skip
        groups = -(-self.most // self.group)
        self._add(np.zeros((groups, g), np.int64), (self.seen, sparse_rows.FREE), per=self.group)
        for i, (norm, layer) in enumerate(zip(self.networks.norms, self.hidden, strict=True)):
            layer.update({
                layer_rows.GAIN: _array(norm.weight), layer_rows.SHIFT: _array(norm.bias), layer_rows.EPS: norm.eps,
                layer_rows.D_GAIN: self._gradient(norm.weight), layer_rows.D_SHIFT: self._gradient(norm.bias),
                layer_rows.RANDOM: np.empty((0, 0), np.uint16), layer_rows.FACTOR: 1.0,
            })  # fmt: skip
            self._add_floats(width, (layer, layer_rows.U), *([] if i else [(self.seen, sparse_rows.OUT)]))
            for slot in (layer_rows.STANDARD, layer_rows.OUT, layer_rows.D_OUT):
                self._add_floats(width, (layer, slot))
            self._add_floats(width, (layer, layer_rows.D_U), *([] if i else [(self.seen, sparse_rows.D_OUT)]))
            for slot in (layer_rows.D_GAINS, layer_rows.D_SHIFTS):
                self._add(floats(groups, width), (layer, slot), per=self.group if self.by_cell else self.most)
        step.update({
            step_rows.ENCODER_LAYER: self.hidden[0], step_rows.DECODER_LAYER: self.hidden[1], step_rows.LATENT: latent,
            step_rows.MEAN: _array(mean.weight), step_rows.LOG_VARIANCE: _array(log_variance.weight),
            step_rows.MEAN_BIAS: _array(mean.bias), step_rows.LOG_VARIANCE_BIAS: _array(log_variance.bias),
            step_rows.HEADS: floats(width, padded(2 * d)), step_rows.HEADS_BIAS: floats(padded(2 * d)),
            step_rows.NOTHING: floats(max(width, padded(2 * d))), step_rows.D_CONDITIONS: d_table[g:],
            step_rows.D_MEAN: self._gradient(mean.weight), step_rows.D_LOG_VARIANCE: self._gradient(log_variance.weight),
            step_rows.D_MEAN_BIAS: self._gradient(mean.bias), step_rows.D_LOG_VARIANCE_BIAS: self._gradient(log_variance.bias),
            step_rows.D_FIRST_BIAS: self._gradient(first.bias),
        })  # fmt: skip
        latent[latent_rows.LARGEST], latent[latent_rows.SMALLEST] = self.networks.bounds
        for slot in (latent_rows.SCALE, latent_rows.Z, latent_rows.KL):
            self._add_floats(d, (latent, slot))
        for slot in (latent_rows.PARAMETERS, latent_rows.D_PARAMETERS):
            self._add_floats(padded(2 * d), (latent, slot))
        self._add_floats(padded(d), (latent, latent_rows.D_Z))

    def _set_decoder(self, n_condition: int) -> None:
        """Set memory, weights and gradients of the decoder's first layer."""
        into, d, width = self.networks.into, self.d, self.width
        code = padded(into.weight.shape[1])
        self.step.update({
            step_rows.INTO: _array(into.weight), step_rows.INTO_BIAS: _array(into.bias),
            step_rows.INTO_TABLE: floats(into.weight.shape[1], width), step_rows.INTO_BACK: floats(width, padded(d)),
            step_rows.D_INTO: self._gradient(into.weight), step_rows.D_INTO_BIAS: self._gradient(into.bias),
            step_rows.WIDE: floats(width, code), step_rows.WITH_CONDITION: self.layers.weight.shape[1] > width,
        })  # fmt: skip
        self._add_floats(code, (self.latent, latent_rows.CODE))
        self._add_floats(n_condition, (self.step, step_rows.D_CONDITION))

    def _set_outputs(self) -> None:
        """Set memory, weights and gradients of the output layers, and of the dispersions."""
        layers, step, scored, words = self.layers, self.step, self.scored, -(-self.most // self.per_word)
        n_features, groups = layers.weight.shape[1], -(-self.most // self.group)
        kept = np.zeros((words, padded(n_features)), np.int32)
        self._add(kept, *((output, step_rows.KEPT) for output in self.outputs), per=self.per_word)
        layers_of = (layers.weight, layers.bias), (layers.gate_weight, layers.gate_bias)
        for output, (weight, bias) in zip(self.outputs, layers_of, strict=False):
            assert weight is not None  # noqa: S101 - a layer with a frame
            assert bias is not None  # noqa: S101
            n_out, tiles = len(weight), -(-len(weight) // TILE)
            output.update({
                step_rows.WEIGHT: _array(weight), step_rows.BIAS: _array(bias), step_rows.PAIRED: self.paired,
                step_rows.TILED: np.zeros((tiles, -(-n_features // self.per_word), TILE), np.int32),
                step_rows.ROWS: np.zeros((-(-n_out // self.per_word), padded(n_features)), np.int32),
                step_rows.D_WEIGHT: self._gradient(weight), step_rows.D_BIAS: self._gradient(bias),
            })  # fmt: skip
            # rows are not a multiple of a large power of two apart, which would put them in the same places of the cache
            self._add(
                np.zeros((words, tiles * TILE + 16), np.int32), (output, step_rows.WORDS), per=self.per_word
            )  # fmt: skip
            self._add(floats(groups, n_out), (output, step_rows.D_BIASES), per=self.group)
        step.update({
            step_rows.OUTPUTS: np.array([output.address for output in self.outputs]),
            step_rows.SCORED: scored, step_rows.SCORE: count_rows.score.address,
            step_rows.D_LOG_THETA: self._gradient(layers.log_theta),
        })  # fmt: skip
        self._add(floats(groups, self.n_rows, self.n_genes), (step, step_rows.D_THETA), per=self.group)
        scored.update({
            count_rows.LOG_THETA: _array(layers.log_theta), count_rows.GRADIENT: True,
            count_rows.THETA: floats(self.n_rows, self.n_genes), count_rows.INVERSE: floats(self.n_rows, self.n_genes),
        })  # fmt: skip
        self._add(np.zeros(self.most), (scored, count_rows.VALUE))
        self._add(np.zeros(self.most, np.float32), (scored, count_rows.D_LIBRARY))

    def _set_size(self, n: int) -> None:
        """Set what depends on the number of cells."""
        for places, array, per in self.rows:
            part = array[: -(-n // per)]
            for frame, slot in places:
                frame[slot] = part
        cuts, scale = self.cuts(n), -1.0 / n
        self.seen[sparse_rows.CUTS] = self.latent[latent_rows.CUTS] = self.step[step_rows.CUTS] = cuts
        for layer in self.hidden:
            layer[layer_rows.CUTS] = cuts
        for output in self.outputs:
            output[step_rows.SCALE] = scale
        self.step[step_rows.WEIGHT_OF_CELL] = scale
        length = rule.table_length(n, self.n_rows)
        if length not in self.tables:
            shape = self.n_rows, length, self.n_genes
            self.tables[length] = floats(*shape), floats(*shape)
        self.scored[count_rows.RISING], self.scored[count_rows.SLOPE] = self.tables[length]
        if n not in self.plans:
            self.plans[n] = self._plan(len(cuts) - 1)
        self.n = n

    def _set_threads(self, n_threads: int) -> None:
        """Set the memory of each thread for a block of cells."""
        size, n_features = step_rows.BLOCK, padded(self.layers.weight.shape[1])
        self.step.update({
            step_rows.FEATURES: floats(n_threads, size, n_features), step_rows.D_FEATURES: floats(n_threads, size, n_features),
            step_rows.NARROW_FEATURES: np.zeros((n_threads, size, n_features), np.int16),
        })  # fmt: skip
        for output in self.outputs:
            n_out = len(output[step_rows.WEIGHT])
            columns = len(output[step_rows.TILED]) * TILE
            output.update({
                step_rows.LOGITS: floats(n_threads, size, columns), step_rows.PREVIOUS: floats(n_threads, n_out),
                step_rows.NARROW: np.zeros((n_threads, size, columns if self.paired else 0), np.int16),
                step_rows.D_TILE: floats(n_threads, TILE, n_features),
            })  # fmt: skip
        self.seen[sparse_rows.LOG_X] = floats(n_threads, self.n_genes)
        n_out, *gates = (len(output[step_rows.WEIGHT]) for output in self.outputs)
        count_rows.set_memory(self.scored, n_threads, n_out, self.n_genes, *gates)
        slots = (count_rows.LOGITS, count_rows.LOGITS), (count_rows.GATES, count_rows.D_GATES)
        for output, (read, written) in zip(self.outputs, slots, strict=False):
            output[step_rows.LOGITS_OF_CELL], output[step_rows.GRADIENT_OF_CELL] = (
                self.scored[read],
                self.scored[written],
            )
        self.n_threads = n_threads

    def _plan(self, n_groups: int) -> Plan:
        """Return the jobs of a step."""
        step, seen, latent, scored, (inner, outer) = self.step, self.seen, self.latent, self.scored, self.hidden
        norm, back = (
            (layer_rows.layer_norm, layer_rows.layer_norm_gradient)
            if self.by_cell
            else (layer_rows.batch_norm, layer_rows.batch_norm_gradient)
        )
        outputs = [(output, len(output[step_rows.TILED])) for output in self.outputs]
        n_genes = -(-self.n_genes // TILE)
        encode = [(sparse_rows.encode, seen)]
        infer = [(step_rows.heads, step), (latent_rows.posterior, latent), (step_rows.into, step)]
        infer_back = [
            (step_rows.into_gradient, step), (latent_rows.posterior_gradient, latent), (step_rows.heads_gradient, step)
        ]  # fmt: skip
        decode, norms, backs = (
            [(step_rows.decode, step)],
            [(norm, inner), (norm, outer)],
            [(back, inner), (back, outer)],
        )
        pack = [
            ([(sparse_rows.sort, seen)], 1), ([(step_rows.turn, step)], 1),
            ([(count_rows.dispersions, scored), (count_rows.fill_tables, scored)], n_genes),
            *(([(step_rows.pack, output)], tiles) for output, tiles in outputs),
        ]  # fmt: skip
        if self.by_cell:
            cells = [[([*encode, norms[0], *infer, norms[1], *decode, backs[1], *infer_back, backs[0]], n_groups)]]
        else:
            cells = [
                [(encode, n_groups)], [(norms[:1], 1)], [(infer, n_groups)], [(norms[1:], 1)],
                [(decode, n_groups)], [(backs[1:], 1)], [(infer_back, n_groups)], [(backs[:1], 1)],
            ]  # fmt: skip
        small = (step_rows.heads_weights, step), (step_rows.into_weights, step), (step_rows.first_weights, step)
        sums = (layer_rows.sum_gradients, inner), (layer_rows.sum_gradients, outer)
        weights = [
            *(([one], 1) for one in (*small, *sums)),
            *(([(step_rows.output_gradient, output)], tiles) for output, tiles in outputs),
            ([(step_rows.dispersion_gradient, step), (sparse_rows.table_gradient, seen)], n_genes),
        ]
        if self.after is None:
            return Plan(pack, *cells, weights)
        step[step_rows.LOSS] = self.after.loss
        return Plan(pack, *cells, [*weights, ([(step_rows.add_loss, step)], 1)], *self.after.rounds)

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
        n, d, n_threads = len(eps_nd), self.d, helpers.number()
        if n != self.n:
            self._set_size(n)
        if n_threads > self.n_threads:
            self._set_threads(n_threads)
        self._set_batch(batch, seen, conditions, theta_row_n)
        random, limit = bits
        self.hidden[0].update({
            layer_rows.RANDOM: random, layer_rows.LIMIT: limit, layer_rows.FACTOR: BITS / limit if len(random) else 1.0,
        })  # fmt: skip
        self.latent.update({latent_rows.EPS: eps_nd.numpy(), latent_rows.D_KL: kl_weight / n})
        self.plans[n].run(n_threads)
        for sink in self.sinks:
            sink.empty = False
        if not self.by_cell:
            self._update_statistics()
        latent = self.latent
        return Found(
            self.scored[count_rows.VALUE],
            latent[latent_rows.KL],
            torch.from_numpy(latent[latent_rows.D_Z][:, :d]),
            torch.from_numpy(latent[latent_rows.D_PARAMETERS][:, :d]),
            torch.from_numpy(self.step[step_rows.D_CONDITION]),
        )

    def _set_batch(self, batch: Batch, seen: Batch, conditions: Conditions, theta_row_n: Tensor) -> None:
        """Set the counts and covariates of a minibatch."""
        rows, indptr, indices, data = batch.counts.numpy()
        self.scored.update({
            count_rows.ROWS: rows, count_rows.INDPTR: indptr, count_rows.INDICES: indices, count_rows.DATA: data,
            count_rows.LOG_LIBRARY: batch.log_library_n1.reshape(-1).contiguous().numpy(),
            count_rows.ROW_THETA: theta_row_n.contiguous().numpy(),
        })  # fmt: skip
        rows, indptr, indices, data = seen.counts.numpy()
        encoded = conditions.encoded.contiguous().numpy()
        self.seen.update({
            sparse_rows.ROWS: rows, sparse_rows.INDPTR: indptr, sparse_rows.INDICES: indices, sparse_rows.DATA: data,
            sparse_rows.FURTHER: encoded,
        })  # fmt: skip
        n_entries = int((indptr[rows + 1] - indptr[rows]).sum())
        if n_entries > len(self.seen[sparse_rows.CELLS]):
            size = n_entries * 5 // 4
            self.seen.update({sparse_rows.CELLS: np.zeros(size, np.int32), sparse_rows.VALUES: floats(size)})
        self.step.update({
            step_rows.CONDITION: conditions.decoded.contiguous().numpy(), step_rows.ENCODED: encoded,
            step_rows.ADD_MEAN: conditions.add_mean.contiguous().numpy(), step_rows.ADD_Z: conditions.add_z.contiguous().numpy(),
        })  # fmt: skip

    def _update_statistics(self) -> None:
        """Update the running statistics of batch norms."""
        for norm, layer in zip(self.networks.norms, self.hidden, strict=True):
            average, variance = (torch.from_numpy(layer[slot]) for slot in (layer_rows.MEAN, layer_rows.VARIANCE))
            update_running_statistics(cast("nn.BatchNorm1d", norm), average, variance.clone(), self.n)
