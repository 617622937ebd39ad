"""Binomial thinning: in training, the encoder of z sees only a part of each cell's molecules.

It learns to place a cell from fewer molecules where the whole cell belongs, because the likelihood still scores all of
them. The bound remains one on log p(x): q(z) may depend on the cell in any way.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vxpress.core import rule
from vxpress.core.data import Batch, Counts
from vxpress.core.data.batch import Rows
from vxpress.core.noise import BITS, Noise

# counts above this are left to numpy's algorithm, which takes the same time for any count
MAX_DRAWN = 256


def thinned(batch: Batch, share: float, noise: Noise) -> Batch:
    """Return a minibatch with a binomial sample of each cell's molecules.

    The share that is left out is drawn anew for each cell, uniformly between 0 and ``share``. Library and covariates
    stay those of the whole cell.
    """
    sample = dense
    if batch.rows.device.type == "cpu":
        sample = compiled if rule.compiled_thinning() else by_molecule
    return replace(batch, counts=sample(batch, noise.rates(len(batch), 1.0 - share), noise), once=None)


def dense(batch: Batch, rates_n: Tensor, noise: Noise) -> Rows:
    """Return binomial samples of a minibatch's dense counts with the rate of each cell, without waiting for the device."""
    x_ng = batch.x_ng
    kept_ng = torch.binomial(x_ng, rates_n.to(x_ng)[:, None].expand_as(x_ng), generator=noise.generator)
    return Rows(batch.counts.at, None, kept_ng)


def by_molecule(batch: Batch, rates_n: Tensor, noise: Noise) -> Rows:
    """Return binomial samples of a minibatch's counts, for which every molecule has a random number."""
    where, values = batch.entries()
    data = values.numpy().astype(np.int64)
    rate = rates_n.numpy()[where.numpy() // batch.counts.n_genes]
    large = data > MAX_DRAWN
    n_drawn = np.where(large, 0, data)
    owner = np.repeat(np.arange(len(data)), n_drawn)
    drawn = noise.bits(len(owner), 1)[:, 0] < np.floor(rate * BITS).astype(np.int64)[owner]
    kept = np.bincount(owner[drawn], minlength=len(data))
    kept[large] = noise.binomial(data[large], rate[large])
    kept_ng = torch.zeros(len(batch), batch.counts.n_genes)
    kept_ng.view(-1)[where] = torch.from_numpy(kept).float()
    return Rows(batch.counts.at, None, kept_ng)


def compiled(batch: Batch, rates_n: Tensor, noise: Noise) -> Rows:
    """Return the same in a compiled loop, in which a random word serves several molecules."""
    from vxpress.core.kernels import thinned_rows

    at, indptr, indices, data = batch.counts.numpy()
    n_entries = int((indptr[at + 1] - indptr[at]).sum())
    out_indptr = np.empty(len(at) + 1, np.int64)
    out_indices, out_data = np.empty(n_entries + 1, np.int32), np.empty(n_entries + 1, np.float32)
    large, large_rows = np.empty((2, n_entries), np.int64)
    # rounded at random, so that a rate is right in expectation
    levels = rates_n.numpy() * thinned_rows.LEVELS + noise.bits(len(at), 1)[:, 0] / BITS
    limits = np.floor(levels).astype(np.uint64)
    n_large = thinned_rows.thin(
        noise.word(), limits, at, indptr, indices, data, out_indptr, out_indices, out_data, large, large_rows
    )
    if n_large:
        where, rate = large[:n_large], limits[large_rows[:n_large]] / thinned_rows.LEVELS
        # one that loses all its molecules stays as an explicit zero, which adds nothing
        out_data[where] = noise.binomial(out_data[where].astype(np.int64), rate)
    n_kept = int(out_indptr[-1])
    indptr_t, indices_t, data_t = map(torch.from_numpy, (out_indptr, out_indices[:n_kept], out_data[:n_kept]))
    return Rows(torch.arange(len(at)), Counts(indptr_t, indices_t, data_t, batch.counts.n_genes))
