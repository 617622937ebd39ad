"""Choose the count distribution by the held-out cells of a fit: ``likelihood="auto"``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from scanpy import logging as logg
from torch import Tensor

from vxpress.bridge.fits.fit_arguments import CANDIDATES
from vxpress.bridge.fits.runner import Fitted, Runner
from vxpress.core.inference.comparison import Scores, difference
from vxpress.core.inference.importance import Bound, log_likelihoods
from vxpress.core.isolation import after_interrupt
from vxpress.core.progress import stage

N_SAMPLES, N_FEWER = 1_000, 100
MAX_CELLS, MIN_CELLS = 1_000, 200
_UNDECIDED = f"likelihood='auto' was interrupted: {CANDIDATES[0]} is kept without a comparison."


def choose_likelihood(runner: Runner, first: Fitted) -> tuple[Fitted, dict[str, Any]]:
    """Return the fit that is kept and the record of the choice; ``first`` is the fit of the simplest distribution.

    The other distributions are fitted to the same cells with the same settings and seeds as ``first``. An interrupt ends
    the choice and the fit: the simplest distribution is kept, and there is no record.
    """
    try:
        if not first.outcome.interrupted:
            return _choose(runner, first)
    except KeyboardInterrupt:
        after_interrupt()
        first.outcome.interrupt()
    logg.warning(_UNDECIDED)
    return first, {}


def _judged(runner: Runner, fitted: Fitted, rows: Tensor) -> tuple[Bound, ...]:
    return log_likelihoods(fitted.model, runner.cells, (N_FEWER, N_SAMPLES), seed=0, rows=rows)


def _choose(runner: Runner, first: Fitted) -> tuple[Fitted, dict[str, Any]]:
    rows = runner.validation_rows
    if len(rows) < MIN_CELLS:
        logg.warning(
            f"likelihood='auto' has {len(rows)} held-out cells to choose by; {MIN_CELLS} or more are needed to distinguish "
            "distributions well. The simpler distribution, nb, is kept unless the difference is large. Increase "
            "validation_fraction=, or name the likelihood."
        )
    if len(rows) > MAX_CELLS:
        # with a fixed seed, so that a generator given as rng= is used as in a fit of one distribution
        rows = rows[np.random.default_rng(0).permutation(len(rows))[:MAX_CELLS]]
    fits, scores = [], []
    for distribution in CANDIDATES:
        fitted = first
        if distribution != CANDIDATES[0]:
            logg.info(f"    likelihood={distribution!r}")
            with stage(f"likelihood={distribution!r}"):
                fitted = runner.fit(replace(first.model.config, likelihood=distribution), first.train)
        if fitted.outcome.interrupted:
            raise KeyboardInterrupt
        with stage(f"judging likelihood={distribution!r}"):
            few, many = runner.world.once(partial(_judged, runner, fitted, rows))
        fits.append(fitted)
        scores.append(Scores(many.log_likelihood_n[None], few.log_likelihood_n[None]))
    simple, rich = scores
    gain = difference(rich, simple)
    chosen = int(gain.decided and gain.estimate > 0)
    record: dict[str, Any] = {
        "likelihood": CANDIDATES[chosen],
        "candidates": np.array(CANDIDATES, dtype=object),
        "log_likelihood": np.array([s.mean for s in scores]),
        "log_likelihood_fewer": np.array([s.fewer for s in scores]),
        "difference": gain.estimate,
        "ci_low": gain.low,
        "ci_high": gain.high,
        "gap": gain.gap,
        "n_cells": len(rows),
        "n_samples": N_SAMPLES,
        "n_samples_fewer": N_FEWER,
    }
    why = "decidedly better" if chosen else "not decidedly better: the simpler distribution is kept"
    logg.info(
        f"    likelihood: {CANDIDATES[chosen]} (zinb - nb {gain.estimate:+.2f} nats per held-out cell, interval {gain.low:+.2f} to "
        f"{gain.high:+.2f}, looseness of the bounds {gain.gap:.2f}; zinb is {why})"
    )
    return fits[chosen], record
