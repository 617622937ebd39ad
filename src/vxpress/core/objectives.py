"""What is maximised.  All terms are in nats per cell, summed over genes, constants included."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vxpress.core.counts import Batch
from vxpress.core.networks import Noise
from vxpress.core.priors import gaussian_kl
from vxpress.core.vae import VAE


@dataclass(frozen=True)
class Elbo:
    """The terms of the evidence lower bound: E_q log p(x|z,s,l), KL(q(z)||p(z)) and KL(q(l)||p(l)), per cell.

    ``kl_nd`` has a column per dimension, or one where the prior ties the dimensions together.
    """

    reconstruction_n: Tensor
    kl_nd: Tensor
    kl_library_n: Tensor | None = None

    def value(self, beta: float = 1.0) -> Tensor:
        """The bound with weight ``beta`` on the divergence of z, (n,)."""
        bound = self.reconstruction_n - beta * self.kl_nd.sum(-1)
        return bound if self.kl_library_n is None else bound - self.kl_library_n


def elbo(model: VAE, batch: Batch, noise: Noise, eps_nd: Tensor | None = None) -> Elbo:
    """One-sample estimate of the bound; ``eps_nd`` fixes the noise: a column per latent dimension, then the library's."""
    dropout = noise if model.training else None
    d = model.config.n_latent
    q = model.posterior(batch, dropout)
    z_nd = q.rsample(noise.normal_like(q.loc) if eps_nd is None else eps_nd[:, :d])
    log_library_n1, kl_library_n = batch.log_library_n1, None
    if model.config.latent_library:
        q_l = model.library_posterior(batch, dropout)
        log_library_n1 = q_l.rsample(noise.normal_like(q_l.loc) if eps_nd is None else eps_nd[:, d:])
        kl_library_n = gaussian_kl(q_l, *model.library_prior(batch.covariates)).squeeze(-1)
    reconstruction_n = model.log_likelihood(z_nd, batch, log_library_n1, dropout)
    return Elbo(reconstruction_n, model.prior.kl(q, z_nd), kl_library_n)
