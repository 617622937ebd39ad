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


def without_stored_zeros(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """The matrix itself, or, where it stores zeros, a copy that does not."""
    if x.data.all():
        return x
    x = x.copy()
    x.eliminate_zeros()
    return x


@dataclass(frozen=True)
class Counts:
    """A cells x genes count matrix in compressed rows, on one device; only non-zeros are stored."""

    indptr: Tensor
    indices: Tensor
    data: Tensor
    n_genes: int

    @classmethod
    def from_scipy(cls, x: sparse.csr_matrix | sparse.csr_array, device: torch.device | str = "cpu") -> Counts:
        """Take over a CSR matrix with sorted, unique indices, without the zeros it may store.

        Values become float32, and what is of the right type is not copied.
        """
        x = without_stored_zeros(x)
        arrays = _tensor(x.indptr, np.int64), _tensor(x.indices, np.int32), _tensor(x.data, np.float32)
        return cls(*arrays, int(x.shape[1])).to(torch.device(device))

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def counted_n(self) -> Tensor:
        """Whether each cell has a count, bool (n,)."""
        return self.indptr.diff() > 0

    @cached_property
    def density(self) -> float:
        """Share of entries that are not zero."""
        return len(self.data) / max(1, len(self) * self.n_genes)

    def numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """indptr, indices and data over the same memory; only of counts on the CPU."""
        return self._arrays

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.indptr.numpy(), self.indices.numpy(), self.data.numpy()

    @cached_property
    def max_row(self) -> int:
        """Most entries that a row has; asking for it the first time waits for the device."""
        return int(self.indptr.diff().max()) if len(self) else 0

    def to(self, device: torch.device) -> Counts:
        """The same on another device."""
        moved = Counts(self.indptr.to(device), self.indices.to(device), self.data.to(device), self.n_genes)
        if device.type != "cpu":
            # found now, so that no minibatch has to wait for it
            moved.__dict__["max_row"] = self.max_row
        return moved

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The non-zeros of some rows: positions in the flattened (len(rows), n_genes) matrix, and values."""
        starts = self.indptr[rows]
        lengths = self.indptr[rows + 1] - starts
        ends = lengths.cumsum(0)
        at = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), lengths)
        here = torch.arange(len(at), device=rows.device) + (starts - ends + lengths)[at]
        return at * self.n_genes + self.indices[here], self.data[here]

    def padded_entries(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`entries`, every row filled up with zeros to ``max_row`` entries, whose positions may be named twice.

        Shapes depend on the number of rows alone, so nothing waits for the device.  The values are to be added.
        """
        starts = self.indptr[rows][:, None]
        ends = self.indptr[rows + 1][:, None]
        offset = torch.arange(self.max_row, device=rows.device)
        here = starts + offset
        stored = here < ends
        here = torch.where(stored, here, 0)
        # fillers lie side by side, not on one address where their additions would queue
        gene = torch.where(stored, self.indices[here], offset)
        where = torch.arange(len(rows), device=rows.device)[:, None] * self.n_genes + gene
        return where.view(-1), torch.where(stored, self.data[here], 0.0).view(-1)

    def padded_dense(self, rows: Tensor) -> Tensor:
        """As :meth:`dense` away from the CPU."""
        x_ng = torch.zeros(len(rows), self.n_genes, device=rows.device)
        x_ng.view(-1).index_add_(0, *self.padded_entries(rows))
        return x_ng

    def dense(self, rows: Tensor) -> Tensor:
        """Rows as a dense float32 tensor, (len(rows), n_genes)."""
        if self.indptr.device.type != "cpu":
            return self.padded_dense(rows)
        where, values = self.entries(rows)
        x_ng = torch.zeros(len(rows), self.n_genes, device=rows.device)
        x_ng.view(-1)[where] = values
        return x_ng

    def take(self, rows: Tensor) -> Counts:
        """Some rows as a matrix of their own."""
        starts = self.indptr[rows]
        lengths = self.indptr[rows + 1] - starts
        ends = lengths.cumsum(0)
        at = torch.repeat_interleave(starts - ends + lengths, lengths) + torch.arange(
            int(lengths.sum()), device=ends.device
        )
        indptr = torch.cat((ends.new_zeros(1), ends))
        return Counts(indptr, self.indices[at], self.data[at], self.n_genes)

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

    def take(self, rows: Tensor) -> Cells:
        """Some of the cells."""
        return Cells(self.counts.take(rows), self.log_library_n1[rows], self.covariates[rows])

    def batch(self, rows: Tensor, x_ng: Tensor | None = None) -> Batch:
        """A minibatch; ``x_ng`` are its dense counts where someone has them already."""
        return Batch(self.counts, rows, self.log_library_n1[rows], self.covariates[rows], x_ng)


@dataclass(frozen=True)
class Batch:
    """A minibatch: which rows of the counts, log library (n, 1) and covariates of these rows, and dense counts if at hand."""

    counts: Counts
    rows: Tensor
    log_library_n1: Tensor
    covariates: Covariates
    dense_ng: Tensor | None = None

    @cached_property
    def x_ng(self) -> Tensor:
        """The counts, dense; only plain forms ask for it."""
        return self.counts.dense(self.rows) if self.dense_ng is None else self.dense_ng

    def repeated(self, k: int) -> Batch:
        """The minibatch ``k`` times, one after the other; away from the CPU its dense counts are not gathered again."""
        if k == 1:
            return self
        at = torch.arange(len(self.rows), device=self.rows.device).repeat(k)
        here = self.dense_ng is None and self.rows.device.type == "cpu"
        dense_ng = None if here else self.x_ng.repeat(k, 1)
        return Batch(self.counts, self.rows.repeat(k), self.log_library_n1[at], self.covariates[at], dense_ng)
