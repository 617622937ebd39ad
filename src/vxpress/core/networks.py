"""The encoder and the decoder: modules that return conditional distributions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from vxpress.core import rule
from vxpress.core.bodies import DECODERS, MLP, join
from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Batch
from vxpress.core.likelihoods import (
    LIKELIHOODS,
    Decoded,
    Layers,
    Likelihood,
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
)
from vxpress.core.noise import Noise
from vxpress.core.normal import DiagonalNormal

if TYPE_CHECKING:
    from vxpress.core.kernels.count_likelihood import OutputLayers

MIN_POSTERIOR_VARIANCE = 1e-4
# its exp is far above the variance of any posterior and far below overflow
MAX_LOG_VARIANCE = 20.0


# names of likelihoods in :mod:`vxpress.core.rule`
COMPILED: dict[type[Likelihood], str] = {NegativeBinomial: "nb", ZeroInflatedNegativeBinomial: "zinb"}


class Encoder(nn.Module):
    """Map counts to a diagonal normal distribution of z or of the log library size.

    With optional covariates, the condition also shifts the mean, by ``shift`` (out, condition): with the categories shown,
    this takes out of the mean what it has to hold where they are hidden.
    """

    shift: nn.Parameter | None

    def __init__(self, config: ModelConfig, n_condition: int, n_out: int) -> None:
        super().__init__()
        self.body = MLP(config.n_genes, n_condition, config, config.dropout)
        first = self.first
        # weights of one gene are adjacent in memory, the order in which sparse counts read them
        first.weight = nn.Parameter(first.weight.detach().t().contiguous().t())
        self.mean = nn.Linear(config.n_hidden, n_out)
        self.log_variance = nn.Linear(config.n_hidden, n_out)
        self.register_parameter("shift", nn.Parameter(torch.zeros(n_out, n_condition)) if config.optional else None)

    @property
    def first(self) -> nn.Linear:
        """The first linear layer; its columns are the genes and then the condition."""
        return cast("nn.Linear", self.body.linears[0])

    def first_product(self, batch: Batch, s_nc: Tensor | None) -> Tensor:
        """Apply the first linear layer to log1p counts and condition, (n, hidden)."""
        first = self.first
        if batch.log_x_ng is not None:
            return self.product_of(batch.log_x_ng.to(first.weight.dtype), s_nc)
        if not rule.sparse_input(first.weight.device, first.weight.dtype):
            return self.product_of(batch.x_ng.to(first.weight.dtype).log1p(), s_nc)
        from vxpress.core.kernels.input_layer import input_product

        return input_product(batch, first.weight, first.bias, s_nc)

    def product_of(self, log_x_ng: Tensor, s_nc: Tensor | None) -> Tensor:
        """Apply the first linear layer to given log1p counts and condition, (n, hidden)."""
        return cast("Tensor", self.first(join(log_x_ng, s_nc)))

    def gene_weights(self, genes: Tensor) -> Tensor:
        """Return the weights of some genes in the first linear layer, (genes, hidden)."""
        return self.first.weight.detach().t()[genes]

    def conditioned(self) -> Iterator[str]:
        """Yield the names of the weights whose last columns belong to the condition vector, if it is encoded."""
        yield from (f"body.{name}" for name in self.body.conditioned())
        if self.shift is not None:
            yield "shift"

    def forward(self, batch: Batch, s_nc: Tensor | None, noise: Noise | None) -> DiagonalNormal:
        return self.after_first(self.first_product(batch, s_nc), s_nc, noise)

    def after_first(self, first_nh: Tensor, s_nc: Tensor | None, noise: Noise | None = None) -> DiagonalNormal:
        """Apply the remaining layers to the output of :meth:`first_product`."""
        h_nh = self.body.after_first(first_nh, s_nc, noise)
        variance = self.log_variance(h_nh).clamp_max(MAX_LOG_VARIANCE).exp() + MIN_POSTERIOR_VARIANCE
        mean = self.mean(h_nh)
        if self.shift is not None and s_nc is not None:
            mean = mean + s_nc @ self.shift.t()
        return DiagonalNormal(mean, variance.sqrt())


class FilledEncoder:
    """An encoder for some cells in which the genes ``missing_g`` are zero; it receives their log1p counts, (n, m)."""

    def __init__(self, encoder: Encoder, batch: Batch, s_nc: Tensor | None, missing_g: Tensor) -> None:
        self.encoder, self.s_nc = encoder, s_nc
        self.first_nh, self.weight_mh = encoder.first_product(batch, s_nc), encoder.gene_weights(missing_g)

    def product(self, log_x_nm: Tensor) -> Tensor:
        """Compute what the missing genes add to the first layer, (n, hidden)."""
        return log_x_nm @ self.weight_mh

    def __call__(self, log_x_nm: Tensor) -> DiagonalNormal:
        return self.encoder.after_first(self.first_nh + self.product(log_x_nm), self.s_nc)


class Decoder(nn.Module):
    """Map (z, s, l) to the distribution of the counts."""

    def __init__(self, config: ModelConfig, n_condition: int) -> None:
        super().__init__()
        self.n_body_condition = n_condition - config.n_perturbations
        self.likelihood: type[Likelihood] = LIKELIHOODS[config.likelihood]
        self.output = self.likelihood.output
        # only these have compiled code; a class that replaces one of them under its name does not
        self.likelihood_name = COMPILED.get(self.likelihood, "")
        self.dispersion = config.dispersion
        self.n_genes = config.n_genes
        DECODERS.check(config.decoder)
        self.body = DECODERS[config.decoder](config, self.n_body_condition)
        if not isinstance(getattr(self.body, "n_features", None), int):
            name = type(self.body).__name__
            msg = f"The decoder {config.decoder!r}: {name}.__init__ does not set self.n_features, the number of values that forward returns for each cell."
            raise TypeError(msg)
        # if the body does not receive the covariates, they can enter only here
        self.condition_output = config.condition_output or not self.body.receives_condition
        n_features = self.body.n_features + (n_condition if self.condition_output else 0)
        # with a remainder, the last output is the share of the molecules outside the modelled genes
        self.location = nn.Linear(n_features, self.output.width(config.n_genes, remainder=config.remainder))
        self.heads = nn.ModuleDict({name: nn.Linear(n_features, config.n_genes) for name in self.likelihood.heads})
        if self.likelihood.has_dispersion:
            if config.dispersion == "gene-cell":
                self.heads["dispersion"] = nn.Linear(n_features, config.n_genes)
            else:
                rows = {"gene": 1, "gene-batch": config.n_batches, "gene-label": config.n_labels}[config.dispersion]
                self.log_dispersion = nn.Parameter(torch.randn(rows, config.n_genes))
        self.readout = nn.Linear(n_features, config.n_readout) if config.n_readout else None

    def features(self, z_nd: Tensor, s_nc: Tensor | None, noise: Noise | None = None) -> Tensor:
        """Return the input of the output layers, (n, features)."""
        h_nh = self.body(z_nd, self.body_condition(s_nc), noise)
        return join(h_nh, s_nc) if self.condition_output else cast("Tensor", h_nh)

    def body_condition(self, s_nc: Tensor | None) -> Tensor | None:
        """Return the part of the condition vector that the body receives: not the perturbations, whose effects add up."""
        if s_nc is None or s_nc.shape[-1] == self.n_body_condition:
            return s_nc
        return s_nc[..., : self.n_body_condition] if self.n_body_condition else None

    def conditioned(self) -> Iterator[str]:
        """Yield the names of the weights whose last columns belong to the condition vector, or to its part of the body."""
        yield from (f"body.{name}" for name in self.body.conditioned())
        if self.condition_output:
            yield from (f"{name}.weight" for name in ("location", "readout", *(f"heads.{h}" for h in self.heads)))

    def layers(self, kept: Mapping[str, Tensor], *, anchored: bool = False) -> Layers:
        """Return the output layers with the tensors that the output keeps, as the output needs them."""
        heads = {name: cast("nn.Linear", head) for name, head in self.heads.items()}
        log_dispersion = getattr(self, "log_dispersion", None)
        return Layers(self.n_genes, self.location, heads, log_dispersion, self.readout, kept, anchored)

    def locate(self, f_nf: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the location of the modelled genes, and the log share of the remainder if there is one."""
        return self.output.locate(self.location(f_nf), self.n_genes)

    def forward(
        self,
        z_nd: Tensor,
        s_nc: Tensor | None,
        covariates: Covariates,
        log_library_n1: Tensor,
        noise: Noise | None = None,
        *,
        measured_ng: Tensor | None = None,
    ) -> Likelihood:
        f_nf = self.features(z_nd, s_nc, noise)
        location = self.location(f_nf)
        if measured_ng is not None:
            log_library_n1 = log_library_n1 - self.output.log_counted(location, measured_ng)
        location_ng, _ = self.output.locate(location, self.n_genes)
        heads = {name: head(f_nf) for name, head in self.heads.items()}
        dispersion = heads.pop("dispersion", None)
        if self.likelihood.has_dispersion and dispersion is None:
            dispersion = self.dispersion_of(covariates)
        return self.likelihood.from_decoded(Decoded(location_ng, log_library_n1, dispersion, heads))

    def log_likelihood(
        self,
        z_nd: Tensor,
        s_nc: Tensor | None,
        batch: Batch,
        log_library_n1: Tensor,
        noise: Noise | None = None,
        *,
        measured_ng: Tensor | None = None,
    ) -> Tensor:
        """Compute log p(x | z, s, l) per cell, (n,).

        Same as ``forward(...).log_prob(x).sum(-1)``, in compiled code where that is faster. With ``measured_ng``, bool (n, g), it is
        that of the measured genes, whose molecules the library counts.
        """
        if measured_ng is not None:
            distribution = self(z_nd, s_nc, batch.covariates, log_library_n1, noise, measured_ng=measured_ng)
            return torch.where(measured_ng, distribution.log_prob(batch.x_ng), 0.0).sum(-1)
        if self.compiled_likelihood(z_nd):
            from vxpress.core.kernels.count_likelihood import count_log_likelihood

            f_nf = self.features(z_nd, s_nc, noise)
            return count_log_likelihood(
                f_nf, self.output_layers(batch.covariates), log_library_n1, batch, training=self.training
            )
        if rule.dense_likelihood(self.likelihood_name, z_nd.device):
            return self._dense_log_likelihood(self.features(z_nd, s_nc, noise), batch, log_library_n1)
        distribution = self(z_nd, s_nc, batch.covariates, log_library_n1, noise)
        return cast("Tensor", distribution.log_prob(batch.x_ng).sum(-1))

    def _dense_log_likelihood(self, f_nf: Tensor, batch: Batch, log_library_n1: Tensor) -> Tensor:
        from vxpress.core.kernels.dense_likelihood import dense_log_likelihood

        heads = {name: head(f_nf) for name, head in self.heads.items()}
        log_theta = heads["dispersion"] if "dispersion" in heads else self.dispersion_of(batch.covariates)
        entries = batch.entries() if f_nf.device.type == "cpu" else None
        return dense_log_likelihood(
            self.location(f_nf), log_library_n1, log_theta, heads.get("gate"), batch.x_ng, entries
        )

    def dispersion_gradient(
        self,
        z_nd: Tensor,
        s_nc: Tensor | None,
        batch: Batch,
        log_library_n1: Tensor,
        *,
        measured_ng: Tensor | None = None,
        keep: bool = False,
    ) -> Callable[[], Tensor]:
        """Return a function that differentiates the summed log p(x | z, s, l) with respect to the log dispersions.

        It does so at the present dispersions; everything else may not change in between. Its result is (rows, genes). With
        ``keep``, it may keep arrays of cells x genes, see :meth:`kept_entries`.
        """
        if measured_ng is None and self.compiled_likelihood(z_nd):
            from vxpress.core.kernels.count_likelihood import DispersionGradient

            with torch.no_grad():
                f_nf = self.features(z_nd, s_nc)
            return DispersionGradient(f_nf, self.output_layers(batch.covariates), log_library_n1, batch, keep=keep)

        def differentiated() -> Tensor:
            with torch.enable_grad():
                total = self.log_likelihood(z_nd, s_nc, batch, log_library_n1, measured_ng=measured_ng).sum()
            return torch.autograd.grad(total, self.log_dispersion)[0]

        return differentiated

    def kept_entries(self, n: int) -> int:
        """Return the number of float32 that :meth:`dispersion_gradient` keeps for ``n`` cells."""
        return n * (
            self.location.out_features + sum(cast("nn.Linear", head).out_features for head in self.heads.values())
        )

    def compiled_likelihood(self, like: Tensor) -> bool:
        """Whether the compiled likelihood is used for tensors of this device and dtype."""
        return rule.compiled_likelihood(self.likelihood_name, self.dispersion, like.device, like.dtype)

    def output_layers(self, covariates: Covariates) -> OutputLayers:
        """Collect the arguments of the compiled likelihood."""
        from vxpress.core.kernels.count_likelihood import OutputLayers

        gate = cast("nn.Linear", self.heads["gate"]) if "gate" in self.heads else None
        weight, bias = self.location.weight, self.location.bias
        rows = self.dispersion_row(covariates)
        if gate is None:
            return OutputLayers(weight, bias, self.log_dispersion, rows)
        return OutputLayers(weight, bias, self.log_dispersion, rows, gate.weight, gate.bias)

    def dispersion_row(self, covariates: Covariates) -> Tensor:
        """Return the row of the dispersion that each cell uses, (n,)."""
        if self.dispersion == "gene-batch":
            return covariates.categorical_nk[:, 0]
        if self.dispersion == "gene-label":
            return cast("Tensor", covariates.label_n)
        return torch.zeros(len(covariates.continuous_nc), dtype=torch.int64)

    def dispersion_of(self, covariates: Covariates) -> Tensor:
        """Return log theta where the dispersion does not depend on z, broadcastable to cells x genes."""
        if self.dispersion == "gene":
            return self.log_dispersion
        return self.log_dispersion[self.dispersion_row(covariates)]
