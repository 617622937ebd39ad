"""Learn a prior from the posteriors of a fit, judge it on held-out cells, and replace the prior of the fit."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from vxpress._names import find_name
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.read.columns import get_categories
from vxpress.core.config import PriorConfig, PriorName
from vxpress.core.extension.trial import try_prior
from vxpress.core.model import VAE
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors import PRIORS, Prior, drawn_log_prob, sampled_kl
from vxpress.core.priors.fitting import build_prior, learn
from vxpress.core.progress import stage

# number of points at which a prior is judged, and largest number of draws per cell
JUDGED_POINTS, MAX_DRAWS = 4_000, 10
# the same for a prior learned during the fit, which has to be judged quickly
JOINT_POINTS = 1_000
# a prior is kept if it gains more than this many standard errors
MARGIN = 1.0


@dataclass(frozen=True)
class Conditions:
    """Condition of every cell: codes from 0 into ``names``; cells without a value have the next code."""

    key: str
    names: tuple[str, ...]
    code_n: np.ndarray
    unlabelled: bool

    @property
    def n(self) -> int:
        """Number of conditions that a prior knows."""
        return len(self.names) + self.unlabelled

    @classmethod
    def read(cls, obs: pd.DataFrame, key: str, train_n: np.ndarray, unlabeled: str | None = None) -> Conditions:
        """Read conditions from a column that may have missing values; the category ``unlabeled`` stands for one, too.

        The conditions are the values of training cells (rows ``train_n``).
        """
        found = get_categories(obs, key, argument="condition_key", gaps=True)
        names = found.names
        without = None if unlabeled is None else find_name(unlabeled, names)
        codes = found.code_n if without is None else np.where(found.code_n == names.index(without), -1, found.code_n)
        met = np.unique(codes[train_n])
        met = met[met >= 0]
        if len(met) == 0:
            msg = f"condition_key={key!r}: no training cell has a value in obs[{key!r}]."
            raise ValueError(msg)
        place = np.full(len(names) + 1, -1, dtype=np.int64)
        place[met] = np.arange(len(met))
        codes = place[codes]
        unlabelled = bool((codes[train_n] < 0).any())
        return cls(key, tuple(names[c] for c in met), np.where(codes < 0, len(met), codes), unlabelled)

    def record(self) -> dict[str, Any]:
        """Return the record of the conditions in a fit."""
        return {
            "condition_key": self.key,
            "categories": np.array(self.names, dtype=object),
            "unlabelled": self.unlabelled,
        }


@dataclass(frozen=True)
class Task:
    """Posteriors of the cells in adata (n, d), and which of them are used for learning and for judging."""

    mean_nd: np.ndarray
    var_nd: np.ndarray
    train_n: np.ndarray
    validation_n: np.ndarray
    conditions: Conditions | None

    def posteriors(self, rows: np.ndarray, device: torch.device) -> DiagonalNormal:
        """Return the posteriors of some rows."""
        mean, var = (torch.from_numpy(part[rows]).to(device) for part in (self.mean_nd, self.var_nd))
        return DiagonalNormal(mean, var.sqrt())


@dataclass(frozen=True)
class Judgement:
    """Mean log p(z) of held-out cells under two priors at the same draws, in nats, with standard errors over cells.

    ``kl`` is the mean divergence from the new prior, ``kl_se`` its standard error due to sampling.
    """

    before: float
    after: float
    gain: float
    gain_se: float
    kl: float
    kl_se: float
    n_cells: int
    n_draws: int

    @property
    def better(self) -> bool:
        """Whether the gain of the new prior exceeds chance."""
        return bool(np.isfinite(self.gain) and self.gain > MARGIN * self.gain_se)


def judge(old: Prior, new: Prior, q: DiagonalNormal, seed: int) -> Judgement:
    """Evaluate both priors, without conditions, at the same draws of posteriors that neither was fitted to."""
    n_draws = int(np.clip(JUDGED_POINTS // len(q), 1, MAX_DRAWS))
    z_knd, log_new_kn = drawn_log_prob(new, q, n_draws, seed)
    _, log_old_kn = drawn_log_prob(old, q, n_draws, seed)
    found = log_old_kn, log_new_kn, q.log_prob(z_knd) - log_new_kn
    before_kn, after_kn, kl_kn = (part.double().cpu().numpy() for part in found)
    gain_n = (after_kn - before_kn).mean(0)
    n = len(gain_n)
    kl_se = np.sqrt(kl_kn.var(0, ddof=1).sum() / n_draws) / n if n_draws > 1 else np.nan
    return Judgement(
        float(before_kn.mean()),
        float(after_kn.mean()),
        float(gain_n.mean()),
        float(gain_n.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan"),
        float(kl_kn.mean()),
        float(kl_se),
        n,
        n_draws,
    )


def joint_record(prior: Prior, q: DiagonalNormal, seed: int = 0) -> dict[str, Any]:
    """Return the record of a prior learned during the fit: the divergence of held-out posteriors from it.

    Empty if the divergence has a closed form, because it need not be sampled.
    """
    if prior.analytic:
        return {}
    q = q[torch.arange(min(len(q), JOINT_POINTS // 2), device=q.loc.device)]
    n_draws = int(np.clip(JOINT_POINTS // len(q), 2, MAX_DRAWS))
    found = sampled_kl(prior, q, n_draws, seed=seed)
    return {
        "kind": prior.config.name,
        "kl": found.mean,
        "kl_se": found.se,
        "n_cells": len(q),
        "n_draws": n_draws,
    }


def check_prior(kind: object) -> None:
    """Raise ``ValueError`` unless there is a prior of this name."""
    PRIORS.check(kind)


def learn_prior(
    fit: Fit,
    task: Task,
    kind: PriorName,
    *,
    n_components: int | None,
    n_steps: int | None,
    device: torch.device,
    seed: int,
) -> tuple[Fit, dict[str, Any], Judgement]:
    """Return the fit with a prior of this kind in place of its own, the record of the prior, and how it was judged."""
    model = fit.model.to(device).eval()
    new, record, found = trained_prior(model, task, kind, n_components=n_components, n_steps=n_steps, seed=seed)
    model.cpu()
    if not found.better:
        return fit, record, found
    put_prior(model, new)
    params = replace(fit.params, model=model.config)
    return replace(fit, params=params, model=model, prior=record), record, found


def put_prior(model: VAE, prior: Prior) -> None:
    """Give a model another prior."""
    model.state.prior = prior.cpu()
    model.config = replace(model.config, prior=prior.config)


def trained_prior(
    model: VAE, task: Task, kind: PriorName, *, n_components: int | None = None, n_steps: int | None = None, seed: int
) -> tuple[Prior, dict[str, Any], Judgement]:
    """Learn a prior of this kind for a model, on its device; return it with its record and how it was judged."""
    device = model.decoder.location.weight.device
    conditions = task.conditions
    if kind == "label_mixture":
        if conditions is None:
            msg = "prior='label_mixture' has components for each label: name the column of the labels, condition_key='cell_type'."
            raise ValueError(msg)
        # a condition for cells of none of the labels, also if all cells have one
        conditions = replace(conditions, unlabelled=True)
    config = _config(kind, n_components, 0 if conditions is None else conditions.n, len(task.train_n))
    new = build_prior(config, model.config.n_latent, seed).to(device)
    try_prior(kind, new)
    code_n = None if conditions is None else torch.from_numpy(conditions.code_n[task.train_n]).to(device)
    learned = learn(new, task.posteriors(task.train_n, device), code_n, n_steps=n_steps, seed=seed)
    with stage("judging the prior"):
        found = judge(model.prior, new, task.posteriors(task.validation_n, device), seed)
    record = {
        "kind": kind,
        "n_steps": learned.n_steps,
        "best_step": learned.best_step,
        "log_prob_before": found.before,
        "log_prob_after": found.after,
        "gain": found.gain,
        "gain_se": found.gain_se,
        "kl": found.kl,
        "kl_se": found.kl_se,
        "n_cells": found.n_cells,
        "n_draws": found.n_draws,
    }
    record |= {} if conditions is None else conditions.record()
    return new, record, found


def _config(kind: PriorName, n_components: int | None, n_conditions: int, n_cells: int) -> PriorConfig:
    """Set the number of components: as requested, and at least one per condition."""
    most, cells_each = PRIORS[kind].alone_components
    n = max(min(most, max(1, n_cells // cells_each)), 4 * n_conditions) if n_components is None else n_components
    names = {f.name for f in fields(PRIORS[kind].Options)}
    of_prior = {"n_components": max(n, n_conditions)} if "n_components" in names else {}
    return PriorConfig(kind, n_conditions, of_prior)
