"""Where the cells of a fit come from: a source gives a batch for given row numbers, and nothing else sees its matrix."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from vxpress.core.covariates import Covariates
from vxpress.core.data.batch import Batch, Rows
from vxpress.core.data.counts import Counts
from vxpress.core.data.prefetch import prefetched
from vxpress.core.data.sampler import Sampler, Shuffled


class Source(ABC):
    """Counts, log library (n, 1) and covariates of some cells.

    The last two are small and always in memory, on the device of the computations. Only the counts may be elsewhere. A
    source has to define :meth:`of`, :meth:`read` and :attr:`n_genes`, and to set the attributes ``log_library_n1`` and
    ``covariates``.
    """

    log_library_n1: Tensor
    covariates: Covariates

    on_device: ClassVar[bool] = False
    """Whether :meth:`batch` only reads memory of the device, so that it may be part of a CUDA graph."""
    in_memory: bool = True
    """Whether the counts of all cells are in memory, so that results of every cell may be too."""

    @classmethod
    @abstractmethod
    def of(cls, counts: Counts, log_library_n1: Tensor, covariates: Covariates, device: torch.device) -> Source:
        """Return a source of cells that were read into memory, for computations on ``device``."""

    @property
    @abstractmethod
    def n_genes(self) -> int:
        """Number of genes."""

    @abstractmethod
    def read(self, rows: Tensor) -> Rows:
        """Return the counts of some rows, any of which may be repeated; a CSR matrix of them or dense counts will do.

        ``rows`` are on the device of the source, or on the host if the source is not ``on_device``.
        """

    @property
    def further(self) -> Mapping[str, Source]:
        """The same cells in modalities other than the first, by name; most sources have one modality."""
        return {}

    def observed(self, name: str) -> Tensor | None:
        """Return which cells have the modality ``name``, bool (n,), on the device; None stands for all."""
        return None

    def having(self, name: str, rows: Tensor) -> Tensor:
        """Return those of some rows whose cells have the modality ``name``."""
        observed_n = self.observed(name)
        return rows if observed_n is None else rows[observed_n[rows]]

    def __len__(self) -> int:
        return len(self.log_library_n1)

    @property
    def counted_n(self) -> Tensor | None:
        """Whether each cell has any count, bool (n,), on the CPU; None if that is not known without reading."""
        return None

    @property
    def sums_g(self) -> Tensor | None:
        """Sum of the counts of each gene over all cells, float64 on the device; None if that is not known without reading."""
        return None

    @property
    def device(self) -> torch.device:
        """Device of the computations."""
        return self.log_library_n1.device

    def batch(self, rows: Tensor) -> Batch:
        """Return a minibatch."""
        return Batch(self.read(rows), rows, self.log_library_n1[rows], self.covariates[rows])

    def assembled(self, rows: Tensor, x_ng: Tensor) -> Batch:
        """Return a minibatch whose dense counts are known, without reading any."""
        return Batch(Rows(rows, None, x_ng), rows, self.log_library_n1[rows], self.covariates[rows])

    def batches(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        """Yield the minibatches of some lists of rows.

        On a processor each stays as it is, because threads compute with several of them at a time. On a GPU each is valid until
        the next one is requested; that of counts that are not on the device is prepared while the device is at work.
        """
        if self.device.type == "cuda" and not self.on_device:
            return self.prefetched(parts)
        return map(self.batch, parts)

    def sparse_batches(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        """Yield the same minibatches for computations that need no dense counts, so none are prepared ahead."""
        return map(self.batch, parts)

    def prefetched(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        """Yield the same minibatches with dense counts, which are sent to the device ahead."""
        for rows, counts in prefetched(self.read, parts, self.n_genes, self.device):
            yield Batch(counts, rows, self.log_library_n1[rows], self.covariates[rows])

    def keep(self, rows: Tensor) -> None:  # noqa: B027 - counts in memory need nothing
        """Prepare for reading some cells again and again."""

    def load(self, rows: Tensor | None = None) -> Counts:
        """Return the counts of some cells (by default all) as one matrix in memory, on the device that reads them."""
        rows = torch.arange(len(self), device=self.device if self.on_device else "cpu") if rows is None else rows
        at, matrix = self.read(rows).stored
        return matrix.take(at)

    def sampler(self, rows: Tensor, n_minibatches: int, seed: int) -> Sampler:
        """Return the order in which a training visits ``rows``; by default it is shuffled anew for every epoch."""
        return Shuffled(rows, n_minibatches, seed)

    def take(self, rows: Tensor) -> Source:
        """Return some of the cells."""
        return Part(self, rows)

    def to(self, device: torch.device) -> Source:
        """Return the same data for computations on another device."""
        moved = copy.copy(self)
        # some sources are frozen
        object.__setattr__(moved, "log_library_n1", self.log_library_n1.to(device))
        object.__setattr__(moved, "covariates", self.covariates.to(device))
        return moved

    def with_library(self, log_library_n1: Tensor) -> Self:
        """Return the same cells with other libraries."""
        changed = copy.copy(self)
        object.__setattr__(changed, "log_library_n1", log_library_n1)
        return changed

    def with_covariates(self, covariates: Covariates) -> Self:
        """Return the same cells with other covariates."""
        changed = copy.copy(self)
        object.__setattr__(changed, "covariates", covariates)
        return changed


class Part(Source):
    """Some cells of another source, which still reads them."""

    def __init__(self, whole: Source, rows: Tensor) -> None:
        self.whole, self.rows = whole, rows
        self.log_library_n1, self.covariates = whole.log_library_n1[rows], whole.covariates[rows]
        self.in_memory = whole.in_memory

    @classmethod
    def of(cls, counts: Counts, log_library_n1: Tensor, covariates: Covariates, device: torch.device) -> Source:
        """Raise ``TypeError``: a part is taken of another source."""
        msg = "A part is made from another source, with its method take()."
        raise TypeError(msg)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.whole.n_genes

    def read(self, rows: Tensor) -> Rows:
        return self.whole.read(self.rows[rows])

    def to(self, device: torch.device) -> Source:
        moved = super().to(device)
        assert isinstance(moved, Part)  # noqa: S101 - a copy of itself
        moved.whole, moved.rows = self.whole.to(device), self.rows.to(device)
        return moved
