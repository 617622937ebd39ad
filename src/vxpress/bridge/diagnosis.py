"""The health of a fit, in numbers and in one sentence.

Thresholds: fewer than 10 % of the dimensions active or less than half a nat of information is a collapse; a gap
between prior and aggregate posterior above 0.3 nats a dimension is a prior gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vxpress.core.config import TrainConfig
from vxpress.metrics import active_units, kl_per_dimension, log_aggregate_posterior, mutual_information

MIN_INFORMATION = 0.5
MIN_ACTIVE_SHARE = 0.1
MAX_PRIOR_GAP = 0.3
STILL_RISING = 0.001
# a fit that was cut this short is not judged further
MIN_STEPS = 100
MAX_CELLS = 5_000


def diagnose(
    mean_nd: np.ndarray,
    var_nd: np.ndarray,
    held_out_n: np.ndarray,
    train: TrainConfig,
    history: Mapping[str, Any],
    *,
    n_steps: int = MIN_STEPS,
) -> dict[str, Any]:
    """Numbers and verdict; ``held_out_n`` marks validation cells (all cells are judged where there is none)."""
    judged = held_out_n if held_out_n.any() else np.ones(len(mean_nd), dtype=bool)
    active = active_units(mean_nd)
    information = mutual_information(mean_nd, var_nd, n_cells=MAX_CELLS)
    gap, gap_low = _prior_gap(mean_nd, var_nd, judged)
    numbers = {
        "kl_per_dim": kl_per_dimension(mean_nd[judged], var_nd[judged]),
        "active": active,
        "active_units": int(active.sum()),
        "mutual_information": information,
        "mutual_information_cap": float(np.log(min(len(mean_nd), MAX_CELLS))),
        "prior_gap_per_dim": gap / mean_nd.shape[1],
    }
    gap_low /= mean_nd.shape[1]
    if n_steps < MIN_STEPS:
        verdict = f"under-trained: {n_steps} steps say little about {len(mean_nd)} cells. Fit again with more epochs (max_epochs=)."
    else:
        verdict = _verdict(active, information, gap_low, train, history, n=len(mean_nd))
    return numbers | {"verdict": verdict}


def _prior_gap(mean_nd: np.ndarray, var_nd: np.ndarray, judged: np.ndarray) -> tuple[float, float]:
    """Mean of log q(z) - log p(z) over draws of the judged cells, and its lower 95 % bound.

    q(z) is the mean posterior of the other cells, which puts too little mass near a cell it has not seen: the
    estimate errs on the low side and raises no false alarm.
    """
    rng = np.random.default_rng(0)
    if judged.all():
        # a cell lies in the middle of its own posterior: one half is judged by the other
        judged = np.isin(np.arange(len(judged)), rng.permutation(len(judged))[: max(1, len(judged) // 2)])
    others = ~judged if (~judged).any() else judged
    rows = rng.permutation(np.flatnonzero(others))[:MAX_CELLS]
    at = rng.permutation(np.flatnonzero(judged))[:MAX_CELLS]
    z_md = mean_nd[at] + np.sqrt(var_nd[at]) * rng.standard_normal(mean_nd[at].shape)
    log_p = -0.5 * (z_md**2 + np.log(2 * np.pi)).sum(1)
    ratio = log_aggregate_posterior(z_md, mean_nd[rows], var_nd[rows]) - log_p
    return float(ratio.mean()), float(ratio.mean() - 1.96 * ratio.std() / np.sqrt(len(ratio)))


def _verdict(
    active: np.ndarray, information: float, gap_low: float, train: TrainConfig, history: Mapping[str, Any], *, n: int
) -> str:
    """The first that holds of: under-trained, collapsed, prior gap, unused dimensions, healthy."""
    d, k = len(active), int(active.sum())
    weight = float(history["kl_weight"][-1])
    if "kl_target" in history and float(history["kl_target"][-1]) < 0.99 * train.kl_capacity:
        return (
            f"under-trained: the target of the divergence ended at {float(history['kl_target'][-1]):.2f} of {train.kl_capacity:g} nats, so the "
            "latent space is not the one asked for. Fit again with more epochs (max_epochs=) or a shorter warm-up (kl_warmup=)."
        )
    if weight < 0.99 * train.beta:
        return (
            f"under-trained: the KL weight ended at {weight:.2f} instead of {train.beta:g}, so the latent space is not the "
            "one asked for. Fit again with more epochs (max_epochs=) or a shorter warm-up (kl_warmup=)."
        )
    if _still_rising(history):
        return (
            "under-trained: the held-out likelihood was still rising when the budget ran out. "
            "Fit again with more epochs (max_epochs=)."
        )
    if information < MIN_INFORMATION or k < MIN_ACTIVE_SHARE * d:
        return (
            f"collapsed: the latent tells cells apart by {information:.2f} nats with {k} of {d} dimensions active; clusters "
            f"on it would be noise. Fit again with {_beta_advice(train)}more epochs (max_epochs=), a longer warm-up "
            "(kl_warmup=) or fewer dimensions (n_latent=)."
        )
    if gap_low > MAX_PRIOR_GAP:
        return (
            f"prior gap: the cells lie {gap_low:.2f} nats a dimension away from the prior: "
            "cells drawn from the prior would not look like these. Should that matter, fit again with "
            f"{_beta_advice(train)}more epochs (max_epochs=)."
        )
    if k < d:
        return f"unused dimensions: {d - k} of {d} carry nothing, which harms nothing; n_latent={max(k, 1)} would do."
    return f"healthy: all {d} dimensions are active and tell cells apart ({_in_words(information, n)})."


def _in_words(information: float, n: int) -> str:
    """The estimate cannot exceed the log of the number of cells, and then says only that."""
    cap = float(np.log(min(n, MAX_CELLS)))
    return (
        f"at least {information:.1f} nats, all that {n} cells can show"
        if information > cap - 0.5
        else f"{information:.1f} nats"
    )


def _beta_advice(train: TrainConfig) -> str:
    return "" if train.beta == 1.0 else f"beta=1 instead of {train.beta:g}, "


def _still_rising(history: Mapping[str, Any]) -> bool:
    """Whether the last tenth of the epochs beat all before it by more than 0.1 %, at a learning rate still high."""
    elbo = np.asarray(history["objective_validation"], dtype=float)
    lr = np.asarray(history["lr"], dtype=float)
    if len(elbo) < 2 or not np.isfinite(elbo).all() or lr[-1] < 0.1 * lr.max():
        return False
    tail = max(1, len(elbo) // 10)
    before, last = elbo[:-tail].max(), elbo[-tail:].max()
    return bool(last - before > STILL_RISING * abs(before))
