"""Cells whose counts are in files: only the counts of a minibatch are read into memory."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from torch import Tensor

from vxpress.core.covariates import Covariates
from vxpress.core.data.batch import Rows
from vxpress.core.data.counts import Counts
from vxpress.core.data.sampler import ByBlock, Sampler
from vxpress.core.data.source import Source

ARRAYS = ("indptr", "indices", "data")


class _Temporary:
    """A new folder, which is removed once nothing refers to this object any more."""

    def __init__(self) -> None:
        self.path = Path(mkdtemp(prefix="vxpress-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Mapped(Source):
    """Counts in the folder ``folder``, as :meth:`write` stores them; every minibatch gets a small matrix of its own.

    Files are mapped into memory, so the system keeps recently read parts of them as long as memory is free. By default
    a training visits the cells by blocks (:class:`ByBlock`), so that it reads the files in long stretches.
    """

    def __init__(self, folder: Path, log_library_n1: Tensor, covariates: Covariates) -> None:
        # copied on write: torch wants writable memory, and nothing writes to it
        arrays = [np.load(Path(folder) / f"{name}.npy", mmap_mode="c") for name in ARRAYS]
        n_genes = int(np.load(Path(folder) / "n_genes.npy"))
        # one number per cell
        indptr, indices, data = (torch.from_numpy(array) for array in arrays)
        self._counts = Counts(indptr.clone(), indices, data, n_genes)
        self.log_library_n1, self.covariates = log_library_n1, covariates

    @classmethod
    def of(cls, counts: Counts, log_library_n1: Tensor, covariates: Covariates, device: torch.device) -> Mapped:
        """Write the counts to a temporary folder, which is removed with the source."""
        folder = _Temporary()
        cls.write(counts, folder.path)
        source = cls(folder.path, log_library_n1.to(device), covariates.to(device))
        source._folder = folder
        return source

    _folder: _Temporary | None = None

    @staticmethod
    def write(counts: Counts, folder: Path) -> None:
        """Store counts, one file per array of the CSR matrix and one for the number of genes."""
        for name, array in zip(ARRAYS, counts.numpy(), strict=True):
            np.save(folder / f"{name}.npy", array)
        np.save(folder / "n_genes.npy", counts.n_genes)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self._counts.n_genes

    def read(self, rows: Tensor) -> Rows:
        own = self._counts.take(rows.cpu())
        return Rows(torch.arange(len(own)), own)

    def sampler(self, rows: Tensor, n_minibatches: int, seed: int) -> Sampler:
        """Return an order by blocks."""
        return ByBlock(rows, n_minibatches, seed)
