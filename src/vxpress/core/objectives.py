"""What is maximised.  All terms are in nats per cell, summed over genes, constants included.

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
from vxpress.core.counts import Batch
from vxpress.core.noise import Noise
from vxpress.core.priors import DiagonalNormal, gaussian_kl
from vxpress.core.vae import VAE

# of soft free bits: the step of a weight, the band above the floor in which it rests, and its least value
SOFT_STEP, SOFT_BAND, MIN_SOFT_WEIGHT = 1.1, 1.05, 1e-4


@dataclass(frozen=True)
class Elbo:
    """The terms of the evidence lower bound: E_q log p(x|z,s,l), KL(q(z)||p(z)) and KL(q(l)||p(l)), per cell.

    ``kl_nd`` has a column per dimension, or one where the prior ties the dimensions together.
    """

    reconstruction_n: Tensor
    kl_nd: Tensor
    kl_library_n: Tensor | None = None

    def value(self, beta: float | Tensor = 1.0) -> Tensor:
        """The bound with weight ``beta`` on the divergence of z, (n,)."""
        bound = self.reconstruction_n - beta * self.kl_nd.sum(-1)
        return bound if self.kl_library_n is None else bound - self.kl_library_n


@dataclass(frozen=True, kw_only=True)
class ImportanceTerms(Elbo):
    """The same as means over K samples, and what importance weights are made of, (k, n): Burda et al. 2016.

    Log weights are log p(x|z,l) + beta (log p(z) - log q(z|x)) + log p(l) - log q(l|x).
    """

    z_knd: Tensor
    log_likelihood_kn: Tensor
    log_ratio_kn: Tensor
    log_library_kn1: Tensor | None = None
    log_library_ratio_kn: Tensor | None = None

    def log_weight(self, beta: float | Tensor = 1.0) -> Tensor:
        """Log importance weights, (k, n)."""
        log_weight_kn = self.log_likelihood_kn + beta * self.log_ratio_kn
        return log_weight_kn if self.log_library_ratio_kn is None else log_weight_kn + self.log_library_ratio_kn

    def value(self, beta: float | Tensor = 1.0) -> Tensor:
        """The importance-weighted bound, (n,)."""
        log_weight_kn = self.log_weight(beta)
        return log_weight_kn.logsumexp(0) - math.log(len(log_weight_kn))


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


def importance_terms(
    model: VAE, batch: Batch, noise: Noise, k: int, eps_nkd: Tensor | None = None, *, at_fixed_q: bool = False
) -> ImportanceTerms:
    """``k`` samples of every cell; the encoder runs once and the decoder sees them side by side.

    ``at_fixed_q`` takes log q(z|x) as a function of z alone, without a gradient by the parameters of q.
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
    """The bound on log p(x) that is maximised, as terms of a minibatch, a loss to descend and a value to judge by."""

    n_samples: int | None = None
    """Samples per cell, of a bound that is made of several."""

    def __init__(self, config: TrainConfig, model: VAE) -> None:
        self.config = config

    def terms(self, model: VAE, batch: Batch, noise: Noise, eps: Tensor | None = None) -> Elbo:
        """Draw z and evaluate; ``eps`` (n, columns), or (n, samples, columns), fixes the noise."""
        raise NotImplementedError

    def loss(self, terms: Elbo, weight: float | Tensor, target: float | Tensor) -> Tensor:
        """Mean per cell of what is descended, at a weight and a target of the schedule."""
        raise NotImplementedError

    def further(self, terms: Elbo) -> Tensor | None:
        """Sums over cells that :meth:`final` needs beside those of reconstruction, KL of z and KL of l."""
        return None

    def final(self, means: Sequence[float]) -> float:
        """The objective as it is at the end of the schedule, from means over held-out cells.

        ``means`` are reconstruction, KL of z, KL of l, and those of what :meth:`further` summed.
        """
        raise NotImplementedError


class ElboObjective(Objective):
    """The evidence lower bound with weight beta on KL(q(z|x)||p(z)) (Kingma & Welling 2014; Higgins et al. 2017).

    In place of the weighted divergence stand, with a capacity C, beta |KL - C| of a minibatch's mean (Burgess et al.
    2018); with hard free bits beta sum_d max(lambda, KL_d) of a minibatch's means (Kingma et al. 2016); with soft ones
    sum_d beta_d KL_d, beta_d being lowered while KL_d lies below lambda and raised, up to beta, while it lies above (Chen
    et al. 2017). Where the prior ties the dimensions together they share one floor of lambda times their number.
    """

    def __init__(self, config: TrainConfig, model: VAE) -> None:
        super().__init__(config, model)
        columns = model.config.n_latent if model.prior.analytic else 1
        self.floor = config.free_bits * model.config.n_latent / columns
        # held here, not in the model: what is reported knows nothing of it
        self.share_d = torch.ones(columns, device=model.decoder.location.weight.device)

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
        # neither holds of what is not a number
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
            # with beta above 1 the divergence itself would prefer the states that the floor is there to prevent
            kl = sum(max(self.floor, part) for part in kl_d)
        return reconstruction - self.config.beta * kl - kl_library


class Iwae(Objective):
    """The importance-weighted bound log 1/K sum_k w_k (Burda et al. 2016), differentiated as it stands.

    ``weight`` stands before log p(z) - log q(z|x) in every log weight: at 1 this is the bound on log p(x), for a single
    sample that on beta times the divergence.
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

    With normalised weights v_k the decoder and the prior get the gradient of sum_k v_k log w_k, the encoder that of
    log w_k by z_k alone, times v_k^2 rather than v_k: the same in expectation, and no longer drowned in noise as K grows
    (Rainforth et al. 2018). Where log q(z|x) has weight beta the factor is (1 - beta) v_k + beta v_k^2, by the same argument.
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
    """Let what flows back through samples be multiplied by a factor for each."""
    if x_knd.requires_grad:
        x_knd.register_hook(lambda gradient: gradient * factor_kn[..., None])


OBJECTIVES: dict[str, type[Objective]] = {"elbo": ElboObjective, "iwae": Iwae, "dreg": Dreg}
