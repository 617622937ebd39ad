"""Cells whose counts stay on the host: minibatches are assembled there and sent to the device."""

from __future__ import annotations

import torch
from torch import Tensor

from vxpress.core.covariates import Covariates
from vxpress.core.data.batch import Rows
from vxpress.core.data.counts import Counts
from vxpress.core.data.source import Source


class Streamed(Source):
    """Counts on the host of computations on another device."""

    def __init__(self, counts: Counts, log_library_n1: Tensor, covariates: Covariates, device: torch.device) -> None:
        self.counts = counts
        self.log_library_n1, self.covariates = log_library_n1.to(device), covariates.to(device)

    @classmethod
    def of(cls, counts: Counts, log_library_n1: Tensor, covariates: Covariates, device: torch.device) -> Streamed:
        """Return the cells with everything except the counts on ``device``."""
        return cls(counts, log_library_n1, covariates, device)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.counts.n_genes

    def read(self, rows: Tensor) -> Rows:
        return Rows(rows.cpu(), self.counts)
