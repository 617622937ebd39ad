"""Encoder and decoder: conditional distributions as modules."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.likelihoods import LIKELIHOODS, Decoded, Likelihood

MIN_POSTERIOR_VARIANCE = 1e-4
# exp of it is far beyond any posterior and far from overflow
MAX_LOG_VARIANCE = 20.0


class Noise:
    """The one source of randomness of a model, apart from torch's global state."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def normal_like(self, x: Tensor) -> Tensor:
        """Standard normal draws with the shape of ``x``."""
        return torch.empty_like(x).normal_(generator=self.generator)

    def keep_mask(self, x: Tensor, keep: float) -> Tensor:
        """Ones with probability ``keep``, else zeros."""
        return torch.empty_like(x).bernoulli_(keep, generator=self.generator)


class MLP(nn.Module):
    """Hidden layers, linear - norm - ReLU - dropout, each seeing the condition vector again."""

    def __init__(self, n_in: int, n_condition: int, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        widths = [n_in] + [config.n_hidden] * config.n_layers
        self.linears = nn.ModuleList(nn.Linear(a + n_condition, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(_norm(config) for _ in self.linears)
        if config.norm == "batch" and not config.bias_before_norm:
            # batch norm takes these biases out again: their gradients are rounding noise, which Adam would blow up
            for linear in self.linears:
                linear.bias.requires_grad = False
        self.dropout = dropout

    def forward(self, x: Tensor, s_nc: Tensor | None, noise: Noise | None) -> Tensor:
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = F.relu(norm(linear(_join(x, s_nc))))
            if self.training and self.dropout > 0 and noise is not None:
                keep = 1.0 - self.dropout
                x = x * noise.keep_mask(x, keep) / keep
        return x


def _norm(config: ModelConfig) -> nn.Module:
    if config.norm == "batch":
        return nn.BatchNorm1d(config.n_hidden, momentum=config.norm_momentum, eps=config.norm_eps)
    if config.norm == "layer":
        return nn.LayerNorm(config.n_hidden, eps=config.norm_eps)
    return nn.Identity()


def _join(x: Tensor, s_nc: Tensor | None) -> Tensor:
    return x if s_nc is None else torch.cat((x, s_nc), dim=-1)


class Encoder(nn.Module):
    """Counts -> a diagonal normal law, of z or of the log library."""

    def __init__(self, config: ModelConfig, n_condition: int, n_out: int) -> None:
        super().__init__()
        self.body = MLP(config.n_genes, n_condition, config, config.dropout)
        self.mean = nn.Linear(config.n_hidden, n_out)
        self.log_variance = nn.Linear(config.n_hidden, n_out)

    def forward(self, log_x_ng: Tensor, s_nc: Tensor | None, noise: Noise | None) -> Normal:
        h_nh = self.body(log_x_ng, s_nc, noise)
        variance = self.log_variance(h_nh).clamp_max(MAX_LOG_VARIANCE).exp() + MIN_POSTERIOR_VARIANCE
        return Normal(self.mean(h_nh), variance.sqrt(), validate_args=False)


class Decoder(nn.Module):
    """(z, s, l) -> the law of the counts."""

    def __init__(self, config: ModelConfig, n_condition: int) -> None:
        super().__init__()
        self.law: type[Likelihood] = LIKELIHOODS[config.likelihood]
        self.dispersion = config.dispersion
        self.n_genes = config.n_genes
        self.condition_output = config.condition_output
        self.body = MLP(config.n_latent, n_condition, config, dropout=0.0)
        n_features = config.n_hidden + (n_condition if config.condition_output else 0)
        # the last output is the share of the molecules outside the modelled genes
        self.location = nn.Linear(n_features, config.n_genes + (config.remainder and self.law.composition))
        self.heads = nn.ModuleDict({name: nn.Linear(n_features, config.n_genes) for name in self.law.heads})
        if self.law.has_dispersion:
            if config.dispersion == "gene-cell":
                self.heads["dispersion"] = nn.Linear(n_features, config.n_genes)
            else:
                rows = {"gene": 1, "gene-batch": config.n_batches, "gene-label": config.n_labels}[config.dispersion]
                self.log_dispersion = nn.Parameter(torch.randn(rows, config.n_genes))
        self.readout = nn.Linear(n_features, config.n_readout) if config.n_readout else None

    def features(self, z_nd: Tensor, s_nc: Tensor | None, noise: Noise | None = None) -> Tensor:
        """What the output layers see, (n, features)."""
        h_nh = self.body(z_nd, s_nc, noise)
        return _join(h_nh, s_nc) if self.condition_output else h_nh

    def locate(self, f_nf: Tensor) -> tuple[Tensor, Tensor | None]:
        """Location of the modelled genes, and the log share of the remainder where there is one."""
        location = self.location(f_nf)
        if not self.law.composition:
            return location, None
        log_rho = F.log_softmax(location, dim=-1)
        if location.shape[-1] == self.n_genes:
            return log_rho, None
        return log_rho[:, : self.n_genes], log_rho[:, self.n_genes :]

    def forward(
        self,
        z_nd: Tensor,
        s_nc: Tensor | None,
        covariates: Covariates,
        log_library_n1: Tensor,
        noise: Noise | None = None,
    ) -> Likelihood:
        f_nf = self.features(z_nd, s_nc, noise)
        location_ng, _ = self.locate(f_nf)
        heads = {name: head(f_nf) for name, head in self.heads.items()}
        dispersion = heads.pop("dispersion", None)
        if self.law.has_dispersion and dispersion is None:
            dispersion = self._dispersion_of(covariates)
        return self.law.from_decoded(Decoded(location_ng, log_library_n1, dispersion, heads))

    def _dispersion_of(self, covariates: Covariates) -> Tensor:
        if self.dispersion == "gene-batch":
            return self.log_dispersion[covariates.categorical_nk[:, 0]]
        if self.dispersion == "gene-label":
            return self.log_dispersion[covariates.label_n]
        return self.log_dispersion
