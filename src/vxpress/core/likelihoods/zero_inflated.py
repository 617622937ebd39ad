"""Counts with additional zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from vxpress.core.likelihoods.base import Decoded, Likelihood
from vxpress.core.likelihoods.negative_binomial import NegativeBinomial


class ZeroInflated(Likelihood):
    """A count distribution with additional zeros: a count is set to zero with probability sigmoid(gate_logits)."""

    # few additional zeros at the start
    heads: ClassVar[Mapping[str, float]] = {"gate": -3.0}
    support = constraints.nonnegative_integer

    def __init__(self, base: Likelihood, gate_logits: Tensor) -> None:
        self.base = base
        self.gate_logits = gate_logits
        # numpy's, because that of torch imports its compiler
        super().__init__(torch.Size(np.broadcast_shapes(base.batch_shape, gate_logits.shape)))

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(-self.gate_logits) * self.base.mean

    @property
    def variance(self) -> Tensor:
        open_, gate = torch.sigmoid(-self.gate_logits), torch.sigmoid(self.gate_logits)
        return open_ * (self.base.variance + gate * self.base.mean.square())

    @property
    def zero_probability(self) -> Tensor:
        return torch.sigmoid(self.gate_logits) + torch.sigmoid(-self.gate_logits) * self.base.zero_probability

    @property
    def log_rate(self) -> Tensor:
        return self.base.log_rate

    def expected_log1p(self, log_library_n1: Tensor) -> Tensor:
        return torch.sigmoid(-self.gate_logits) * self.base.expected_log1p(log_library_n1)

    def expected_scaled_log1p(self, scale_n1: Tensor) -> Tensor:
        return torch.sigmoid(-self.gate_logits) * self.base.expected_scaled_log1p(scale_n1)

    def at(self, *index: Tensor | slice) -> ZeroInflated:
        return ZeroInflated(self.base.at(*index), self.gate_logits.expand(self.batch_shape)[index])

    def steps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        gate, (below, upto) = self.gate_logits.double(), self.base.steps(value)
        closed, open_ = torch.sigmoid(gate), torch.sigmoid(-gate)
        return torch.where(value > 0, closed + open_ * below, 0.0), torch.where(value < 0, 0.0, closed + open_ * upto)

    def log_prob(self, value: Tensor) -> Tensor:
        base = self.base.log_prob(value) + F.logsigmoid(-self.gate_logits)
        at_zero = torch.logaddexp(F.logsigmoid(self.gate_logits), base)
        return torch.where(value == 0, at_zero, base)

    def draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        x = self.base.draw(shape, generator)
        uniform = torch.rand(shape, generator=generator, dtype=x.dtype, device=x.device)
        return torch.where(uniform < torch.sigmoid(self.gate_logits), 0.0, x)


class ZeroInflatedNegativeBinomial(ZeroInflated):
    """Zero-inflated negative binomial (ZINB), with one dropout logit per cell and gene."""

    has_dispersion = True

    @classmethod
    def overdispersion(cls, log_dispersion: Tensor) -> Tensor:
        return NegativeBinomial.overdispersion(log_dispersion)

    @classmethod
    def from_decoded(cls, decoded: Decoded) -> ZeroInflatedNegativeBinomial:
        return cls(NegativeBinomial.from_decoded(decoded), decoded.heads["gate"])
