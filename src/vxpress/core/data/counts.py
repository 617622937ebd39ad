"""Counts as CSR tensors, from which minibatches are gathered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import Tensor


def _tensor(array: np.ndarray, dtype: type) -> Tensor:
    """Return a tensor that shares the array's memory if its type and permissions allow it."""
    array = array.astype(dtype, copy=False)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


# entries that are converted at a time, so that temporaries stay in the processor's cache
PART = 2**18


def without_stored_zeros(x: sparse.csr_matrix, *, in_place: bool = False) -> sparse.csr_matrix:
    """Return the matrix itself, or a copy without explicit zeros if it stores any; ``in_place``, no copy is made."""
    if x.data.all():
        return x
    x = x if in_place else x.copy()
    x.eliminate_zeros()
    return x


@dataclass(frozen=True)
class Counts:
    """A cells x genes count matrix in CSR format on one device; only non-zeros are stored."""

    indptr: Tensor
    indices: Tensor
    data: Tensor
    n_genes: int

    @classmethod
    def from_scipy(cls, x: sparse.csr_matrix | sparse.csr_array, device: torch.device | str = "cpu") -> Counts:
        """Convert a CSR matrix with sorted, unique indices; explicit zeros are dropped.

        Values become float32. Arrays that already have the right type are not copied.
        """
        x = without_stored_zeros(x)
        arrays = _tensor(x.indptr, np.int64), _tensor(x.indices, np.int32), _tensor(x.data, np.float32)
        return cls(*arrays, int(x.shape[1])).to(torch.device(device))

    @classmethod
    def from_dense(cls, x_ng: Tensor) -> Counts:
        """Convert dense counts, on their device."""
        row, gene = x_ng.nonzero(as_tuple=True)
        ends = row.bincount(minlength=len(x_ng)).cumsum(0)
        return cls(torch.cat((ends.new_zeros(1), ends)), gene.int(), x_ng[row, gene].float(), x_ng.shape[1])

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tensors that hold the matrix."""
        return self.indptr, self.indices, self.data

    def lengths(self, rows: Tensor) -> Tensor:
        """Return the number of stored entries of some rows, int64 (n,)."""
        return self.indptr[rows + 1] - self.indptr[rows]

    def numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return indptr, indices and data as numpy arrays that share memory; only for counts on the CPU."""
        return self._arrays

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.indptr.numpy(), self.indices.numpy(), self.data.numpy()

    @cached_property
    def max_row(self) -> int:
        """Largest number of entries in a row; the first access waits for the device."""
        return int(self.indptr.diff().max()) if len(self) else 0

    @cached_property
    def sums_g(self) -> Tensor:
        """Sum of each gene over all rows, float64 (genes,) on the device. Sums of whole numbers are exact."""
        sums_g = torch.zeros(self.n_genes, dtype=torch.float64, device=self.data.device)
        for indices, data in zip(self.indices.split(PART), self.data.split(PART), strict=True):
            sums_g.index_add_(0, indices, data.double())
        return sums_g

    def to(self, device: torch.device) -> Counts:
        """Return the same data on another device."""
        if device == self.data.device:
            return self
        moved = Counts(self.indptr.to(device), self.indices.to(device), self.data.to(device), self.n_genes)
        if "sums_g" in self.__dict__:
            moved.__dict__["sums_g"] = self.sums_g.to(device)
        if device.type != "cpu":
            # computed now, so that no minibatch waits for it
            moved.__dict__["max_row"] = self.max_row
        return moved

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the non-zeros of some rows: positions in the flattened (len(rows), n_genes) matrix, and values."""
        starts = self.indptr[rows]
        lengths = self.indptr[rows + 1] - starts
        ends = lengths.cumsum(0)
        at = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), lengths)
        here = torch.arange(len(at), device=rows.device) + (starts - ends + lengths)[at]
        return at * self.n_genes + self.indices[here], self.data[here]

    def padded_entries(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same as :meth:`entries`, with every row padded by zeros to ``max_row`` entries.

        Shapes depend only on the number of rows, so nothing waits for the device.  Positions of padding may repeat, so
        values have to be added, not assigned.
        """
        starts = self.indptr[rows][:, None]
        ends = self.indptr[rows + 1][:, None]
        offset = torch.arange(self.max_row, device=rows.device)
        here = starts + offset
        stored = here < ends
        here = torch.where(stored, here, 0)
        # padding is spread over the row: additions to a single address would be serialised
        gene = torch.where(stored, self.indices[here], offset)
        where = torch.arange(len(rows), device=rows.device)[:, None] * self.n_genes + gene
        return where.view(-1), torch.where(stored, self.data[here], 0.0).view(-1)

    def padded_dense(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the same as :meth:`dense`, in a form that suits devices other than the CPU."""
        x_ng = torch.zeros(len(rows), self.n_genes, device=rows.device) if out is None else out.zero_()
        x_ng.view(-1).index_add_(0, *self.padded_entries(rows))
        return x_ng

    def dense(self, rows: Tensor, out: Tensor | None = None, entries: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return rows as a dense float32 tensor, (len(rows), n_genes), written into ``out`` if given.

        On a CPU, ``entries`` are the non-zeros of these rows, if they are known.
        """
        if self.indptr.device.type != "cpu":
            return self.padded_dense(rows, out)
        where, values = self.entries(rows) if entries is None else entries
        x_ng = torch.zeros(len(rows), self.n_genes) if out is None else out.zero_()
        x_ng.view(-1)[where] = values
        return x_ng

    def take(self, rows: Tensor) -> Counts:
        """Return some rows as a new matrix."""
        starts = self.indptr[rows]
        lengths = self.indptr[rows + 1] - starts
        ends = lengths.cumsum(0)
        at = torch.repeat_interleave(starts - ends + lengths, lengths) + torch.arange(
            int(lengths.sum()), device=ends.device
        )
        indptr = torch.cat((ends.new_zeros(1), ends))
        return Counts(indptr, self.indices[at], self.data[at], self.n_genes)
