"""Expression of groups of cells, decoded from posterior draws with the same seeds for all groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vxpress.core.covariates import Covariates
from vxpress.core.inference.posterior import Draws, Encoded, expected_expression
from vxpress.core.model import VAE
from vxpress.core.progress import steps

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupExpression:
    """Mean and variance of rho over cells and draws of every unit, modelled genes and then those read out, (m, g)."""

    mean_mg: Floats
    variance_mg: Floats


def subsample(code_n: NDArray[np.int64], n_each: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose at most ``n_each`` cells of each code at random, in ascending order; codes below 0 are excluded."""
    order = rng.permutation(len(code_n))
    order = order[code_n[order] >= 0]
    order = order[np.argsort(code_n[order], kind="stable")]
    sorted_codes = code_n[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_codes, sorted_codes)
    return np.sort(order[rank < n_each])


def decode_units(
    model: VAE,
    encoded: Encoded,
    covariates: Covariates,
    unit_n: NDArray[np.int64],
    n_units: int,
    *,
    batches: tuple[int | None, ...],
    n_draws: int,
    seeds: NDArray[np.int64],
) -> GroupExpression:
    """Decode every cell ``n_draws`` times, with the same batch for all cells in a pass, and sum by unit.

    Passes cycle through ``batches``, so every unit is decoded in each batch equally often. No array of cells x draws x
    genes is held: each block of cells is reduced to two products with the indicator of its units.
    """
    indicator = torch.zeros(n_units, len(unit_n))
    indicator[torch.from_numpy(unit_n), torch.arange(len(unit_n))] = 1.0
    n_m1 = np.maximum(np.bincount(unit_n, minlength=n_units), 1)[:, None] * n_draws
    sums: list[Floats] = []
    for i in steps(range(n_draws), "decoding groups"):
        draws = Draws(1, (batches[i % len(batches)],), int(seeds[i]))
        for rows, inside, outside in expected_expression(model, encoded, covariates, draws):
            parts = [inside] if outside is None else [inside, outside]
            here = indicator[:, rows]
            first = np.concatenate([(here @ part).double().numpy() for part in parts], axis=1)
            second = np.concatenate([(here @ part.square_()).double().numpy() for part in parts], axis=1)
            if not sums:
                sums = [np.zeros_like(first), np.zeros_like(second)]
            sums[0] += first
            sums[1] += second
    mean = sums[0] / n_m1
    return GroupExpression(mean, np.maximum(sums[1] / n_m1 - mean**2, 0.0))


@torch.no_grad()
def count_overdispersion(model: VAE, encoded: Encoded, covariates: Covariates) -> Floats:
    """Compute 1 / theta of every modelled gene, averaged over batches, labels or cells.

    It is 0 for likelihoods without a dispersion.
    """
    decoder = model.decoder
    if not decoder.likelihood.has_dispersion:
        return np.zeros(model.config.n_genes)
    if "dispersion" in decoder.heads:
        log_theta = decoder.heads["dispersion"](model.features(encoded.posterior(model).mean(), covariates))
    else:
        log_theta = decoder.log_dispersion
    return decoder.likelihood.overdispersion(log_theta.double()).mean(0).numpy()
