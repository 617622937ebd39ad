"""Importance-weighted bound on the log likelihood (Burda et al. 2016); memory does not grow with the number of samples.

Let u be the latent variables of a cell (z, and a latent library) and w_k = p(x | u_k) p(u_k) / q(u_k | x) the weights.
Then log mean_k w_k is a lower bound on log p(x) in expectation. It increases with K towards log p(x), and is the ELBO
at K = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vxpress.core.blocks import Z
from vxpress.core.data import Batch, Source, walk
from vxpress.core.model import VAE
from vxpress.core.objectives import total
from vxpress.core.threads import in_order

# decoded entries per pass, 4 MB in float32; limits of its rows; samples of a cell that are decoded together
PASS_ENTRIES, MIN_ROWS, MAX_ROWS, SIDE_BY_SIDE = 2**20, 64, 4096, 16
# most samples of a cell whose noise is drawn ahead
KEPT_SAMPLES = 1024


class Proposal(Protocol):
    """q(u | x) of some cells and the parts of importance weights, all in float64."""

    n_noise: int
    kl_n: Tensor | None
    """KL(q(u | x) || p(u)), (n,), if it has a closed form.

    Otherwise it is None, and the ELBO is the mean log weight of the samples.
    """

    def __len__(self) -> int:
        """Return the number of cells."""

    def weigh(self, eps_knd: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log p(x | u) and log p(u) - log q(u | x), each (k, n), at the points of q given by standard noise."""


Propose = Callable[[int], Iterable[Proposal]]


@dataclass(frozen=True)
class Bound:
    """Bounds in nats per cell, float64 (n,).

    ``se_n`` is the standard error of ``log_likelihood_n`` by the delta method.
    """

    log_likelihood_n: np.ndarray
    se_n: np.ndarray
    ess_n: np.ndarray
    elbo_n: np.ndarray
    reconstruction_n: np.ndarray


class ImportanceSums:
    """Sums of importance weights of some cells over samples, relative to the largest weight so far."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.k = 0
        self.top_n = torch.full((n,), -torch.inf, dtype=torch.float64, device=device)
        self.sum_n, self.squares_n, self.reconstruction_n, self.log_ratio_n = torch.zeros(
            4, n, dtype=torch.float64, device=device
        )

    def add(self, reconstruction_kn: Tensor, log_ratio_kn: Tensor) -> None:
        """Add further samples of every cell."""
        log_weight_kn = reconstruction_kn + log_ratio_kn
        top_n = torch.maximum(self.top_n, log_weight_kn.amax(0))
        # weights of zero stay zero: no shift by minus infinity
        shift_n = torch.where(top_n.isinf(), 0.0, top_n)
        fall_n, weight_kn = (self.top_n - shift_n).exp(), (log_weight_kn - shift_n).exp()
        self.sum_n = self.sum_n * fall_n + weight_kn.sum(0)
        self.squares_n = self.squares_n * fall_n.square() + weight_kn.square().sum(0)
        self.reconstruction_n = self.reconstruction_n + reconstruction_kn.sum(0)
        self.log_ratio_n = self.log_ratio_n + log_ratio_kn.sum(0)
        self.top_n = top_n
        self.k += len(log_weight_kn)

    def bound(self, kl_n: Tensor | None) -> Bound:
        """Compute the bound from the samples so far; a divergence that is not given is estimated from them too."""
        kl_n = -self.log_ratio_n / self.k if kl_n is None else kl_n
        ess_n = self.sum_n.square() / self.squares_n
        # relative variance of the mean weight; unknown for a single sample
        relative_n = (self.k / ess_n - 1.0).clamp_min(0.0) / (self.k - 1) if self.k > 1 else ess_n * torch.nan
        reconstruction_n = self.reconstruction_n / self.k
        parts = (
            self.top_n + (self.sum_n / self.k).log(),
            relative_n.sqrt(),
            ess_n,
            reconstruction_n - kl_n,
            reconstruction_n,
        )
        return Bound(*(part.cpu().numpy() for part in parts))


def importance_bound(
    propose: Propose, n_samples: int, *, rows_per_pass: int, seed: int, device: torch.device | str = "cpu"
) -> Bound:
    """Compute the bound of some cells with ``n_samples`` samples each.

    ``propose`` yields the proposals of all cells in order, at most a given number of cells at a time. The noise depends on
    ``seed`` and on ``rows_per_pass``, the number of decoded cells held in memory.
    """
    (found,) = importance_bounds(propose, [n_samples], rows_per_pass=rows_per_pass, seed=seed, device=device)
    return found


@torch.no_grad()
def importance_bounds(
    propose: Propose, n_samples: Sequence[int], *, rows_per_pass: int, seed: int, device: torch.device | str = "cpu"
) -> tuple[Bound, ...]:
    """Compute the bound for several increasing numbers of samples in one pass.

    Smaller numbers use the first samples.
    """
    device, generator = torch.device(device), torch.Generator().manual_seed(seed)
    at_once = max(1, min(n_samples[-1], SIDE_BY_SIDE, rows_per_pass))
    passes = [
        min(at_once, until - start)
        for after, until in pairwise((0, *n_samples))
        for start in range(after, until, at_once)
    ]

    def with_noise() -> Iterator[tuple[Proposal, Iterable[Tensor]]]:
        for proposal in propose(max(1, rows_per_pass // at_once)):
            shapes = [(k, len(proposal), proposal.n_noise) for k in passes]
            noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
            yield proposal, list(noise) if kept else noise

    def bounds(item: tuple[Proposal, Iterable[Tensor]]) -> list[Bound]:
        proposal, found = item[0], []
        sums = ImportanceSums(len(proposal), device)
        for eps_knd in item[1]:
            sums.add(*proposal.weigh(eps_knd.to(device)))
            if sums.k in n_samples:
                found.append(sums.bound(proposal.kl_n))
        return found

    # with so many samples that the noise of some cells takes memory, threads share the parts of single passes; a GPU computes while
    # the noise of the next pass is drawn
    kept = device.type == "cpu" and n_samples[-1] <= KEPT_SAMPLES
    each = list(in_order(bounds, with_noise(), device) if kept else map(bounds, with_noise()))
    return tuple(
        Bound(*(np.concatenate(part) for part in zip(*(vars(b).values() for b in parts), strict=True)))
        for parts in zip(*each, strict=True)
    )


class CellProposal:
    """The encoder's posterior of the latent blocks of a batch."""

    def __init__(self, model: VAE, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.repeated: dict[int, Batch] = {}
        q = model.posterior(self.batch)
        self.dtype, self.q, self.n_noise = q[Z].loc.dtype, q.double(), model.n_noise
        self.covariates = self.batch.covariates
        self.kl_n: Tensor | None = None
        if all(block.analytic for block in model.blocks.values()):
            parts = {
                name: block.kl(self.q[name], self.q[name].loc, self.covariates) for name, block in model.blocks.items()
            }
            self.kl_n = total({name: kl_nc.sum(-1) for name, kl_nc in parts.items()})

    def __len__(self) -> int:
        return len(self.batch)

    def weigh(self, eps_knd: Tensor) -> tuple[Tensor, Tensor]:
        k, n = eps_knd.shape[:2]
        point, eps = self.q.at(eps_knd), self.q.split(eps_knd)
        log_ratio_kn: Tensor | None = None
        for name, block in self.model.blocks.items():
            log_prior_kn = block.log_prior(point[name], self.covariates)
            log_ratio_kn = log_prior_kn if log_ratio_kn is None else log_ratio_kn + log_prior_kn
            log_ratio_kn = log_ratio_kn - _log_density(eps[name], self.q[name].scale)
        assert log_ratio_kn is not None  # noqa: S101 - every model has z
        flat = {name: value.flatten(0, 1).to(self.dtype) for name, value in point.items()}
        if k not in self.repeated:
            self.repeated[k] = self.batch.repeated(k)
        value_m = total(self.model.log_likelihood(flat, self.repeated[k]))
        return value_m.double().view(k, n), log_ratio_kn


def _log_density(standard: Tensor, scale: Tensor) -> Tensor:
    """Compute the log density, summed over dimensions, of a normal distribution at standardised points."""
    return (-0.5 * (standard.square() + math.log(2 * math.pi)) - scale.log()).sum(-1)


def log_likelihood(model: VAE, cells: Source, n_samples: int, *, seed: int) -> Bound:
    """Compute the bound of every cell under a model; both are on the same device."""
    (found,) = log_likelihoods(model, cells, [n_samples], seed=seed)
    return found


def log_likelihoods(
    model: VAE, cells: Source, n_samples: Sequence[int], *, seed: int, rows: Tensor | None = None
) -> tuple[Bound, ...]:
    """Compute the bound of all cells or of ``rows``, for several increasing numbers of samples.

    Smaller numbers use the first samples of the larger ones.
    """
    model.eval()
    return importance_bounds(
        cell_proposals(model, cells, rows),
        n_samples,
        rows_per_pass=max(MIN_ROWS, min(MAX_ROWS, PASS_ENTRIES // model.config.n_genes)),
        seed=seed,
        device=cells.device,
    )


def cell_proposals(model: VAE, cells: Source, rows: Tensor | None = None) -> Propose:
    """Return a function that yields the proposals of all cells or of ``rows`` in batches of a given size."""

    def propose(size: int) -> Iterator[CellProposal]:
        for _, batch in walk(cells, rows, size, stage="importance sampling"):
            yield CellProposal(model, batch)

    return propose
