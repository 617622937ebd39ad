"""Encoder and decoder: conditional distributions as modules."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vxpress.core.config import ModelConfig
from vxpress.core.counts import Batch
from vxpress.core.covariates import Covariates
from vxpress.core.kernels import rule
from vxpress.core.likelihoods import LIKELIHOODS, Decoded, Likelihood
from vxpress.core.priors import DiagonalNormal

if TYPE_CHECKING:
    from vxpress.core.kernels.count_likelihood import OutputLayers

MIN_POSTERIOR_VARIANCE = 1e-4
# exp of it is far beyond any posterior and far from overflow
MAX_LOG_VARIANCE = 20.0
BITS = 1 << 16
NO_BITS = np.empty((0, 0), np.uint16)


class Noise:
    """The one source of randomness of a model, apart from torch's global state."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.generator = torch.Generator(device=device).manual_seed(seed)
        # for masks on a CPU, where torch draws Bernoulli numbers one by one
        self._bits = np.random.SFC64(seed) if torch.device(device).type == "cpu" else None

    def normal_like(self, x: Tensor) -> Tensor:
        """Standard normal draws with the shape of ``x``."""
        return torch.empty_like(x).normal_(generator=self.generator)

    def bits(self, n: int, width: int) -> np.ndarray:
        """Uniform 16-bit numbers (n, width), on a CPU."""
        assert self._bits is not None  # noqa: S101 - callers ask on a CPU only
        return self._bits.random_raw(-(-n * width // 4)).view(np.uint16)[: n * width].reshape(n, width)

    def dropout_bits(self, x: Tensor, share: float) -> tuple[np.ndarray, int]:
        """16-bit numbers shaped like ``x`` and the limit below which a unit is kept; no rows where none is dropped."""
        limit = keep_limit(1.0 - share)
        return (self.bits(*x.shape) if limit < BITS else NO_BITS), limit

    def dropout(self, x: Tensor, keep: float) -> Tensor:
        """Factors for ``x`` (n, width): 0, or with probability ``keep`` its inverse (to 1 / 65,536 on a CPU)."""
        if self._bits is None:
            return torch.empty_like(x).bernoulli_(keep, generator=self.generator).div_(keep)
        kept = self.bits(*x.shape) < keep_limit(keep)
        return torch.from_numpy(kept).to(x.dtype).mul_(BITS / keep_limit(keep))


def keep_limit(keep: float) -> int:
    """16-bit numbers below it are kept."""
    return round(keep * BITS)


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
        return self.after_first(self.linears[0](_join(x, s_nc)), s_nc, noise)

    def after_first(self, x: Tensor, s_nc: Tensor | None, noise: Noise | None) -> Tensor:
        """The rest of the way, from the first linear map's output."""
        for i, norm in enumerate(self.norms):
            if i > 0:
                x = self.linears[i](_join(x, s_nc))
            keep = 1.0 - self.dropout if self.training and noise is not None else 1.0
            if rule.compiled_hidden(
                x.device, x.dtype, batch_norm=isinstance(norm, nn.BatchNorm1d), training=self.training
            ):
                from vxpress.core.kernels.hidden_layer import norm_relu_dropout

                bits, limit = (NO_BITS, BITS) if noise is None else noise.dropout_bits(x, self.dropout)
                x = norm_relu_dropout(x, cast("nn.BatchNorm1d", norm), bits, limit)
                continue
            x = F.relu(norm(x))
            if noise is not None and keep < 1.0:
                x = x * noise.dropout(x, keep)
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
        first = cast("nn.Linear", self.body.linears[0])
        # one gene's weights side by side, as sparse counts read them
        first.weight = nn.Parameter(first.weight.detach().t().contiguous().t())
        self.mean = nn.Linear(config.n_hidden, n_out)
        self.log_variance = nn.Linear(config.n_hidden, n_out)

    def first_product(self, batch: Batch, s_nc: Tensor | None) -> Tensor:
        """The first linear map of log1p counts and condition, (n, hidden)."""
        first = cast("nn.Linear", self.body.linears[0])
        if not rule.sparse_input(first.weight.device, first.weight.dtype):
            log_x_ng = batch.x_ng.to(first.weight.dtype).log1p()
            return cast("Tensor", first(_join(log_x_ng, s_nc)))
        from vxpress.core.kernels.input_layer import input_product

        return input_product(batch, first.weight, first.bias, s_nc)

    def forward(self, batch: Batch, s_nc: Tensor | None, noise: Noise | None) -> DiagonalNormal:
        return self.after_first(self.first_product(batch, s_nc), s_nc, noise)

    def after_first(self, first_nh: Tensor, s_nc: Tensor | None, noise: Noise | None = None) -> DiagonalNormal:
        """The rest of the way, from :meth:`first_product`."""
        h_nh = self.body.after_first(first_nh, s_nc, noise)
        variance = self.log_variance(h_nh).clamp_max(MAX_LOG_VARIANCE).exp() + MIN_POSTERIOR_VARIANCE
        return DiagonalNormal(self.mean(h_nh), variance.sqrt())


class Decoder(nn.Module):
    """(z, s, l) -> the law of the counts."""

    def __init__(self, config: ModelConfig, n_condition: int) -> None:
        super().__init__()
        self.law: type[Likelihood] = LIKELIHOODS[config.likelihood]
        self.law_name = config.likelihood
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
            dispersion = self.dispersion_of(covariates)
        return self.law.from_decoded(Decoded(location_ng, log_library_n1, dispersion, heads))

    def log_likelihood(
        self, z_nd: Tensor, s_nc: Tensor | None, batch: Batch, log_library_n1: Tensor, noise: Noise | None = None
    ) -> Tensor:
        """Log p(x | z, s, l) per cell, (n,): as ``forward(...).log_prob(x).sum(-1)``, compiled where that is faster."""
        if self.compiled_likelihood(z_nd):
            from vxpress.core.kernels.count_likelihood import count_log_likelihood

            f_nf = self.features(z_nd, s_nc, noise)
            return count_log_likelihood(
                f_nf, self.output_layers(batch.covariates), log_library_n1, batch, training=self.training
            )
        if rule.dense_likelihood(self.law_name, z_nd.device):
            return self._dense_log_likelihood(self.features(z_nd, s_nc, noise), batch, log_library_n1)
        law = self(z_nd, s_nc, batch.covariates, log_library_n1, noise)
        return cast("Tensor", law.log_prob(batch.x_ng).sum(-1))

    def _dense_log_likelihood(self, f_nf: Tensor, batch: Batch, log_library_n1: Tensor) -> Tensor:
        from vxpress.core.kernels.dense_likelihood import dense_log_likelihood

        heads = {name: head(f_nf) for name, head in self.heads.items()}
        log_theta = heads["dispersion"] if "dispersion" in heads else self.dispersion_of(batch.covariates)
        return dense_log_likelihood(self.location(f_nf), log_library_n1, log_theta, heads.get("gate"), batch.x_ng)

    def compiled_likelihood(self, like: Tensor) -> bool:
        """Whether tensors such as this one go through the compiled likelihood."""
        return rule.compiled_likelihood(self.law_name, self.dispersion, like.device, like.dtype)

    def output_layers(self, covariates: Covariates) -> OutputLayers:
        """What the compiled likelihood takes."""
        from vxpress.core.kernels.count_likelihood import OutputLayers

        gate = cast("nn.Linear", self.heads["gate"]) if "gate" in self.heads else None
        weight, bias = self.location.weight, self.location.bias
        rows = self._dispersion_row(covariates)
        if gate is None:
            return OutputLayers(weight, bias, self.log_dispersion, rows)
        return OutputLayers(weight, bias, self.log_dispersion, rows, gate.weight, gate.bias)

    def _dispersion_row(self, covariates: Covariates) -> Tensor:
        """The row of the dispersion that each cell uses, (n,)."""
        if self.dispersion == "gene-batch":
            return covariates.categorical_nk[:, 0]
        if self.dispersion == "gene-label":
            return cast("Tensor", covariates.label_n)
        return torch.zeros(len(covariates.continuous_nc), dtype=torch.int64)

    def dispersion_of(self, covariates: Covariates) -> Tensor:
        """Log theta of a law whose dispersion does not depend on z, broadcastable to cells x genes."""
        if self.dispersion == "gene-batch":
            return self.log_dispersion[covariates.categorical_nk[:, 0]]
        if self.dispersion == "gene-label":
            return self.log_dispersion[covariates.label_n]
        return self.log_dispersion
