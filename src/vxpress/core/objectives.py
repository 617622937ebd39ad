"""Training objectives.  All terms are in nats per cell, summed over genes, with all constants.

A new objective is one class, registered in :data:`OBJECTIVES` under its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from vxpress.core import registry
from vxpress.core.blocks import Point, Z
from vxpress.core.config import TrainConfig
from vxpress.core.data import Batch
from vxpress.core.model import VAE
from vxpress.core.noise import Noise
from vxpress.core.normal import DiagonalNormal

# soft free bits: factor by which a weight changes, band above the floor in which it stays, and its least value
SOFT_STEP, SOFT_BAND, MIN_SOFT_WEIGHT = 1.1, 1.05, 1e-4


@dataclass(frozen=True)
class Elbo:
    """Terms of the evidence lower bound per cell, in nats, by name.

    ``reconstruction`` holds E_q log p(x | z, s, l) of each modality, (n,). ``kl`` holds the divergence of each latent
    block from its prior, with one column per dimension, or a single one if the prior does not factorise over
    dimensions. ``weighted`` names the blocks whose divergence has the weight beta.
    """

    reconstruction: dict[str, Tensor]
    kl: dict[str, Tensor]
    weighted: tuple[str, ...] = (Z,)

    @property
    def reconstruction_n(self) -> Tensor:
        """The sum over modalities, (n,)."""
        return total(self.reconstruction)

    def divergence(self) -> Tensor:
        """Compute the sum of the weighted divergences, (n,)."""
        return total({name: self.kl[name].sum(-1) for name in self.weighted})

    def value(self, beta: float | Tensor = 1.0) -> Tensor:
        """Compute the bound with weight ``beta`` on the weighted divergences, (n,)."""
        bound = self.reconstruction_n
        for name, kl_nc in self.kl.items():
            kl_n = kl_nc.sum(-1)
            bound = bound - (beta * kl_n if name in self.weighted else kl_n)
        return bound


@dataclass(frozen=True, kw_only=True)
class ImportanceTerms(Elbo):
    """The same terms as means over K samples, and the parts of the importance weights (Burda et al. 2016).

    ``draws`` are the samples of each block, (k, n, columns), ``log_likelihood`` those of log p(x | z, l) of each
    modality, and ``log_ratio`` those of log prior - log q of each block, (k, n). The log weights are the sum of both,
    with the weight beta on the ratios of weighted blocks.
    """

    draws: Point
    log_likelihood: dict[str, Tensor]
    log_ratio: dict[str, Tensor]

    def log_weight(self, beta: float | Tensor = 1.0) -> Tensor:
        """Compute the log importance weights, (k, n)."""
        log_weight_kn = total(self.log_likelihood)
        for name, ratio_kn in self.log_ratio.items():
            log_weight_kn = log_weight_kn + (beta * ratio_kn if name in self.weighted else ratio_kn)
        return log_weight_kn

    def value(self, beta: float | Tensor = 1.0) -> Tensor:
        """Compute the importance-weighted bound, (n,)."""
        log_weight_kn = self.log_weight(beta)
        return log_weight_kn.logsumexp(0) - math.log(len(log_weight_kn))


@dataclass(frozen=True)
class Means:
    """Means over cells, in nats per cell, of the terms of a bound by name, and of what an objective needs in addition.

    ``kl_per_column`` holds the divergence of each dimension of the blocks whose prior factorises.
    """

    reconstruction: dict[str, float]
    kl: dict[str, float]
    further: dict[str, list[float]] = field(default_factory=dict)
    kl_per_column: dict[str, list[float]] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether all means are finite."""
        parts = *self.reconstruction.values(), *self.kl.values(), *(v for part in self.further.values() for v in part)
        return all(map(math.isfinite, parts))

    @property
    def elbo(self) -> float:
        """The evidence lower bound."""
        bound = sum(self.reconstruction.values())
        for kl in self.kl.values():
            bound = bound - kl
        return bound


def total(parts: Mapping[str, Tensor]) -> Tensor:
    """Add the parts in order."""
    first, *others = parts.values()
    for part in others:
        first = first + part
    return first


def elbo(model: VAE, batch: Batch, noise: Noise, eps: Tensor | None = None) -> Elbo:
    """Estimate the evidence lower bound from one sample of every cell.

    Parameters
    ----------
    model
        The model; units are dropped out while it is in training mode.
    batch
        A minibatch of n cells.
    noise
        Source of the random numbers.
    eps
        Standard normal noise to use instead, (n, columns): the columns of z, then those of the other latent blocks in order.

    Returns
    -------
    The terms of the bound per cell.
    """
    dropout = noise if model.training else None
    q = model.posterior(batch, dropout)
    point = q.draw(noise.normal_like) if eps is None else q.at(eps)
    reconstruction = model.log_likelihood(point, batch, dropout)
    kl = {name: block.kl(q[name], point[name], batch.covariates) for name, block in model.blocks.items()}
    return Elbo(reconstruction, kl, model.weighted)


def importance_terms(
    model: VAE, batch: Batch, noise: Noise, k: int, eps_nkd: Tensor | None = None, *, at_fixed_q: bool = False
) -> ImportanceTerms:
    """Compute importance weights from several samples of every cell.

    The encoder runs once, the decoder on all samples together.

    Parameters
    ----------
    model
        The model; units are dropped out while it is in training mode.
    batch
        A minibatch of n cells.
    noise
        Source of the random numbers.
    k
        Number of samples.
    eps_nkd
        Standard normal noise to use instead, (n, k, columns): the columns of z, then those of the other latent blocks.
    at_fixed_q
        Whether log q is a function of the samples alone, without a gradient with respect to the parameters of q.

    Returns
    -------
    The terms per cell, and the parts of the log weights, (k, n).
    """
    if eps_nkd is not None and eps_nkd.ndim != 3:
        msg = (
            f"eps of shape {tuple(eps_nkd.shape)} was given; (cells, samples, columns) is expected. An objective of several samples "
            "sets self.n_samples to their number; terms() then receives noise of this shape."
        )
        raise ValueError(msg)
    dropout = noise if model.training else None
    q = model.posterior(batch, dropout)
    draws = q.draw(lambda like: noise.normals(k, like)) if eps_nkd is None else q.at(eps_nkd.transpose(0, 1))
    log_ratio = {
        name: block.log_prior(draws[name], batch.covariates) - _density(q[name], draws[name], fixed=at_fixed_q)
        for name, block in model.blocks.items()
    }
    found = model.log_likelihood({name: u.flatten(0, 1) for name, u in draws.items()}, batch.repeated(k), dropout)
    log_likelihood = {name: value.view(k, len(batch.rows)) for name, value in found.items()}
    with torch.no_grad():
        kl = {
            name: block.kl(q[name], draws[name][0], batch.covariates)
            if block.analytic
            else -log_ratio[name].mean(0)[:, None]
            for name, block in model.blocks.items()
        }
    return ImportanceTerms(
        {name: value.detach().mean(0) for name, value in log_likelihood.items()},
        kl,
        model.weighted,
        draws=draws,
        log_likelihood=log_likelihood,
        log_ratio=log_ratio,
    )


def _density(q: DiagonalNormal, z: Tensor, *, fixed: bool) -> Tensor:
    return (replace(q, loc=q.loc.detach(), scale=q.scale.detach()) if fixed else q).log_prob(z)


class Objective:
    """The bound on log p(x) that is maximised: terms of a minibatch, the loss, and the value that compares fits."""

    n_samples: int | None = None
    """Number of samples per cell of a bound that needs several: a subclass that uses :func:`importance_terms` sets it in
    ``__init__``. It decides the shape of ``eps`` in :meth:`terms`."""

    has_divergence: ClassVar[bool] = False
    """Whether the loss is made of KL(q || p) itself, with floors and target: free bits, the capacity schedule and priors
    whose density is too costly for every step need it."""

    mean_of: Callable[[Tensor, int], Tensor] | None = None
    """With several processes, which share each minibatch: makes of a mean over a part, and its number of cells, that over all."""

    def __init__(self, config: TrainConfig, model: VAE) -> None:
        self.config = config

    @property
    def of_cells(self) -> bool:
        """Whether the loss of a minibatch is a mean over its cells, so that :meth:`mean` is not used."""
        return self.config.kl_schedule != "capacity" and self.config.free_bits == 0

    def mean(self, values: Tensor) -> Tensor:
        """Compute the mean over the cells of a minibatch, for a loss that is not itself a mean over cells."""
        mean = values.mean(0)
        return mean if self.mean_of is None else self.mean_of(mean, len(values))

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the objective has adapted in training; most adapt nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a stored state."""

    def terms(self, model: VAE, batch: Batch, noise: Noise, eps: Tensor | None = None) -> Elbo:
        """Draw z and evaluate the terms; ``eps`` fixes the noise, as for held-out cells.

        Its shape is (n, columns), or (n, n_samples, columns) if ``n_samples`` is not None.
        """
        raise NotImplementedError

    def loss(self, terms: Elbo, weight: float | Tensor, target: float | Tensor) -> Tensor:
        """Compute the loss, a mean per cell, at a weight and a target of the schedule."""
        raise NotImplementedError

    def further(self, terms: Elbo) -> dict[str, Tensor]:
        """Return sums over cells, (any,), that :meth:`final` needs in addition to those of the terms."""
        return {}

    def final(self, means: Means) -> float:
        """Compute the objective at the end of the schedule from means over held-out cells."""
        raise NotImplementedError


class ElboObjective(Objective):
    """The evidence lower bound with weight beta on KL(q(z|x)||p(z)) (Kingma & Welling 2014; Higgins et al. 2017).

    Three settings replace the weighted divergence. KL and KL_d are means over a minibatch.

    * Capacity C: ``beta |KL - C|`` (Burgess et al. 2018).
    * Hard free bits: beta sum_d max(lambda, KL_d) (Kingma et al. 2016).
    * Soft free bits: sum_d beta_d KL_d. beta_d is lowered while KL_d is below lambda and raised, up to beta, while it
      is above (Chen et al. 2017).

    If a prior does not factorise over dimensions, all of the block share one floor of lambda times their number.
    """

    has_divergence = True

    def __init__(self, config: TrainConfig, model: VAE) -> None:
        super().__init__(config, model)
        weighted = {name: model.blocks[name] for name in model.weighted}
        columns = {name: block.n_noise if block.analytic else 1 for name, block in weighted.items()}
        self.floor = {name: config.free_bits * block.n_noise / columns[name] for name, block in weighted.items()}
        # kept here, not in the model: reported numbers do not depend on it
        device = model.decoder.location.weight.device
        self.share = {name: torch.ones(n, device=device) for name, n in columns.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: share_d.cpu().clone() for name, share_d in self.share.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        # in place: a CUDA graph may read this memory
        for name, share_d in self.share.items():
            share_d.copy_(state[name])

    def terms(self, model: VAE, batch: Batch, noise: Noise, eps: Tensor | None = None) -> Elbo:
        return elbo(model, batch, noise, eps)

    def loss(self, terms: Elbo, weight: float | Tensor, target: float | Tensor) -> Tensor:
        if self.config.kl_schedule == "capacity":
            divergence = self.mean(terms.divergence())
            return weight * (divergence - target).abs() - terms.value(0.0).mean()
        if self.config.free_bits > 0:
            floored = total({name: self._floored(name, self.mean(terms.kl[name])) for name in terms.weighted})
            return weight * floored - terms.value(0.0).mean()
        return -terms.value(weight).mean()

    def _floored(self, name: str, kl_d: Tensor) -> Tensor:
        floor, share_d = self.floor[name], self.share[name]
        if self.config.free_bits_form == "hard":
            return kl_d.clamp_min(floor).sum()
        now_d = kl_d.detach()
        # for NaN both comparisons are false, so the weight stays
        step_d = torch.where(now_d > SOFT_BAND * floor, SOFT_STEP, torch.where(now_d < floor, 1 / SOFT_STEP, 1.0))
        share_d.mul_(step_d).clamp_(MIN_SOFT_WEIGHT, 1.0)
        return (share_d * kl_d).sum()

    def further(self, terms: Elbo) -> dict[str, Tensor]:
        return {name: terms.kl[name].sum(0) for name in terms.weighted} if self.config.free_bits > 0 else {}

    def final(self, means: Means) -> float:
        kl = sum(means.kl[name] for name in self.floor)
        if self.config.kl_schedule == "capacity":
            kl = abs(kl - self.config.kl_capacity)
        elif self.config.free_bits > 0:
            # with beta above 1 the plain divergence would prefer the states that the floor prevents
            kl = sum(max(floor, part) for name, floor in self.floor.items() for part in means.further[name])
        others = sum(value for name, value in means.kl.items() if name not in self.floor)
        return sum(means.reconstruction.values()) - self.config.beta * kl - others


class Iwae(Objective):
    """The importance-weighted bound log 1/K sum_k w_k (Burda et al. 2016), differentiated directly.

    ``weight`` multiplies log p(z) - log q(z|x) in every log weight. At 1 this is the bound on log p(x); with a single
    sample it is the ELBO with beta times the divergence.
    """

    at_fixed_q: ClassVar[bool] = False

    def __init__(self, config: TrainConfig, model: VAE) -> None:
        super().__init__(config, model)
        self.n_samples = config.n_samples

    def terms(self, model: VAE, batch: Batch, noise: Noise, eps: Tensor | None = None) -> ImportanceTerms:
        return importance_terms(model, batch, noise, self.config.n_samples, eps, at_fixed_q=self.at_fixed_q)

    def loss(self, terms: Elbo, weight: float | Tensor, target: float | Tensor) -> Tensor:
        return -terms.value(weight).mean()

    def further(self, terms: Elbo) -> dict[str, Tensor]:
        return {"bound": terms.value(self.config.beta).sum()[None]}

    def final(self, means: Means) -> float:
        return means.further["bound"][0]


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
        for name, u_knd in terms.draws.items():
            _scale_gradient(u_knd, 1.0 - weight + weight * share_kn if name in terms.weighted else share_kn)
        return -(share_kn * log_weight_kn).sum(0).mean()


def _scale_gradient(x_knd: Tensor, factor_kn: Tensor) -> None:
    """Multiply the gradient that flows back through each sample by its factor."""
    if x_knd.requires_grad:
        x_knd.register_hook(lambda gradient: gradient * factor_kn[..., None])


OBJECTIVES: registry.Registry[type[Objective]] = registry.OBJECTIVES
OBJECTIVES.register("elbo", ElboObjective)
OBJECTIVES.register("iwae", Iwae)
OBJECTIVES.register("dreg", Dreg)
