"""The model: q(z | x, s), p(z) and p(x | z, s, l) (Kingma & Welling 2014; Lopez et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vxpress._signals import interrupts_held
from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Conditioner, Covariates
from vxpress.core.data import Batch, Source
from vxpress.core.isolation import on_device, seeded
from vxpress.core.likelihoods import Layers, Likelihood
from vxpress.core.networks import Decoder, Encoder, Noise
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors import PRIORS, Prior


class VAE(nn.Module):
    """A conditional variational autoencoder of counts.

    ``library_log_mean_b`` and ``library_log_var_b`` are the parameters of the log-normal prior of a latent library, one
    per batch. Further buffers are those that the output of the likelihood keeps, such as ``outside_share``, see
    :class:`vxpress.core.likelihoods.shares.Shares`.
    """

    library_log_mean_b: Tensor
    library_log_var_b: Tensor
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
        for name, value in self.decoder.output.kept(config.n_readout).items():
            self.register_buffer(name, value)

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

    @property
    def layers(self) -> Layers:
        """The output layers of the decoder, with the tensors that the output of the likelihood keeps in the model."""
        kept = self.decoder.output.kept(self.config.n_readout)
        return self.decoder.layers({name: self.get_buffer(name) for name in kept})

    def start_from(self, cells: Source, rows: Tensor) -> None:
        """Start the decoder from the data, typically at the mean profile.

        Otherwise the decoder would spend a large share of its steps on learning the mean profile.
        """
        self.decoder.output.start(self.layers, self.decoder.likelihood, cells, rows)


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
