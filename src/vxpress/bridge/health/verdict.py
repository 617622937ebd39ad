"""Turn the numbers of a diagnosis into a verdict: one sentence, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vxpress.core.config import TrainConfig

MIN_INFORMATION = 0.5
MIN_ACTIVE_SHARE = 0.1
# the refined posterior of a cell holds this many times more information than the encoder's: the encoder loses information
MAX_WITHHELD = 1.6
# the encoder's posterior holds this many times more information than the refined one: more than is best for the likelihood
MAX_EXCESS = 1.4
# generalisation gap as a share of the held-out ELBO, and the smallest lower bound with which it counts
MAX_GENERALISATION, MIN_GENERALISATION_LOW = 0.10, 0.03
# the same share for fits with so few cells that more cells would change the model
FEW_CELLS, MAX_GENERALISATION_OF_FEW = 600, 0.057
# share of the held-out objective lost between its peak and the end of training
MAX_FALL = 0.015
MAX_PRIOR_GAP = 0.5
STILL_RISING = 0.001
# a fit with fewer steps is not judged further
MIN_STEPS = 100
MAX_CELLS = 5_000
# below this share of the largest information that these cells can show, the gaps of single cells are computed
SUSPICIOUS_INFORMATION = 0.6
# fits of release 0.1 in which some dimensions were empty say "unused dimensions"
SOUND = ("healthy", "unused dimensions")


def is_sound(verdict: str) -> bool:
    """Return whether a verdict requires no action."""
    return verdict.startswith(SOUND)


def kind_of(verdict: str) -> str:
    """Return the keyword of a verdict: the text before the first colon."""
    return verdict.split(":", 1)[0]


def suspicious(numbers: Mapping[str, Any], train: TrainConfig) -> bool:
    """Return whether the gaps of single cells should be computed: little information in the latent space, or ``beta`` not 1."""
    information, cap = numbers["mutual_information"], numbers["mutual_information_cap"]
    return bool(train.beta != 1.0 or information < SUSPICIOUS_INFORMATION * cap)


def verdict_of(
    numbers: Mapping[str, Any], train: TrainConfig, history: Mapping[str, Any], *, n: int, n_steps: int
) -> str:
    """Return the first verdict that applies: under-trained, collapsed, overfitted, prior gap, healthy."""
    d, k = len(numbers["active"]), int(numbers["active_units"])
    checks = (
        _under_trained(train, history, n=n, n_steps=n_steps),
        _collapsed(numbers, train),
        _overfitted(numbers, train, history, n=n),
    )
    for found in checks:
        if found:
            return found
    gap_low = float(numbers["prior_gap_per_dim_low"])
    if gap_low > MAX_PRIOR_GAP:
        return (
            f"prior gap: the cells differ from the prior by at least {gap_low:.2f} nats per dimension, so cells drawn from the "
            f"prior would not resemble them. {_gap_advice(train)}"
        )
    information = _in_words(numbers["mutual_information"], numbers["mutual_information_cap"], n)
    if k < d:  # more dimensions than these data need, as intended with the default number
        return f"healthy: {k} of {d} dimensions are active and distinguish cells ({information}); the others are empty, which does no harm."
    return f"healthy: all {d} dimensions are active and distinguish cells ({information})."


def _under_trained(train: TrainConfig, history: Mapping[str, Any], *, n: int, n_steps: int) -> str:
    if n_steps < MIN_STEPS:
        return f"under-trained: {n_steps} training steps are too few to judge a fit to {n} cells. Fit again with more epochs (max_epochs=)."
    if train.kl_schedule == "capacity" and float(history["kl_target"][-1]) < 0.99 * train.kl_capacity:
        return (
            f"under-trained: the target of the divergence ended at {float(history['kl_target'][-1]):.2f} of {train.kl_capacity:g} "
            "nats, so the latent space does not have the requested capacity. Fit again with more epochs (max_epochs=) or a "
            "shorter warm-up (kl_warmup=)."
        )
    weight = float(history["kl_weight"][-1])
    if weight < 0.99 * train.beta:
        return (
            f"under-trained: the KL weight ended at {weight:.2f} instead of {train.beta:g}, so the fit does not have the "
            "requested beta. Fit again with more epochs (max_epochs=) or a shorter warm-up (kl_warmup=)."
        )
    if _still_rising(history):
        return (
            "under-trained: the held-out likelihood was still rising when training ended. "
            "Fit again with more epochs (max_epochs=)."
        )
    return ""


def _collapsed(numbers: Mapping[str, Any], train: TrainConfig) -> str:
    information, d, k = float(numbers["mutual_information"]), len(numbers["active"]), int(numbers["active_units"])
    if information < MIN_INFORMATION or k < MIN_ACTIVE_SHARE * d:
        return (
            f"collapsed: the latent space distinguishes cells by {max(information, 0.0):.2f} nats; {k} of {d} dimensions are "
            f"active. Clusters found in it would be noise. Fit again with {_beta_advice(train)}a longer warm-up (kl_warmup=), "
            "free_bits=0.1 or fewer dimensions (n_latent=); cure=True tries these in turn."
        )
    encoder, refined = numbers.get("kl_encoder"), numbers.get("kl_refined")
    if encoder is not None and refined is not None and refined > MAX_WITHHELD * encoder:
        return (
            f"collapsed: the latent space keeps less information per cell ({encoder:.1f} nats) than the decoder could use "
            f"({refined:.1f}), so small populations are merged. Fit again with {_beta_advice(train)}a longer warm-up "
            "(kl_warmup=) or free_bits=0.1; cure=True tries these in turn."
        )
    return ""


def _overfitted(numbers: Mapping[str, Any], train: TrainConfig, history: Mapping[str, Any], *, n: int) -> str:
    encoder, refined = numbers.get("kl_encoder"), numbers.get("kl_refined")
    if encoder is not None and refined is not None and encoder > MAX_EXCESS * refined:
        return (
            f"overfitted: the latent space keeps more information per cell ({encoder:.1f} nats) than is best for the likelihood "
            f"({refined:.1f}). Fit again with {_beta_advice(train)}a smaller or more regular network (n_hidden=, "
            "options=FitOptions(dropout=)); cure=True tries these."
        )
    share, low = (float(numbers.get(f"generalisation_gap_{part}", 0.0)) for part in ("share", "low"))
    most = MAX_GENERALISATION_OF_FEW if n < FEW_CELLS else MAX_GENERALISATION
    if share <= most or low <= MIN_GENERALISATION_LOW:
        fall = _fall(history, train) if "generalisation_gap_share" in numbers else 0.0
        return "" if fall <= MAX_FALL else _peaked(fall)
    return (
        f"overfitted: the model describes held-out cells {100 * share:.0f} % worse than training cells "
        f"({numbers['generalisation_gap']:.0f} nats per cell), so part of the latent space is noise of single cells. Fit again "
        "with more cells, fewer genes (mask_var=) or a smaller or more regular network (n_hidden=, options=FitOptions(dropout=)); "
        "cure=True tries the latter."
    )


def _fall(history: Mapping[str, Any], train: TrainConfig) -> float:
    """Return the share of the held-out objective lost after its peak, counted from the end of the warm-up."""
    objective = np.asarray(history["objective_validation"], dtype=float)
    rising = np.flatnonzero(np.asarray(history["kl_weight"], dtype=float) < 0.99 * train.beta)
    warm = objective[rising[-1] + 1 if len(rising) else 0 :]
    if len(warm) < 2 or not np.isfinite(warm).all():
        return 0.0
    return float((warm.max() - warm[-1]) / max(abs(warm.max()), 1e-12))


def _peaked(fall: float) -> str:
    return (
        f"overfitted: the model described held-out cells best early in training and {100 * fall:.1f} % worse at the end, so the "
        "network learns the noise of its training cells faster than what they have in common. The best state is kept. A smaller "
        "or more regular network (n_hidden=, options=FitOptions(dropout=)) or fewer genes (mask_var=) would be better; "
        "cure=True tries the former."
    )


def _in_words(information: float, cap: float, n: int) -> str:
    """Describe the information; near the log of the number of cells, which no estimate exceeds, it is a lower bound only."""
    return (
        f"at least {information:.1f} nats, all that {n} cells can show"
        if information > cap - 0.5
        else f"{information:.1f} nats"
    )


def _gap_advice(train: TrainConfig) -> str:
    """Name the settings that caused the gap, if any did, and the call that closes it in any case."""
    learn = "earn a prior from the cells: vx.tl.fit_prior(adata)."
    causes = (_beta_advice(train) if train.beta < 1.0 else "") + ("free_bits=0, " if train.free_bits > 0 else "")
    return f"Fit again with {causes}or l{learn}" if causes else f"L{learn}"


def _beta_advice(train: TrainConfig) -> str:
    return "" if train.beta == 1.0 else f"beta=1 instead of {train.beta:g}, "


def _still_rising(history: Mapping[str, Any]) -> bool:
    """Return whether the last tenth of the epochs beats all earlier ones by more than 0.1 % at a high learning rate."""
    elbo = np.asarray(history["objective_validation"], dtype=float)
    lr = np.asarray(history["lr"], dtype=float)
    if len(elbo) < 2 or not np.isfinite(elbo).all() or lr[-1] < 0.1 * lr.max():
        return False
    tail = max(1, len(elbo) // 10)
    before, last = elbo[:-tail].max(), elbo[-tail:].max()
    return bool(last - before > STILL_RISING * abs(before))
