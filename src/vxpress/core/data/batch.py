"""A minibatch, which owns its counts: kernels and networks read nothing else of the data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vxpress.core.covariates import Covariates
from vxpress.core.data.counts import Counts


@dataclass(frozen=True, eq=False)
class Rows:
    """Counts of some cells: the rows ``at`` (n,) of a CSR matrix, dense counts (n, genes), or both.

    The matrix may hold all cells of a source, or only those of one batch. ``at`` is on its device.
    """

    at: Tensor
    matrix: Counts | None
    dense_ng: Tensor | None = None

    def __len__(self) -> int:
        return len(self.at)

    @property
    def csr(self) -> Counts:
        """The matrix of which these are rows."""
        assert self.matrix is not None  # noqa: S101 - only batches of a captured step have no matrix, and they are dense
        return self.matrix

    def numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return row numbers, indptr, indices and data as numpy arrays that share memory; on the CPU only."""
        return self.at.numpy(), *self.csr.numpy()

    def entries(self) -> tuple[Tensor, Tensor]:
        """Return the non-zeros: positions in the flattened (n, genes) matrix, and values."""
        return self.csr.entries(self.at)

    def n_stored(self) -> Tensor:
        """Return the number of non-zeros of every cell, int64 (n,)."""
        return self.csr.lengths(self.at)

    def dense(self, out: Tensor | None = None) -> Tensor:
        """Return dense float32 counts (n, genes), written into ``out`` (on the device of the matrix) if given."""
        return self.csr.dense(self.at, out) if self.dense_ng is None else self.dense_ng

    def repeated(self, k: int) -> Rows:
        """Return the same rows ``k`` times; a matrix is not copied."""
        if self.matrix is not None:
            return Rows(self.at.repeat(k), self.matrix)
        return Rows(self.at.repeat(k), None, self.dense().repeat(k, 1))


@dataclass(frozen=True, eq=False)
class Batch:
    """A minibatch: counts, the numbers of its cells in the source (n,), their log library (n, 1) and covariates.

    ``once`` is the minibatch of which this one is made of copies.
    """

    counts: Rows
    rows: Tensor
    log_library_n1: Tensor
    covariates: Covariates
    once: Batch | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def x_ng(self) -> Tensor:
        """Dense counts on the device of the source; only the plain implementations and those for a GPU use them."""
        if self.once is not None:
            return self.once.x_ng.repeat(len(self) // max(1, len(self.once)), 1)
        return self.counts.dense().to(self.rows.device)

    def entries(self) -> tuple[Tensor, Tensor]:
        """Return the non-zeros on the device of the source: positions in the flattened (n, genes) matrix, and values."""
        where, values = self.counts.entries()
        return where.to(self.rows.device), values.to(self.rows.device)

    def repeated(self, k: int) -> Batch:
        """Repeat the minibatch ``k`` times; its counts are not gathered again."""
        if k == 1:
            return self
        at = torch.arange(len(self), device=self.rows.device).repeat(k)
        return Batch(self.counts.repeated(k), self.rows[at], self.log_library_n1[at], self.covariates[at], self)
