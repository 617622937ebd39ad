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

# entries of a part for one thread; fewer take less time than to wake another one
PART = 2**14


class Space:
    """Memory for thinned counts. A training keeps it, because memory that is new in every step takes longer than the thinning."""

    def __init__(self) -> None:
        self.indices, self.data, self.large = np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.int64)

    def of(self, n_entries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return indices, counts, and places of large counts."""
        if n_entries > len(self.data):
            size = n_entries * 5 // 4
            self.indices, self.data, self.large = (
                np.empty(size, part.dtype) for part in (self.indices, self.data, self.large)
            )
        return self.indices[:n_entries], self.data[:n_entries], self.large[:n_entries]


def thinned(batch: Batch, share: float, noise: Noise, space: Space | None = None) -> Batch:
    """Return a minibatch with a binomial sample of each cell's molecules.

    The share that is left out is drawn anew for each cell, uniformly between 0 and ``share``. Library and covariates
    stay those of the whole cell. With ``space``, the minibatch is valid until the next one is thinned in the same space.
    """
    rates_n = noise.rates(len(batch), 1.0 - share)
    if batch.rows.device.type != "cpu":
        counts = dense(batch, rates_n, noise)
    elif rule.compiled_thinning():
        counts = compiled(batch, rates_n, noise, space)
    else:
        counts = by_molecule(batch, rates_n, noise)
    return replace(batch, counts=counts, once=None)


def dense(batch: Batch, rates_n: Tensor, noise: Noise) -> Rows:
    """Return binomial samples of a minibatch's dense counts with the rate of each cell, without waiting for the device."""
    x_ng = batch.x_ng
    kept_ng = torch.binomial(x_ng, rates_n.to(x_ng)[:, None].expand_as(x_ng), generator=noise.generator)
    return Rows(batch.counts.at, None, kept_ng)


def by_molecule(batch: Batch, rates_n: Tensor, noise: Noise) -> Rows:
    """Return binomial samples of a minibatch's counts, for which every molecule has a random number."""
    where, values = batch.entries()
    data, entries_of = values.numpy().astype(np.int64), batch.counts.n_stored().numpy()
    large = data > rule.LARGE_COUNT
    molecules = np.append(0, np.cumsum(np.where(large, 0, data)))
    limits = np.floor(rates_n.numpy() * BITS).astype(np.int32)
    molecules_of = np.diff(molecules[np.append(0, np.cumsum(entries_of))])
    drawn = noise.bits(int(molecules[-1]), 1)[:, 0] < np.repeat(limits, molecules_of)
    kept = np.diff(np.append(0, np.cumsum(drawn, dtype=np.int32))[molecules])
    if large.any():
        kept[large] = noise.binomial(data[large], np.repeat(rates_n.numpy(), entries_of)[large])
    kept_ng = torch.zeros(len(batch), batch.counts.n_genes)
    kept_ng.view(-1)[where] = torch.from_numpy(kept).float()
    return Rows(batch.counts.at, None, kept_ng)


def compiled(batch: Batch, rates_n: Tensor, noise: Noise, space: Space | None = None) -> Rows:
    """Return the same in a compiled loop, in which a random word serves several molecules."""
    from vxpress.core.kernels import helpers, team, thinned_rows

    at, indptr, indices, data = batch.counts.numpy()
    # place and end of each row, between which it may have fewer entries than space
    bounds = np.empty((len(at), 2), np.int64)
    ends = np.cumsum(indptr[at + 1] - indptr[at])
    bounds[:1, 0], bounds[1:, 0] = 0, ends[:-1]
    n_entries = int(ends[-1]) if len(ends) else 0
    out_indices, out_data, large = (space or Space()).of(n_entries)
    # rounded at random, so that a rate is right in expectation
    levels = rates_n.numpy() * thinned_rows.LEVELS + noise.bits(len(at), 1)[:, 0] / BITS
    limits = np.floor(levels).astype(np.uint64)
    cuts = team.cut(len(at), max(1, n_entries // PART))
    n_large = np.zeros(len(cuts) - 1, np.int64)
    helpers.share(
        thinned_rows.thin, cuts, noise.word(), limits, at, indptr, indices, data, bounds, out_indices, out_data, large,
        n_large,
    )  # fmt: skip
    if n_large.any():
        first = bounds[cuts[:-1], 0]
        where = np.concatenate([large[f : f + n] for f, n in zip(first, n_large, strict=True)])
        row = np.searchsorted(bounds[:, 0], where, side="right") - 1
        # one that loses all its molecules stays as an explicit zero, which adds nothing
        out_data[where] = noise.binomial(out_data[where].astype(np.int64), limits[row] / thinned_rows.LEVELS)
    bounds_t, indices_t, data_t = map(torch.from_numpy, (bounds.reshape(-1), out_indices, out_data))
    matrix = Counts(bounds_t, indices_t, data_t, batch.counts.n_genes)
    # every other row of the matrix is the space that a row has left
    return Rows(2 * torch.arange(len(at)), matrix)
