"""The log library size of a cell as a latent variable (Lopez et al. 2018)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vxpress.core.blocks.base import DecoderInputs, NormalBlock, weighted_mean
from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Source

# least variance of the prior of a batch, whose cells may all have the same size factor
MIN_VARIANCE = 1e-3


class Library(NormalBlock):
    """The log library size, with a log-normal prior for each batch: ``log_mean_b`` and ``log_var_b``."""

    name = "library"
    infers_library = True
    log_mean_b: Tensor
    log_var_b: Tensor

    @classmethod
    def applies(cls, config: ModelConfig) -> bool:
        return config.latent_library

    @classmethod
    def recorded_as(cls) -> None:
        return None

    def add_prior(self) -> None:
        self.register_buffer("log_mean_b", torch.zeros(self.config.n_batches))
        self.register_buffer("log_var_b", torch.ones(self.config.n_batches))

    def prior(self, covariates: Covariates) -> tuple[Tensor, Tensor]:
        """Return the prior mean and variance of log l per cell, each (n, 1)."""
        code = self._batch_n(covariates)
        return self.log_mean_b[code][:, None], self.log_var_b[code][:, None]

    def _batch_n(self, covariates: Covariates) -> Tensor:
        if self.config.has_batch:
            return covariates.categorical_nk[:, 0]
        return torch.zeros(len(covariates.continuous_nc), dtype=torch.int64, device=self.log_mean_b.device)

    @torch.no_grad()
    def start_from(self, source: Source, rows: Tensor, generator: torch.Generator) -> None:
        """Set mean and variance of the log size factors of each batch."""
        log_library_n, code = source.log_library_n1[rows, 0], self._batch_n(source.covariates[rows])
        for b in range(self.config.n_batches):
            values = log_library_n[code == b]
            values = values if len(values) > 1 else log_library_n
            self.log_mean_b[b] = values.mean()
            self.log_var_b[b] = values.var().clamp_min(MIN_VARIANCE)

    def enter(self, inputs: DecoderInputs, value: Tensor) -> DecoderInputs:
        return replace(inputs, log_library_n1=value)

    def with_batches(self, name: str, n_rows: int, share_b: Tensor) -> Tensor:
        """Give new batches the moments of the mixture of the known ones."""
        if name != "log_var_b":
            return super().with_batches(name, n_rows, share_b)
        means = self.log_mean_b
        between = weighted_mean((means - weighted_mean(means, share_b)) ** 2, share_b)
        variance = weighted_mean(self.log_var_b, share_b) + between
        return torch.cat((self.log_var_b, variance.expand(n_rows - len(self.log_var_b))))
