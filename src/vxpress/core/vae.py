"""The model: q(z | x, s), p(z) and p(x | z, s, l) (Kingma & Welling 2014; Lopez et al. 2018)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from vxpress._signals import interrupts_held
from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Conditioner, Covariates
from vxpress.core.data import Batch, Cells
from vxpress.core.isolation import on_device, seeded
from vxpress.core.likelihoods import MIN_GAUSSIAN_VARIANCE, Likelihood, log_cp10k
from vxpress.core.networks import Decoder, Encoder, Noise
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors import PRIORS, Prior


class VAE(nn.Module):
    """A conditional variational autoencoder of counts.

    ``library_log_mean_b`` and ``library_log_var_b`` are the parameters of the log-normal prior of a latent library, one
    per batch. ``outside_share`` is the share of the readout's genes in the molecules outside the model, which may also
    come from genes that are not in the data. In a model without remainder it is their share in all molecules.
    """

    library_log_mean_b: Tensor
    library_log_var_b: Tensor
    outside_share: Tensor
    prior: Prior

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.conditioner = Conditioner(config)
        width = self.conditioner.width
        encoder_width = width if config.encode_covariates else 0
        self.encoder = Encoder(config, encoder_width, config.n_latent)
        self.library_encoder = Encoder(config, encoder_width, 1) if config.latent_library else None
        self.decoder = Decoder(config, width)
        self.prior = PRIORS[config.prior.name](config.prior, config.n_latent)
        self.prior.bind(self)
        if config.latent_library:
            self.register_buffer("library_log_mean_b", torch.zeros(config.n_batches))
            self.register_buffer("library_log_var_b", torch.ones(config.n_batches))
        if config.n_readout and self.decoder.likelihood.composition:
            self.register_buffer("outside_share", torch.zeros(()))

    def posterior(self, batch: Batch, noise: Noise | None = None) -> DiagonalNormal:
        """Return the posterior q(z | x, s)."""
        return self.encoder(batch, self._encoder_condition(batch.covariates), noise)

    def library_posterior(self, batch: Batch, noise: Noise | None = None) -> DiagonalNormal:
        """Return the posterior q(log l | x, s), (n, 1), of a model with a latent library."""
        if self.library_encoder is None:
            msg = "This model has an observed library size, so there is no posterior of the library."
            raise RuntimeError(msg)
        return self.library_encoder(batch, self._encoder_condition(batch.covariates), noise)

    def library_prior(self, covariates: Covariates) -> tuple[Tensor, Tensor]:
        """Return the prior mean and variance of log l per cell, each (n, 1)."""
        code = (
            covariates.categorical_nk[:, 0]
            if self.config.has_batch
            else torch.zeros(len(covariates.continuous_nc), dtype=torch.int64, device=self.library_log_mean_b.device)
        )
        return self.library_log_mean_b[code][:, None], self.library_log_var_b[code][:, None]

    def likelihood(
        self, z_nd: Tensor, covariates: Covariates, log_library_n1: Tensor, noise: Noise | None = None
    ) -> Likelihood:
        """Return the distribution p(x | z, s, l)."""
        return self.decoder(z_nd, self.conditioner(covariates), covariates, log_library_n1, noise)

    def log_likelihood(self, z_nd: Tensor, batch: Batch, log_library_n1: Tensor, noise: Noise | None = None) -> Tensor:
        """Compute log p(x | z, s, l) of a minibatch, summed over genes, (n,)."""
        return self.decoder.log_likelihood(z_nd, self.conditioner(batch.covariates), batch, log_library_n1, noise)

    def _encoder_condition(self, covariates: Covariates) -> Tensor | None:
        return self.conditioner(covariates) if self.config.encode_covariates else None

    @torch.no_grad()
    def start_from(self, cells: Cells, rows: Tensor) -> None:
        """Initialise the decoder at the mean profile of the data, with a moderate dispersion if the likelihood has one.

        Otherwise the decoder would spend a large share of its steps on learning the mean profile.
        """
        counts, library = cells.counts, cells.log_library_n1[rows].exp().double()
        sums_g = counts.gene_sums(rows)
        distribution = self.decoder.likelihood
        if not distribution.composition:
            _start_gaussian(self, cells, rows)
            return
        # a gene without molecules gets the share of half a molecule
        profile = (sums_g.clamp_min(0.5) / library.sum()).float()
        bias = profile.log()
        if self.config.remainder:
            rest = 1.0 - float(sums_g.sum() / library.sum())
            bias = torch.cat((bias, torch.tensor([max(rest, 1e-3)], device=bias.device).log()))
        self.decoder.location.bias.copy_(bias)
        self.decoder.location.weight.mul_(0.1)
        if hasattr(self.decoder, "log_dispersion"):
            self.decoder.log_dispersion.fill_(0.0)
        for name, start in (("gate", -3.0), ("dispersion", 0.0)):
            if name in self.decoder.heads:
                head = cast("nn.Linear", self.decoder.heads[name])
                head.bias.fill_(start)
                head.weight.mul_(0.1)


def _start_gaussian(model: VAE, cells: Cells, rows: Tensor) -> None:
    """Initialise at mean and variance of log1p(1e4 x / l) per gene, over 4,096 to 8,191 cells if there are more."""
    some = rows[:: max(1, len(rows) // 4096)]
    batch = cells.batch(some)
    y_ng = log_cp10k(batch.x_ng, batch.log_library_n1.exp())
    model.decoder.location.bias.copy_(y_ng.mean(0))
    model.decoder.location.weight.mul_(0.1)
    if hasattr(model.decoder, "log_dispersion"):
        above_floor = (y_ng.var(0) - MIN_GAUSSIAN_VARIANCE).clamp_min(1e-4)
        model.decoder.log_dispersion.copy_(above_floor.log().expand_as(model.decoder.log_dispersion))


def build(config: ModelConfig, seed: int) -> VAE:
    """Build a newly initialised model from a seed; no global random state is read or changed."""
    with interrupts_held(), seeded(seed):
        return VAE(config)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight of such a model, without allocating them."""
    # seeded, because some modules draw random numbers on the CPU even on the meta device;
    # interrupts are held, because a Ctrl-C on entry or exit could leave torch creating meta tensors in this process
    with interrupts_held(), seeded(0), on_device("meta"):
        return {name: tuple(value.shape) for name, value in VAE(config).state_dict().items()}
