"""Diagnose a fit, in numbers and in one sentence.

The diagnosis uses a single fit and its cells, without comparison to other fits. The thresholds were set on the tuning sets of
``benchmarks/_sets.py``; see ``docs/guides/diagnose.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vxpress.bridge.health.verdict import MAX_CELLS, MIN_STEPS, suspicious, verdict_of
from vxpress.core.blas import one_blas_thread
from vxpress.core.blocks import Z
from vxpress.core.config import TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Source
from vxpress.core.inference.gaps import gaps
from vxpress.core.inference.generalisation import generalisation
from vxpress.core.inference.posterior import Encoded
from vxpress.core.inference.response import decoder_response
from vxpress.core.model import VAE
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors import SampledKL, sampled_kl
from vxpress.core.progress import stage
from vxpress.metrics import active_units, kl_per_dimension, mutual_information, prior_gap

KL_ACTIVE = 0.01
# draws to average the divergence from a prior without a closed form over, and number of points if its density is costly
KL_DRAWS, KL_POINTS = 10, 1_000
# cells whose own posterior is optimised if only the verdict depends on it
N_PROBED = 32
# most cells over which means are computed
MAX_DIAGNOSED = 200_000
# numbers that need counts: those that depend on the prior, and all
OF_THE_PRIOR = ("elbo", "amortisation_gap", "inference_gap")
FROM_COUNTS = (
    *OF_THE_PRIOR,
    "kl_encoder",
    "kl_refined",
    "generalisation_gap",
    "generalisation_gap_share",
    "generalisation_gap_low",
    "n_probed",
)


@dataclass(frozen=True)
class Decoding:
    """The model of a posterior, the covariates of its cells and, if available, their counts.

    ``train_n`` are the rows of the cells that the model was trained on.
    """

    model: VAE
    covariates: Covariates
    cells: Source | None = None
    train_n: np.ndarray | None = None


@one_blas_thread()
def diagnose(
    encoded: Encoded,
    held_out_n: np.ndarray,
    train: TrainConfig,
    history: Mapping[str, Any],
    *,
    n_steps: int = MIN_STEPS,
    decoding: Decoding | None = None,
    n_probed: int | None = None,
    known: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute the numbers and the verdict; ``held_out_n`` marks validation cells (without any, all cells are judged).

    The gaps of single cells cost about as much as an epoch. They are computed on ``n_probed`` cells. If that is None, they
    are computed on a few cells, and only if the cheaper numbers look suspicious. ``known`` is an earlier diagnosis of the
    same model; its numbers that need counts are kept if there are no counts now.
    """
    n_cells, every_judged = (
        len(encoded),
        np.flatnonzero(held_out_n if held_out_n.any() else np.ones(len(encoded), bool)),
    )
    some = _some(held_out_n)
    covariates = None if decoding is None else decoding.covariates
    if some is not None:
        encoded, held_out_n = encoded[some], held_out_n[some]
        covariates = None if covariates is None else covariates[torch.from_numpy(some)]
    mean_nd, var_nd = encoded.mean_nd, encoded.var_nd
    judged = held_out_n if held_out_n.any() else np.ones(len(mean_nd), dtype=bool)
    model = None if decoding is None else decoding.model
    analytic = model is None or model.prior.analytic
    active = active_units(mean_nd)
    information = mutual_information(mean_nd, var_nd, n_cells=MAX_CELLS)
    gap, gap_low = prior_gap(mean_nd, var_nd, held_out_n, log_prior=None if model is None else _log_prior(model))
    d = mean_nd.shape[1]
    kl_per_dim = kl_per_dimension(mean_nd[judged], var_nd[judged])
    kl, kl_se = float(kl_per_dim.sum()), 0.0
    if not analytic and model is not None:
        sampled = _sampled_kl(model, mean_nd[judged], var_nd[judged])
        kl, kl_se = sampled.mean, sampled.se
        kl_per_dim = kl_per_dimension(mean_nd[judged], var_nd[judged], *_aggregate(mean_nd, var_nd))
    numbers: dict[str, Any] = {
        "kl_per_dim": kl_per_dim,
        "kl": kl,
        "kl_se": kl_se,
        "active": active,
        "active_units": int(active.sum()),
        "active_units_kl": int((kl_per_dim > KL_ACTIVE).sum()),
        "mutual_information": information,
        "mutual_information_cap": float(np.log(min(n_cells, MAX_CELLS))),
        "prior_gap_per_dim": gap / d,
        "prior_gap_per_dim_low": gap_low / d,
    }
    if decoding is not None and covariates is not None:
        numbers["decoder_response"] = decoder_response(decoding.model, encoded, covariates)
        numbers |= _kl_of_blocks(decoding.model, covariates, encoded, np.flatnonzero(judged), seed)
    if decoding is not None and decoding.cells is not None:
        if n_probed is None:
            n_probed = N_PROBED if suspicious(numbers, train) else 0
        with stage("judging the fit"):
            numbers |= _from_counts(decoding, every_judged, n_probed, seed)
    elif known is not None:
        numbers |= {name: known[name] for name in FROM_COUNTS if name in known}
    return numbers | {"verdict": verdict_of(numbers, train, history, n=n_cells, n_steps=n_steps)}


def _some(held_out_n: np.ndarray) -> np.ndarray | None:
    """Choose as many held-out and other cells as suffice for means over cells; None for all."""
    if len(held_out_n) <= MAX_DIAGNOSED:
        return None
    rng, parts = np.random.default_rng(0), (np.flatnonzero(held_out_n), np.flatnonzero(~held_out_n))
    n_held_out = min(len(parts[0]), max(MAX_DIAGNOSED // 2, MAX_DIAGNOSED - len(parts[1])))
    sizes = n_held_out, MAX_DIAGNOSED - n_held_out
    return np.sort(np.concatenate([rng.choice(p, k, replace=False) for p, k in zip(parts, sizes, strict=True)]))


def _log_prior(model: VAE) -> Any:
    @torch.no_grad()
    def log_prior(z_md: np.ndarray) -> np.ndarray:
        return np.asarray(model.prior.log_prob(torch.from_numpy(z_md.astype(np.float32))).double().numpy())

    return log_prior


def _aggregate(mean_nd: np.ndarray, var_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and variance of the aggregate posterior in each dimension."""
    mean_nd, var_nd = mean_nd.astype(np.float64), var_nd.astype(np.float64)
    return mean_nd.mean(0), mean_nd.var(0) + var_nd.mean(0)


def _sampled_kl(model: VAE, mean_nd: np.ndarray, var_nd: np.ndarray) -> SampledKL:
    """Estimate the divergence of posteriors from a prior without a closed form; on a part of them if its density is costly."""
    most = len(mean_nd) if model.prior.cheap else KL_POINTS
    rows = np.unique(np.linspace(0, len(mean_nd) - 1, min(len(mean_nd), most)).astype(int))
    n_draws = KL_DRAWS if model.prior.cheap else max(2, min(KL_DRAWS, KL_POINTS // len(rows)))
    q = DiagonalNormal(torch.from_numpy(mean_nd[rows]), torch.from_numpy(var_nd[rows]).sqrt())
    return sampled_kl(model.prior, q, n_draws)


@torch.no_grad()
def _kl_of_blocks(
    model: VAE, covariates: Covariates, encoded: Encoded, judged: np.ndarray, seed: int
) -> dict[str, float]:
    """Compute the mean divergence of the latent blocks other than z that the history records, by the same names."""
    covariates, found = covariates[torch.from_numpy(judged)], {}
    posterior = encoded[judged].posterior(model)
    for name, block in model.blocks.items():
        column = block.recorded_as()
        if name in posterior and name != Z and column is not None:
            generator = torch.Generator().manual_seed(seed)
            found[column] = float(block.mean_kl(posterior[name], covariates, KL_DRAWS, generator).double().mean())
    return found


def _from_counts(decoding: Decoding, judged: np.ndarray, n_probed: int, seed: int) -> dict[str, float | int]:
    """Compute the numbers that need counts in addition to the posterior."""
    model, cells = decoding.model, decoding.cells
    assert cells is not None  # noqa: S101 - checked by the caller
    found: dict[str, float | int] = {}
    if decoding.train_n is not None and len(decoding.train_n) < len(cells):
        general = generalisation(model, cells, decoding.train_n, judged, seed=seed)
        if general is not None:
            found |= {
                "generalisation_gap": general.gap,
                "generalisation_gap_share": general.share,
                "generalisation_gap_low": general.share_low,
            }
    if n_probed:
        rows = np.sort(np.random.default_rng(seed).permutation(judged)[:n_probed])
        probed = gaps(model, cells.take(torch.from_numpy(rows)), seed=seed)
        found |= {
            "elbo": float(probed.elbo_n.mean()),
            "amortisation_gap": probed.amortisation,
            "inference_gap": probed.inference,
            "kl_encoder": float(probed.kl_n.mean()),
            "kl_refined": float(probed.refined_kl_n.mean()),
            "n_probed": len(rows),
        }
    return found
