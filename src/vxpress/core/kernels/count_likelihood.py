"""Log likelihood of a minibatch from the input of the decoder's output layers, and its gradients.

The products of an output layer are written into one buffer, which is kept between steps if it has at most 16 MB.  The
compiled loops overwrite it with the gradient with respect to the logits, so autograd stores no other array of cells x
genes.
"""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vxpress.core import rule, threads
from vxpress.core.data import Batch
from vxpress.core.gradients import hand_over
from vxpress.core.kernels import count_rows, dense_products, helpers, team
from vxpress.core.kernels.frames import Frame, Plan
from vxpress.core.kernels.products import TILE

NO_FLOATS, NO_BFLOATS = np.empty((0, 0), np.float32), np.empty((0, 0), np.int16)


@dataclass(frozen=True)
class OutputLayers:
    """Location layer, log dispersion (rows, genes) with the row of each cell (n,), and the gate layer of a ZINB."""

    weight: Tensor
    bias: Tensor
    log_theta: Tensor
    theta_row_n: Tensor
    gate_weight: Tensor | None = None
    gate_bias: Tensor | None = None


class _Loan(weakref.ref["_Buffer"]):
    """Keeps the tensor of a buffer until the buffer is deleted and the tensor is back on the shelf."""

    tensor: Tensor


class _Buffer:
    """A tensor on loan: it returns to the shelf when the buffer is deleted.

    New memory costs a page fault per 4 KB. Above 16 MB this is little compared with the arithmetic, so larger tensors
    are not kept.

    The deletion of a buffer is recorded by the append of a deque, which runs no Python code. In a ``__del__``, or in
    any other Python callback, a Ctrl-C that arrives there would be lost.
    """

    shelf: ClassVar[dict[tuple[int, int, torch.dtype], list[Tensor]]] = {}
    lent: ClassVar[set[_Loan]] = set()
    returned: ClassVar[deque[_Loan]] = deque()
    per_shape, shapes, most_bytes = 2, 8, 1 << 24

    def __init__(self, n: int, width: int, dtype: torch.dtype) -> None:
        self._take_back()
        try:
            self.tensor = self.shelf[n, width, dtype].pop()
        except (KeyError, IndexError):
            self.tensor = torch.empty(n, width, dtype=dtype)
        if self.tensor.nbytes <= self.most_bytes:
            loan = _Loan(self, self.returned.append)
            loan.tensor = self.tensor
            self.lent.add(loan)

    @classmethod
    def _take_back(cls) -> None:
        """Put the tensors of deleted buffers on the shelf."""
        while cls.returned:
            try:
                loan = cls.returned.popleft()
            except IndexError:  # another thread was faster
                return
            cls.lent.discard(loan)
            tensor = loan.tensor
            kept = cls.shelf.setdefault((len(tensor), tensor.shape[1], tensor.dtype), [])
            if len(kept) < cls.per_shape:
                kept.append(tensor)
            if len(cls.shelf) > cls.shapes:
                cls.shelf.pop(list(cls.shelf)[0], None)  # noqa: RUF015 - a copy: another thread may add to it

    @classmethod
    def product(cls, a: Tensor, b: Tensor) -> _Buffer:
        """Compute a @ b."""
        buffer = cls(len(a), b.shape[1], a.dtype)
        threads.product(a, b, out=buffer.tensor)
        return buffer

    @classmethod
    def converted(cls, weight: Tensor, dtype: torch.dtype) -> _Buffer:
        """Convert a weight to the precision of the products."""
        buffer = cls(len(weight), weight.shape[1], dtype)
        buffer.tensor.copy_(weight)
        return buffer

    def copy(self) -> _Buffer:
        """Return a copy."""
        buffer = _Buffer(len(self.tensor), self.tensor.shape[1], self.tensor.dtype)
        buffer.tensor.copy_(self.tensor)
        return buffer

    def numpy(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the memory as bfloat16 (stored in int16) and as float32; one of the two has no rows."""
        if self.tensor.dtype == torch.bfloat16:
            return self.tensor.view(torch.int16).numpy(), NO_FLOATS
        return NO_BFLOATS, self.tensor.numpy()


class CountLikelihood:
    """One evaluation of log p(x | features, l) with its gradients.

    The loops also sum the gradients with respect to biases and dispersion over cells, with equal weights.  :meth:`sums`
    repeats the sums if cells have different weights.
    """

    def __init__(self, layers: OutputLayers, batch: Batch, log_library_n1: Tensor, *, training: bool) -> None:
        self.layers, self.batch, self.training = layers, batch, training
        self.log_library_n = log_library_n1.detach().reshape(-1).contiguous().numpy()

    def forward(self, f_nf: Tensor, *, gradient: bool) -> np.ndarray:
        """Compute the log likelihood per cell, float64 (n,)."""
        self.multiply(f_nf)
        return self.score(self.logits, gradient=gradient)

    def multiply(self, f_nf: Tensor) -> None:
        """Compute the logits."""
        layers, (n, width) = self.layers, f_nf.shape
        dtype = rule.product_dtype(n, width, len(layers.bias), training=self.training)
        self.f = f_nf.detach().to(dtype)
        self.weights = [
            None if w is None else _Buffer.converted(w.detach(), dtype) for w in (layers.weight, layers.gate_weight)
        ]
        self.logits = self._logits()

    def score(self, logits: list[_Buffer | None], *, gradient: bool) -> np.ndarray:
        """Compute the log likelihood per cell from logits, which are overwritten if the gradient is computed."""
        layers, n = self.layers, len(self.f)
        theta = layers.log_theta.detach().exp()
        length = rule.table_length(n, len(theta))
        tables = np.empty((2, len(theta), length, theta.shape[1]), np.float32)
        n_out, n_gates = len(layers.bias), 0 if layers.gate_bias is None else len(layers.gate_bias)
        self.n_threads = helpers.number()
        self.scored = Frame(count_rows.SCORING)
        count_rows.set_memory(self.scored, self.n_threads, n_out, theta.shape[1], n_gates)
        rows, indptr, indices, data = self.batch.counts.numpy()
        self.scored.update({
            count_rows.ROWS: rows, count_rows.INDPTR: indptr, count_rows.INDICES: indices, count_rows.DATA: data,
            count_rows.LOG_LIBRARY: self.log_library_n, count_rows.ROW_THETA: layers.theta_row_n.contiguous().numpy(),
            count_rows.THETA: theta.numpy(), count_rows.INVERSE: theta.reciprocal().numpy(),
            count_rows.RISING: tables[0], count_rows.SLOPE: tables[1],
        })  # fmt: skip
        self.n_sums = theta.shape if gradient else (0, 0)
        tiles = -(-theta.shape[1] // TILE)
        Plan([([(count_rows.fill_tables, self.scored)], tiles)]).run(self.n_threads)
        self.equal = np.ones(n, np.float32)
        return self._run(logits, self.equal, gradient=gradient)

    def _logits(self) -> list[_Buffer | None]:
        return [None if w is None else self._product(w.tensor) for w in self.weights]

    def _product(self, weight: Tensor) -> _Buffer:
        if self.training or not dense_products.faster(self.f, weight):
            return _Buffer.product(self.f, weight.t())
        buffer = _Buffer(len(self.f), len(weight), torch.float32)
        dense_products.times_weights(self.f, weight, buffer.tensor)
        return buffer

    def _run(self, logits: list[_Buffer | None], weight_n: np.ndarray, *, gradient: bool) -> np.ndarray:
        """Run the loops, which overwrite the buffers with the gradients with respect to the logits."""
        assert logits[0] is not None  # noqa: S101 - every decoder has a location
        n = len(self.f)
        cuts = team.groups(n, self.n_sums[0] if gradient else 1)
        layers, runs = self.layers, len(cuts) - 1
        # the memory of the likelihood in which it reads logits and writes their gradient
        slots = (count_rows.LOGITS, count_rows.LOGITS), (count_rows.GATES, count_rows.D_GATES)
        outputs: list[Frame] = []
        self.summed = [np.zeros((runs, *self.n_sums), np.float32)]
        for buffer, bias, (read, written) in zip(logits, (layers.bias, layers.gate_bias), slots, strict=True):
            self.summed.append(np.zeros((runs, 0 if bias is None else len(bias)), np.float32))
            if buffer is None or bias is None:
                continue
            low, full = buffer.numpy()
            output = Frame(count_rows.OUTPUT)
            output.update({
                count_rows.LOW: low, count_rows.FULL: full, count_rows.BIAS: bias.detach().numpy(),
                count_rows.D_BIAS: self.summed[-1], count_rows.LOGITS_OF_CELL: self.scored[read],
                count_rows.GRADIENT_OF_CELL: self.scored[written],
            })  # fmt: skip
            outputs.append(output)
        value, self.d_library = np.empty(n, np.float64), np.empty(n, np.float32)
        self.scored.update({
            count_rows.GRADIENT: gradient, count_rows.VALUE: value, count_rows.D_LIBRARY: self.d_library,
        })  # fmt: skip
        frame = Frame(count_rows.PRODUCTS)
        frame.update({
            count_rows.SCORED: self.scored, count_rows.SCORE: count_rows.score.address, count_rows.CUTS: cuts,
            count_rows.WEIGHT: weight_n, count_rows.D_LOG_THETA: self.summed[0],
            count_rows.OUTPUTS: np.array([output.address for output in outputs]),
        })  # fmt: skip
        Plan([([(count_rows.score_group, frame)], runs)]).run(self.n_threads)
        return value

    def sums(self, weight_n: np.ndarray | None = None) -> list[Tensor]:
        """Return gradients with respect to log theta, bias and gate bias, with equal or given weights of cells."""
        if weight_n is not None:
            self._run(self._logits(), weight_n, gradient=True)
        return [torch.from_numpy(part.sum(0)) for part in self.summed]

    def features_gradient(self) -> Tensor:
        """Compute the gradient with respect to the features, (n, f), float32, with equal weights of cells."""
        d_f: Tensor | None = None
        for logits, weight in zip(self.logits, self.weights, strict=True):
            if logits is not None and weight is not None:
                part = threads.product(logits.tensor, weight.tensor).float()
                d_f = part if d_f is None else d_f.add_(part)
        assert d_f is not None  # noqa: S101 - every decoder has a location
        return d_f

    def weight_gradients(self, scale: Tensor | float) -> list[Tensor | None]:
        """Compute the gradients of the output weights, with cells weighted by ``scale``.

        Gradients that a sink of the optimizer took are None.
        """
        scaled = (self.f * scale).to(self.f.dtype)
        parameters = (self.layers.weight, self.layers.gate_weight)
        gradients: list[Tensor | None] = []
        for w, logits in zip(parameters, self.logits, strict=True):
            if logits is None or w is None:
                gradients.append(None)
                continue
            # kept in a variable, so that its memory is not lent again before it is read
            product = _Buffer.product(logits.tensor.t(), scaled)
            gradients.append(hand_over(w, product.tensor))
        return gradients


class DispersionGradient:
    """The gradient of the summed log likelihood with respect to log theta, for any log theta and the same logits.

    Products are computed once with ``keep``, which takes their memory, else in each call; the results are the same.
    """

    def __init__(self, f_nf: Tensor, layers: OutputLayers, log_library_n1: Tensor, batch: Batch, *, keep: bool) -> None:
        self.f_nf, self.keep = f_nf, keep
        self.likelihood = CountLikelihood(layers, batch, log_library_n1, training=False)
        if keep:
            self.likelihood.multiply(f_nf)

    def __call__(self) -> Tensor:
        """Compute it at the present dispersions of the layers, (rows, genes)."""
        likelihood = self.likelihood
        if self.keep:
            likelihood.score([None if kept is None else kept.copy() for kept in likelihood.logits], gradient=True)
        else:
            likelihood.forward(self.f_nf, gradient=True)
        return likelihood.sums()[0]


def count_log_likelihood(
    f_nf: Tensor, layers: OutputLayers, log_library_n1: Tensor, batch: Batch, *, training: bool
) -> Tensor:
    """Compute the log likelihood per cell, (n,), for autograd: see :class:`CountLikelihood`.

    It can be differentiated once, with respect to features, layers and library.
    """
    likelihood = CountLikelihood(layers, batch, log_library_n1, training=training)
    value: Tensor = _CountLogLikelihood.apply(
        f_nf,
        layers.weight,
        layers.bias,
        layers.log_theta,
        layers.gate_weight,
        layers.gate_bias,
        log_library_n1,
        likelihood,
        torch.is_grad_enabled(),
    )
    return value


class _CountLogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f_nf: Tensor, *rest: Any) -> Tensor:
        *_, log_library_n1, ctx.likelihood, recording = rest
        ctx.library_shape = log_library_n1.shape
        gradient = recording and any(ctx.needs_input_grad)
        return torch.from_numpy(ctx.likelihood.forward(f_nf, gradient=gradient)).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_value: Tensor) -> tuple[Tensor | None, ...]:
        likelihood: CountLikelihood = ctx.likelihood
        first = d_value[0]
        if bool((d_value == first).all()):
            d_log_theta, d_bias, d_gate_bias = (part.mul_(first) for part in likelihood.sums())
        else:
            d_log_theta, d_bias, d_gate_bias = likelihood.sums(d_value.detach().contiguous().numpy())
        scale_n1 = d_value[:, None]
        d_weight, d_gate_weight = likelihood.weight_gradients(scale_n1)
        d_library = (torch.from_numpy(likelihood.d_library)[:, None] * scale_n1).reshape(ctx.library_shape)
        d_f = likelihood.features_gradient().mul_(scale_n1)
        d_gate = None if likelihood.layers.gate_bias is None else d_gate_bias
        return d_f, d_weight, d_bias, d_log_theta, d_gate_weight, d_gate, d_library, None, None
