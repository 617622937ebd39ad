"""Replace the prior of a stored fit: the cells to learn from, and what is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
from anndata import AnnData
from scanpy import logging as logg

from vxpress._keys import Keys
from vxpress.bridge.fits.block_slots import add_blocks
from vxpress.bridge.fits.ensemble import copy_ensemble
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.results import Results, is_fit
from vxpress.bridge.fits.seal import NAME
from vxpress.bridge.fits.stored_cells import StoredCells, stored_posterior
from vxpress.bridge.fits.training_cells import learning_split
from vxpress.bridge.health.diagnose_fit import diagnose_new_prior
from vxpress.bridge.health.learn_prior import Conditions, Judgement, Task
from vxpress.bridge.read.columns import find_column


def task_of(adata: AnnData, stored: StoredCells, condition_key: str | None) -> Task:
    """Return the cells to learn from and to evaluate on, after checking them."""
    train_n, validation_n = learning_split(adata, stored.keys)
    params = stored.fit.params
    unlabeled = params.unlabeled_category if condition_key == params.labels_key else None
    conditions = None if condition_key is None else Conditions.read(adata.obs, condition_key, train_n, unlabeled)
    return Task(stored.encoded.mean_nd, stored.encoded.var_nd, train_n, validation_n, conditions)


def results_with_prior(
    adata: AnnData, stored: StoredCells, fit: Fit, task: Task, *, record: dict[str, Any], to: Keys
) -> Results:
    """Return the fit with its new prior and diagnosis and, under another name, what else belongs to a fit."""
    fit = replace(fit, prior=record, diagnostics=diagnose_new_prior(stored, fit, task.validation_n))
    results = Results(uns={to.uns: fit.to_uns()})
    keys = stored.keys
    if to != keys:
        add_blocks(results, fit.model, stored.encoded, to)
        copy_ensemble(results, adata, stored, to)
        if fit.params.model.optional:
            kept = stored_posterior(adata, keys.kept(), fit.model.decoded_blocks)
            add_blocks(results, fit.model, kept, to.kept())
        results.obs = {to.split: pd.Categorical(find_column(adata.obs, keys.split))}
        if keys.library in adata.obs:
            results.obs[to.library] = find_column(adata.obs, keys.library).to_numpy()
        # layers of an earlier fit with that name
        results.stale = [("layers", name) for name in (to.normalized, *to.bounds())]
        results.drop_earlier(adata, to)
    return results


def results_of_refusal(adata: AnnData, stored: StoredCells, record: dict[str, Any]) -> Results:
    """Return the unchanged fit with a record of the prior that was not kept."""
    name = stored.keys.uns
    here = adata.uns.get(name)
    if not is_fit(here) or Fit.from_uns(here).to_uns()[NAME] != stored.fit.to_uns()[NAME]:
        return Results()  # the fit is in another place, which is not written to
    return Results(uns={name: replace(stored.fit, prior={**stored.fit.prior, "refused": record}).to_uns()})


def report(prior: str, found: Judgement) -> None:
    """Log how the new prior was judged."""
    where = f"{found.after:.2f} nats against {found.before:.2f} (gain {found.gain:+.2f} +- {found.gain_se:.2f})"
    if found.better:
        logg.info(f"    log p(z) of {found.n_cells} validation cells: {where}")
        return
    logg.warning(
        f"The new prior ({prior}) is not better and was not kept: the fit stays as it was. Mean log p(z) of "
        f"{found.n_cells} validation cells: {where}."
    )
