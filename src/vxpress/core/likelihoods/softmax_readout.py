"""A softmax readout of genes outside the model from the features of a decoder, fitted by multinomial likelihood.

It starts at the mean profile of these genes and stays there if the features carry no information.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vxpress.core import rule, threads
from vxpress.core.data import Batch, Source, walk
from vxpress.core.likelihoods.output import ToReadOut
from vxpress.core.loop import keep_best, shuffled
from vxpress.core.progress import steps
from vxpress.core.whole_import import import_for_optimizers

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

BATCH = 256
# passes over the cells, and limits for the number of steps: more do not improve the fit of held-out cells
PASSES, MIN_STEPS, MAX_STEPS = 8, 100, 200
# how often the held-out loss is computed, and on how many cells at most
CHECKS, MAX_JUDGED = 4, 2048
LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.05


def fit_softmax(readout: torch.nn.Linear, data: ToReadOut, sums_g: Tensor) -> None:
    """Fit the readout in place, so that a softmax of its outputs gives the shares of the genes outside the model.

    ``sums_g`` are the sums of these genes over the training cells.
    """
    with torch.no_grad():
        readout.weight.zero_()
        # half a molecule is added per gene, so that the log of an unseen gene is finite
        readout.bias.copy_((sums_g + 0.5).log() - (sums_g + 0.5).sum().log())
    gradient = _Gradient(readout, min(BATCH, len(data.train_rows)))
    descend(
        readout,
        data,
        readout.parameters(),
        lambda batch: gradient.set(data.features(batch), *batch.entries()),
        lambda features, outside, rows: _mean_loss(readout, features, outside, rows),
    )


def descend(
    readout: torch.nn.Linear,
    data: ToReadOut,
    parameters: ParamsT,
    set_gradient: Callable[[Batch], None],
    mean_loss: Callable[[Callable[[Batch], Tensor], Source, Tensor], float],
) -> None:
    """Fit the readout in place by gradient steps from where it is, and keep what describes held-out cells best."""
    outside, train_rows = data.outside, data.train_rows
    n_steps = min(MAX_STEPS, max(MIN_STEPS, PASSES * math.ceil(len(train_rows) / BATCH)))
    import_for_optimizers()
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=n_steps + 1)
    order = torch.Generator().manual_seed(data.seed)
    judged = data.validation_rows if len(data.validation_rows) else train_rows[:BATCH]
    judged = shuffled(judged, order)[:MAX_JUDGED]
    outside.keep(judged)

    def step(_: int, batch: Batch) -> None:
        set_gradient(batch)
        optimizer.step()
        schedule.step()

    def judge() -> float:
        return mean_loss(data.judged_features, outside, judged)

    kept = keep_best(
        steps(
            outside.sparse_batches(_batches(train_rows, n_steps, order)), "reading out genes outside the model", n_steps
        ),
        step,
        judge,
        lambda: copy.deepcopy(readout.state_dict()),
        start=judge(),
        due=lambda done: done * CHECKS % n_steps < CHECKS,
    )
    readout.load_state_dict(kept.state)
    readout.zero_grad(set_to_none=True)


def _batches(rows: Tensor, n_steps: int, order: torch.Generator) -> Iterator[Tensor]:
    """Yield ``n_steps`` minibatches, in repeated passes over the cells."""
    left = n_steps
    while left:
        batches = shuffled(rows, order).tensor_split(math.ceil(len(rows) / BATCH))[:left]
        yield from batches
        left -= len(batches)


class _Gradient:
    """Gradient of the mean loss per molecule, sum_n (total_n softmax_ng - x_ng) f_n / total; memory is reused.

    The features, which are few, are multiplied by the totals, and x is read at its non-zeros only. The two products
    have the precision of those in training steps, see :func:`rule.product_dtype`.
    """

    def __init__(self, readout: torch.nn.Linear, n: int) -> None:
        self.readout = readout
        (g, h), device = readout.weight.shape, readout.weight.device
        on_processor = device.type == "cpu"
        self.dtype = rule.product_dtype(n, h, g, training=True) if on_processor else torch.float32
        self.logits, self.shares = torch.empty(2, n, g, device=device)

    @torch.no_grad()
    def set(self, f_nf: Tensor, where: Tensor, values: Tensor) -> None:
        """Write the gradient of a minibatch to ``.grad``; its counts are ``values`` at flat positions ``where``."""
        n, readout = len(f_nf), self.readout
        product_ng = threads.product(f_nf.to(self.dtype), readout.weight.to(self.dtype).t())
        logits = torch.add(product_ng, readout.bias, out=self.logits[:n])
        residual_ng = torch.softmax(logits, dim=-1, out=self.shares[:n])
        rows = where // residual_ng.shape[1]
        total_n = torch.zeros(n, device=f_nf.device).index_add_(0, rows, values)
        residual_ng.view(-1).index_add_(0, where, values / total_n[rows].clamp_min(1.0), alpha=-1.0)
        weight_n = total_n / total_n.sum().clamp_min(1.0)
        weighted_nf = (f_nf * weight_n[:, None]).to(self.dtype)
        readout.weight.grad = threads.product(residual_ng.to(self.dtype).t(), weighted_nf).float()
        readout.bias.grad = weight_n @ residual_ng


@torch.no_grad()
def _mean_loss(readout: torch.nn.Linear, features: Callable[[Batch], Tensor], outside: Source, rows: Tensor) -> float:
    """Compute the negative multinomial log likelihood of some cells, without its constant."""
    total = 0.0
    for _, batch in walk(outside, rows, BATCH, dense=False):
        where, values = batch.entries()
        logits = readout(features(batch))
        at_n = where // logits.shape[1]
        log_share = logits.view(-1)[where] - logits.logsumexp(-1)[at_n]
        total -= float((values * log_share).sum(dtype=torch.float64))
    return total if math.isfinite(total) else math.inf
