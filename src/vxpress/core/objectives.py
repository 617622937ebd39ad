"""Training objectives.  All terms are in nats per cell, summed over genes, with all constants.

A new objective is one class here and one line in :data:`OBJECTIVES`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vxpress.core.config import TrainConfig
from vxpress.core.data import Batch
from vxpress.core.noise import Noise
from vxpress.core.normal import DiagonalNormal, gaussian_kl
from vxpress.core.registries import OBJECTIVES as OBJECTIVES  # noqa: PLC0414 - also exported here
from vxpress.core.vae import VAE

# soft free bits: factor by which a weight changes, band above the floor in which it stays, and its least value
SOFT_STEP, SOFT_BAND, MIN_SOFT_WEIGHT = 1.1, 1.05, 1e-4


@dataclass(frozen=True)
class Elbo:
    """Terms of the evidence lower bound per cell: E_q log p(x|z,s,l), KL(q(z)||p(z)) and KL(q(l)||p(l)).

    ``kl_nd`` has one column per dimension, or a single column if the prior does not factorise over dimensions.
    """

    reconstruction_n: Tensor
    kl_nd: Tensor
    kl_library_n: Tensor | None = None

    def value(self, beta: float | Tensor = 1.0) -> Tensor:
        """Compute the bound with weight ``beta`` on the divergence of z, (n,)."""
        bound = self.reconstruction_n - beta * self.kl_nd.sum(-1)
        return bound if self.kl_library_n is None else bound - self.kl_library_n


@dataclass(frozen=True, kw_only=True)
class ImportanceTerms(Elbo):
    """The same terms as means over K samples, and the parts of the importance weights, (k, n) (Burda et al. 2016).

    Log weights are log p(x|z,l) + beta (log p(z) - log q(z|x)) + log p(l) - log q(l|x).
    """

    z_knd: Tensor
    log_likelihood_kn: Tensor
    log_ratio_kn: Tensor
    log_library_kn1: Tensor | None = None
    log_library_ratio_kn: Tensor | None = None

    def log_weight(self, beta: float | Tensor = 1.0) -> Tensor:
        """Compute the log importance weights, (k, n)."""
        log_weight_kn = self.log_likelihood_kn + beta * self.log_ratio_kn
        return log_weight_kn if self.log_library_ratio_kn is None else log_weight_kn + self.log_library_ratio_kn

    def value(self, beta: float | Tensor = 1.0) -> Tensor:
        """Compute the importance-weighted bound, (n,)."""
        log_weight_kn = self.log_weight(beta)
        return log_weight_kn.logsumexp(0) - math.log(len(log_weight_kn))


def elbo(model: VAE, batch: Batch, noise: Noise, eps_nd: Tensor | None = None) -> Elbo:
    """Estimate the bound from one sample.

    ``eps_nd`` fixes the noise: one column per latent dimension, then the column of the library.
    """
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


def importance_terms(
    model: VAE, batch: Batch, noise: Noise, k: int, eps_nkd: Tensor | None = None, *, at_fixed_q: bool = False
) -> ImportanceTerms:
    """Compute the terms from ``k`` samples of every cell; the encoder runs once, the decoder on all samples together.

    With ``at_fixed_q``, log q(z|x) is a function of z alone, without a gradient with respect to the parameters of q.
    """
    dropout = noise if model.training else None
    d, n = model.config.n_latent, len(batch.rows)
    eps_knd = None if eps_nkd is None else eps_nkd.transpose(0, 1)
    q = model.posterior(batch, dropout)
    z_knd = q.rsample(noise.normals(k, q.loc) if eps_knd is None else eps_knd[..., :d])
    log_ratio_kn = model.prior.log_prob(z_knd) - _density(q, z_knd, fixed=at_fixed_q)
    repeated = batch.repeated(k)
    log_library_m1, library = repeated.log_library_n1, {}
    kl_library_n = None
    if model.config.latent_library:
        q_l = model.library_posterior(batch, dropout)
        log_l_kn1 = q_l.rsample(noise.normals(k, q_l.loc) if eps_knd is None else eps_knd[..., d:])
        loc_n1, variance_n1 = model.library_prior(batch.covariates)
        ratio_kn = DiagonalNormal(loc_n1, variance_n1.sqrt()).log_prob(log_l_kn1)
        library = {
            "log_library_kn1": log_l_kn1,
            "log_library_ratio_kn": ratio_kn - _density(q_l, log_l_kn1, fixed=at_fixed_q),
        }
        log_library_m1 = log_l_kn1.flatten(0, 1)
        kl_library_n = gaussian_kl(q_l, loc_n1, variance_n1).squeeze(-1)
    log_likelihood_kn = model.log_likelihood(z_knd.flatten(0, 1), repeated, log_library_m1, dropout).view(k, n)
    with torch.no_grad():
        kl_nd = model.prior.kl(q, z_knd[0]) if model.prior.analytic else -log_ratio_kn.mean(0)[:, None]
    return ImportanceTerms(
        log_likelihood_kn.detach().mean(0),
        kl_nd,
        kl_library_n,
        z_knd=z_knd,
        log_likelihood_kn=log_likelihood_kn,
        log_ratio_kn=log_ratio_kn,
        **library,
    )


def _density(q: DiagonalNormal, z: Tensor, *, fixed: bool) -> Tensor:
    return (replace(q, loc=q.loc.detach(), scale=q.scale.detach()) if fixed else q).log_prob(z)


class Objective:
    """The bound on log p(x) that is maximised: terms of a minibatch, the loss, and the value that compares fits."""

    n_samples: int | None = None
    """Samples per cell, for a bound that needs several."""

    def __init__(self, config: TrainConfig, model: VAE) -> None:
        self.config = config

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the objective has adapted in training; most adapt nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a stored state."""

    def terms(self, model: VAE, batch: Batch, noise: Noise, eps: Tensor | None = None) -> Elbo:
        """Draw z and evaluate the terms; ``eps`` (n, columns), or (n, samples, columns), fixes the noise."""
        raise NotImplementedError

    def loss(self, terms: Elbo, weight: float | Tensor, target: float | Tensor) -> Tensor:
        """Compute the loss, a mean per cell, at a weight and a target of the schedule."""
        raise NotImplementedError

    def further(self, terms: Elbo) -> Tensor | None:
        """Return sums for :meth:`final` in addition to those of reconstruction, KL of z and KL of l."""
        return None

    def final(self, means: Sequence[float]) -> float:
        """Compute the objective at the end of the schedule from means over held-out cells.

        ``means`` are those of reconstruction, KL of z, KL of l, and the sums of :meth:`further`.
        """
        raise NotImplementedError


class ElboObjective(Objective):
    """The evidence lower bound with weight beta on KL(q(z|x)||p(z)) (Kingma & Welling 2014; Higgins et al. 2017).

    Three settings replace the weighted divergence. KL and KL_d are means over a minibatch.

    * Capacity C: beta |KL - C| (Burgess et al. 2018).
    * Hard free bits: beta sum_d max(lambda, KL_d) (Kingma et al. 2016).
    * Soft free bits: sum_d beta_d KL_d. beta_d is lowered while KL_d is below lambda and raised, up to beta, while it
      is above (Chen et al. 2017).

    If the prior does not factorise over dimensions, all share one floor of lambda times their number.
    """

    def __init__(self, config: TrainConfig, model: VAE) -> None:
        super().__init__(config, model)
        columns = model.config.n_latent if model.prior.analytic else 1
        self.floor = config.free_bits * model.config.n_latent / columns
        # kept here, not in the model: reported numbers do not depend on it
        self.share_d = torch.ones(columns, device=model.decoder.location.weight.device)

    def state_dict(self) -> dict[str, Tensor]:
        return {"share_d": self.share_d.cpu().clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        # in place: a CUDA graph may read this memory
        self.share_d.copy_(state["share_d"])

    def terms(self, model: VAE, batch: Batch, noise: Noise, eps: Tensor | None = None) -> Elbo:
        return elbo(model, batch, noise, eps)

    def loss(self, terms: Elbo, weight: float | Tensor, target: float | Tensor) -> Tensor:
        if self.config.kl_schedule == "capacity":
            return weight * (terms.kl_nd.sum(-1).mean() - target).abs() - terms.value(0.0).mean()
        if self.floor > 0:
            return weight * self._floored(terms.kl_nd.mean(0)) - terms.value(0.0).mean()
        return -terms.value(weight).mean()

    def _floored(self, kl_d: Tensor) -> Tensor:
        if self.config.free_bits_form == "hard":
            return kl_d.clamp_min(self.floor).sum()
        now_d = kl_d.detach()
        # for NaN both comparisons are false, so the weight stays
        step_d = torch.where(
            now_d > SOFT_BAND * self.floor, SOFT_STEP, torch.where(now_d < self.floor, 1 / SOFT_STEP, 1.0)
        )
        self.share_d.mul_(step_d).clamp_(MIN_SOFT_WEIGHT, 1.0)
        return (self.share_d * kl_d).sum()

    def further(self, terms: Elbo) -> Tensor | None:
        return terms.kl_nd.sum(0) if self.floor > 0 else None

    def final(self, means: Sequence[float]) -> float:
        reconstruction, kl, kl_library, *kl_d = means
        if self.config.kl_schedule == "capacity":
            kl = abs(kl - self.config.kl_capacity)
        elif self.floor > 0:
            # with beta above 1 the plain divergence would prefer the states that the floor prevents
            kl = sum(max(self.floor, part) for part in kl_d)
        return reconstruction - self.config.beta * kl - kl_library


class Iwae(Objective):
    """The importance-weighted bound log 1/K sum_k w_k (Burda et al. 2016), differentiated directly.

    ``weight`` multiplies log p(z) - log q(z|x) in every log weight. At 1 this is the bound on log p(x); with a single
    sample it is the ELBO with beta times the divergence.
    """

    at_fixed_q: ClassVar[bool] = False

    def __init__(self, config: TrainConfig, model: VAE) -> None:
        super().__init__(config, model)
        self.n_samples = self.k = config.n_samples

    def terms(self, model: VAE, batch: Batch, noise: Noise, eps: Tensor | None = None) -> ImportanceTerms:
        return importance_terms(model, batch, noise, self.k, eps, at_fixed_q=self.at_fixed_q)

    def loss(self, terms: Elbo, weight: float | Tensor, target: float | Tensor) -> Tensor:
        return -terms.value(weight).mean()

    def further(self, terms: Elbo) -> Tensor | None:
        return terms.value(self.config.beta).sum()[None]

    def final(self, means: Sequence[float]) -> float:
        return means[3]


class Dreg(Iwae):
    """The same bound with doubly reparameterised gradients (Tucker et al. 2019).

    Let v_k be the normalised weights. The decoder and the prior receive the gradient of sum_k v_k log w_k. The encoder
    receives the gradient of log w_k with respect to z_k alone, times v_k^2 instead of v_k. The expectation is the same,
    and the signal-to-noise ratio no longer falls as K grows (Rainforth et al. 2018). If log q(z|x) has weight beta, the
    factor is (1 - beta) v_k + beta v_k^2, by the same argument.
    """

    at_fixed_q = True

    def loss(self, terms: Elbo, weight: float | Tensor, target: float | Tensor) -> Tensor:
        assert isinstance(terms, ImportanceTerms)  # noqa: S101 - its own
        log_weight_kn = terms.log_weight(weight)
        share_kn = log_weight_kn.detach().softmax(0)
        _scale_gradient(terms.z_knd, 1.0 - weight + weight * share_kn)
        if terms.log_library_kn1 is not None:
            _scale_gradient(terms.log_library_kn1, share_kn)
        return -(share_kn * log_weight_kn).sum(0).mean()


def _scale_gradient(x_knd: Tensor, factor_kn: Tensor) -> None:
    """Multiply the gradient that flows back through each sample by its factor."""
    if x_knd.requires_grad:
        x_knd.register_hook(lambda gradient: gradient * factor_kn[..., None])


OBJECTIVES.register("elbo", ElboObjective)
OBJECTIVES.register("iwae", Iwae)
OBJECTIVES.register("dreg", Dreg)
