"""Genes outside the modelled subset: a linear readout of the frozen decoder body.

Their molecules are a share of the remainder (where the library counts genes that are not in the data either, not all
of it) times a softmax of a linear map of the decoder's features, fitted by multinomial likelihood (for the Gaussian law: ridge regression of the log values).  It starts at the mean profile, so
where the features say nothing it stays there.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vxpress.core.counts import Cells, Counts
from vxpress.core.likelihoods import log_cp10k
from vxpress.core.vae import VAE

BATCH = 256
MAX_STEPS = 200
MIN_EPOCHS = 2
LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.05


def fit_readout(
    model: VAE,
    cells: Cells,
    outside: Counts,
    mean_nd: Tensor,
    train_rows: Tensor,
    validation_rows: Tensor,
    *,
    seed: int,
) -> None:
    """Fit ``model.decoder.readout`` in place on posterior means; the rest of the model is not touched."""
    with torch.no_grad():
        condition = model.conditioner(cells.covariates)
        f_nf = model.decoder.features(mean_nd, condition)
    if not model.decoder.law.composition:
        _fit_ridge(model, cells, outside, f_nf, train_rows)
        return
    _fit_softmax(model, outside, f_nf, train_rows, validation_rows, seed=seed)
    read = float(outside.gene_sums(train_rows).sum())
    modelled = float(cells.counts.gene_sums(train_rows).sum())
    library = float(cells.log_library_n1[train_rows].exp().double().sum())
    beyond = library - modelled if model.config.remainder else modelled + read
    model.outside_share.fill_(min(1.0, read / beyond) if beyond > 0 else 0.0)


def _fit_softmax(
    model: VAE, outside: Counts, f_nf: Tensor, train_rows: Tensor, validation_rows: Tensor, *, seed: int
) -> None:
    readout = model.decoder.readout
    assert readout is not None  # noqa: S101 - the caller asked for one
    sums_g = outside.gene_sums(train_rows)
    with torch.no_grad():
        readout.weight.zero_()
        # half a molecule more per gene keeps the log finite where none was seen
        readout.bias.copy_((sums_g + 0.5).log() - (sums_g + 0.5).sum().log())
    steps_per_epoch = math.ceil(len(train_rows) / BATCH)
    epochs = max(MIN_EPOCHS, MAX_STEPS // steps_per_epoch)
    optimizer = torch.optim.AdamW(readout.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * steps_per_epoch + 1)
    order = torch.Generator().manual_seed(seed)
    judged = validation_rows if len(validation_rows) else train_rows[:BATCH]
    best, best_state = _mean_loss(readout, f_nf, outside, judged), copy.deepcopy(readout.state_dict())
    for _ in range(epochs):
        rows = train_rows[torch.randperm(len(train_rows), generator=order).to(train_rows.device)]
        for batch in rows.tensor_split(steps_per_epoch):
            _set_gradient(readout, f_nf[batch], *outside.entries(batch))
            optimizer.step()
            schedule.step()
        value = _mean_loss(readout, f_nf, outside, judged)
        if value < best:
            best, best_state = value, copy.deepcopy(readout.state_dict())
    readout.load_state_dict(best_state)
    readout.zero_grad(set_to_none=True)


@torch.no_grad()
def _set_gradient(readout: torch.nn.Linear, f_nf: Tensor, where: Tensor, values: Tensor) -> None:
    """Gradient of the mean loss per molecule: (total_n softmax_ng - x_ng)^T f, x touched at its non-zeros only."""
    residual_ng = F.softmax(readout(f_nf), dim=-1)
    total_n = torch.zeros(len(f_nf), device=f_nf.device).index_add_(0, where // residual_ng.shape[1], values)
    residual_ng.mul_(total_n[:, None]).view(-1).index_add_(0, where, values, alpha=-1.0)
    residual_ng.div_(total_n.sum().clamp_min(1.0))
    readout.weight.grad = residual_ng.T @ f_nf
    readout.bias.grad = residual_ng.sum(0)


@torch.no_grad()
def _mean_loss(readout: torch.nn.Linear, f_nf: Tensor, outside: Counts, rows: Tensor) -> float:
    """Negative multinomial log likelihood of some cells, without its constant."""
    total = 0.0
    for part in rows.split(BATCH):
        where, values = outside.entries(part)
        log_share = F.log_softmax(readout(f_nf[part]), dim=-1).reshape(-1)
        total -= float((values * log_share[where]).sum(dtype=torch.float64))
    return total if math.isfinite(total) else math.inf


@torch.no_grad()
def _fit_ridge(model: VAE, cells: Cells, outside: Counts, f_nf: Tensor, train_rows: Tensor) -> None:
    readout = model.decoder.readout
    assert readout is not None  # noqa: S101 - the caller asked for one
    f_nf = f_nf.double()
    center = f_nf[train_rows].mean(0)
    gram = torch.eye(f_nf.shape[1], dtype=torch.float64, device=f_nf.device) * len(train_rows) * 1e-3
    cross = torch.zeros(f_nf.shape[1], outside.n_genes, dtype=torch.float64, device=f_nf.device)
    total = torch.zeros(outside.n_genes, dtype=torch.float64, device=f_nf.device)
    for part in train_rows.split(BATCH):
        f, y = f_nf[part] - center, log_cp10k(outside.dense(part), cells.log_library_n1[part].exp()).double()
        gram += f.T @ f
        cross += f.T @ y
        total += y.sum(0)
    weight = torch.linalg.solve(gram, cross)
    readout.weight.copy_(weight.T)
    readout.bias.copy_(total / len(train_rows) - center @ weight)
