"""Cells whose counts are in the memory of the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from vxpress.core.covariates import Covariates
from vxpress.core.data.batch import Rows
from vxpress.core.data.counts import Counts
from vxpress.core.data.source import Source


@dataclass(frozen=True)
class Cells(Source):
    """Counts, log library (n, 1) and covariates of some cells, all on one device."""

    counts: Counts
    log_library_n1: Tensor
    covariates: Covariates

    on_device: ClassVar[bool] = True

    @classmethod
    def of(cls, counts: Counts, log_library_n1: Tensor, covariates: Covariates, device: torch.device) -> Self:
        """Return the cells on ``device``."""
        return cls(counts, log_library_n1, covariates).to(device)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.counts.n_genes

    @property
    def sums_g(self) -> Tensor:
        """Sum of the counts of each gene over all cells, float64."""
        return self.counts.sums_g

    def read(self, rows: Tensor) -> Rows:
        """Return the counts of some rows: their numbers in the matrix of all cells."""
        return Rows(rows, self.counts)

    def load(self, rows: Tensor | None = None) -> Counts:
        return self.counts if rows is None else self.counts.take(rows)

    def take(self, rows: Tensor) -> Self:
        """Return a copy of some of the cells."""
        return replace(
            self,
            counts=self.counts.take(rows),
            log_library_n1=self.log_library_n1[rows],
            covariates=self.covariates[rows],
        )

    def to(self, device: torch.device) -> Self:
        """Return the same data on another device."""
        return replace(
            self,
            counts=self.counts.to(device),
            log_library_n1=self.log_library_n1.to(device),
            covariates=self.covariates.to(device),
        )
