"""Counts of all cells held once as CSR tensors; minibatches are gathered from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from vxpress.core.covariates import Covariates


def _tensor(array: np.ndarray, dtype: type) -> Tensor:
    """A tensor over the same memory where type and permissions allow."""
    array = array.astype(dtype, copy=False)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


@dataclass(frozen=True)
class Counts:
    """A cells x genes count matrix in compressed rows, on one device."""

    indptr: Tensor
    indices: Tensor
    data: Tensor
    n_genes: int

    @classmethod
    def from_scipy(cls, x: sparse.csr_matrix | sparse.csr_array, device: torch.device | str = "cpu") -> Counts:
        """Take over a canonical CSR matrix; values become float32, and what is of the right type is not copied."""
        return cls(
            _tensor(x.indptr, np.int64).to(device),
            _tensor(x.indices, np.int32).to(device),
            _tensor(x.data, np.float32).to(device),
            int(x.shape[1]),
        )

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @cached_property
    def density(self) -> float:
        """Share of entries that are stored."""
        return len(self.data) / max(1, len(self) * self.n_genes)

    def numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """indptr, indices and data over the same memory; only of counts on the CPU."""
        return self._arrays

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.indptr.numpy(), self.indices.numpy(), self.data.numpy()

    def to(self, device: torch.device) -> Counts:
        """The same on another device."""
        return Counts(self.indptr.to(device), self.indices.to(device), self.data.to(device), self.n_genes)

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The non-zeros of some rows: positions in the flattened (len(rows), n_genes) matrix, and values."""
        starts = self.indptr[rows]
        lengths = self.indptr[rows + 1] - starts
        ends = lengths.cumsum(0)
        at = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), lengths)
        here = torch.arange(len(at), device=rows.device) + (starts - ends + lengths)[at]
        return at * self.n_genes + self.indices[here], self.data[here]

    def dense(self, rows: Tensor) -> Tensor:
        """Rows as a dense float32 tensor, (len(rows), n_genes)."""
        where, values = self.entries(rows)
        x_ng = torch.zeros(len(rows), self.n_genes, device=rows.device)
        x_ng.view(-1)[where] = values
        return x_ng

    def gene_sums(self, rows: Tensor | None = None) -> Tensor:
        """Molecules per gene over a set of rows (one that is named twice counts once), float64 (n_genes,)."""
        data, indices = self.data, self.indices
        if rows is not None:
            keep = torch.zeros(len(self), dtype=torch.bool, device=data.device)
            keep[rows] = True
            at = torch.repeat_interleave(keep, self.indptr.diff())
            data, indices = data[at], indices[at]
        return torch.zeros(self.n_genes, dtype=torch.float64, device=data.device).index_add_(
            0, indices.long(), data.double()
        )


@dataclass(frozen=True)
class Cells:
    """All a model needs of some cells: counts, log library (n, 1) and covariates."""

    counts: Counts
    log_library_n1: Tensor
    covariates: Covariates

    def __len__(self) -> int:
        return len(self.counts)

    def to(self, device: torch.device) -> Cells:
        """The same on another device."""
        return Cells(self.counts.to(device), self.log_library_n1.to(device), self.covariates.to(device))

    def batch(self, rows: Tensor) -> Batch:
        """A minibatch."""
        return Batch(self.counts, rows, self.log_library_n1[rows], self.covariates[rows])


@dataclass(frozen=True)
class Batch:
    """A minibatch: which rows of the counts, log library (n, 1) and covariates of these rows."""

    counts: Counts
    rows: Tensor
    log_library_n1: Tensor
    covariates: Covariates

    @cached_property
    def x_ng(self) -> Tensor:
        """The counts, dense; only plain forms ask for it."""
        return self.counts.dense(self.rows)
