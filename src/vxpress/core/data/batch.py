"""A minibatch, which owns its counts: kernels and networks read nothing else of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vxpress.core.covariates import Covariates
from vxpress.core.data.counts import Counts


@dataclass(frozen=True, eq=False)
class Rows:
    """Counts of some cells: the rows ``at`` (n,) of a CSR matrix, dense counts (n, genes), or both.

    The matrix may hold all cells of a source, or only those of one batch. ``at`` is on its device. Without a matrix, one
    is made of the dense counts where it is needed.
    """

    at: Tensor
    matrix: Counts | None
    dense_ng: Tensor | None = None

    def __len__(self) -> int:
        return len(self.at)

    @cached_property
    def stored(self) -> tuple[Tensor, Counts]:
        """Row numbers and the matrix to which they refer."""
        if self.matrix is not None:
            return self.at, self.matrix
        assert self.dense_ng is not None  # noqa: S101 - one of the two is given
        return torch.arange(len(self.dense_ng), device=self.dense_ng.device), Counts.from_dense(self.dense_ng)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.stored[1].n_genes

    def numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return row numbers, indptr, indices and data as numpy arrays that share memory; on the CPU only."""
        at, matrix = self.stored
        return at.numpy(), *matrix.numpy()

    def entries(self) -> tuple[Tensor, Tensor]:
        """Return the non-zeros: positions in the flattened (n, genes) matrix, and values."""
        return self._entries

    @cached_property
    def _entries(self) -> tuple[Tensor, Tensor]:
        at, matrix = self.stored
        return matrix.entries(at)

    def n_stored(self) -> Tensor:
        """Return the number of non-zeros of every cell, int64 (n,)."""
        at, matrix = self.stored
        return matrix.lengths(at)

    def dense(self, out: Tensor | None = None) -> Tensor:
        """Return dense float32 counts (n, genes), written into ``out`` (on the device of the matrix) if given."""
        if self.dense_ng is None:
            at, matrix = self.stored
            return matrix.dense(at, out, self.entries() if at.device.type == "cpu" else None)
        return self.dense_ng if out is None else out.copy_(self.dense_ng)

    def repeated(self, k: int) -> Rows:
        """Return the same rows ``k`` times; a matrix is not copied."""
        if self.matrix is not None:
            return Rows(self.at.repeat(k), self.matrix)
        return Rows(self.at.repeat(k), None, self.dense().repeat(k, 1))


@dataclass(frozen=True, eq=False)
class Batch:
    """A minibatch: counts, the numbers of its cells in the source (n,), their log library (n, 1) and covariates.

    ``once`` is the minibatch of which this one is made of copies. ``observed_n`` says which cells have these counts, bool
    (n,); None stands for all. ``log_x_ng`` is what encoders receive instead of log1p counts, if it differs. ``further`` holds the same cells in other modalities, by name.
    """

    counts: Rows
    rows: Tensor
    log_library_n1: Tensor
    covariates: Covariates
    once: Batch | None = None
    observed_n: Tensor | None = None
    log_x_ng: Tensor | None = None
    further: Mapping[str, Batch] = field(default_factory=dict)

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

    def with_covariates(self, covariates: Covariates) -> Batch:
        """Return the same cells with other covariates."""
        further = {name: part.with_covariates(covariates) for name, part in self.further.items()}
        return replace(self, covariates=covariates, further=further)

    def repeated(self, k: int) -> Batch:
        """Repeat the minibatch ``k`` times; its counts are not gathered again."""
        if k == 1:
            return self
        at = torch.arange(len(self), device=self.rows.device).repeat(k)
        observed = None if self.observed_n is None else self.observed_n[at]
        further = {name: part.repeated(k) for name, part in self.further.items()}
        return Batch(
            self.counts.repeated(k),
            self.rows[at],
            self.log_library_n1[at],
            self.covariates[at],
            self,
            observed,
            None if self.log_x_ng is None else self.log_x_ng[at],
            further,
        )
