"""z, the state of a cell: the block that every model has."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vxpress._keys import Keys
from vxpress.core.blocks.base import Block, DecoderInputs
from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Source
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors import PRIORS, Prior


class State(Block):
    """The latent position z of a cell, whose prior can be learned."""

    name = "z"
    weighted = True
    thinned = True
    prior: Prior

    @classmethod
    def columns(cls, config: ModelConfig) -> int:
        return config.n_latent

    @classmethod
    def applies(cls, config: ModelConfig) -> bool:
        return True

    @classmethod
    def recorded_as(cls) -> str:
        return "kl"

    @property
    def analytic(self) -> bool:
        return self.prior.analytic

    def add_prior(self) -> None:
        config = self.config
        self.prior = PRIORS[config.prior.name](config.prior, config.n_latent, config.n_genes)

    def log_prior(self, value: Tensor, covariates: Covariates) -> Tensor:
        return self.prior.log_prob(value)

    def kl(self, q: DiagonalNormal, value: Tensor, covariates: Covariates) -> Tensor:
        return self.prior.kl(q, value)

    def start_from(self, source: Source, rows: Tensor, generator: torch.Generator) -> None:
        self.prior.start_from(lambda some: source.batch(some).x_ng.log1p(), rows, generator)

    def enter(self, inputs: DecoderInputs, value: Tensor) -> DecoderInputs:
        return replace(inputs, z_nd=value)

    def moments(self, keys: Keys) -> tuple[str, str]:
        return keys.latent, keys.latent_var
