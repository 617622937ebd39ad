"""Fit a model to the cells of an AnnData: read, train, diagnose, cure, choose, and write the results."""

from __future__ import annotations

from dataclasses import fields, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scanpy import logging as logg

from vxpress._keys import Keys
from vxpress._signals import Stopped
from vxpress.bridge.ask.decoded import denoised_matrix
from vxpress.bridge.fits.block_slots import add_posterior
from vxpress.bridge.fits.checkpoints import Checkpoints, stored_on_request
from vxpress.bridge.fits.ensemble import add_ensemble, fit_stage, further_fits
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.fit_arguments import CheckedArguments, model_config_of, train_config_of
from vxpress.bridge.fits.params import Params
from vxpress.bridge.fits.processes import agreed_generators, announce
from vxpress.bridge.fits.results import Results, announce_replaced, check_free, own
from vxpress.bridge.fits.runner import Fitted, Runner, finish
from vxpress.bridge.fits.store_saving import array_for
from vxpress.bridge.health.choice import choose_likelihood
from vxpress.bridge.health.covariates import warn_of_covariates
from vxpress.bridge.health.cure import cure
from vxpress.bridge.health.diagnose_fit import diagnose_trained, judge_covariates
from vxpress.bridge.health.learn_labels import learn_labels
from vxpress.bridge.health.learn_prior import joint_record
from vxpress.bridge.health.verdict import is_sound
from vxpress.bridge.read.modalities import core_name
from vxpress.bridge.read.prepare import Prepared, Recorded, prepare
from vxpress.core import rule
from vxpress.core.inference.posterior import Encoded
from vxpress.core.normal import DiagonalNormal
from vxpress.core.settings import FitOptions
from vxpress.core.training import INTERRUPTED, TrainingError

# what users of the call also need
__all__ = ["FitOptions", "Stopped", "TrainingError", "fit"]

MAX_DENSE_BYTES = 1_000_000_000


def fit(adata: AnnData, checked: CheckedArguments, keys: Keys, *, copy: bool) -> tuple[AnnData, Results]:
    """Fit a model and write it; returns the AnnData that was written to, a copy with ``copy``, and what was written.

    With ``checkpoint_dir``, :class:`Stopped` is raised if the process is asked to end.
    """
    if checked.checkpointing is None:
        return _fit(adata, checked, keys, None, copy=copy)
    try:
        with stored_on_request(checked.checkpointing) as checkpoints:
            return _fit(adata, checked, keys, checkpoints, copy=copy)
    except Stopped as stopped:
        logg.warning(f"The fit was {stopped}.")
        raise


def _fit(
    adata: AnnData, checked: CheckedArguments, keys: Keys, checkpoints: Checkpoints | None, *, copy: bool
) -> tuple[AnnData, Results]:
    settings = checked.settings
    announce()
    rng, split_rng = agreed_generators(checked.rng, checked.split_rng)
    checked = replace(checked, rng=rng, split_rng=split_rng)
    prepared = prepare(
        adata,
        checked,
        library_of_modelled_genes=settings.library_of_modelled_genes,
        screen_covariates=settings.screen_covariates,
    )
    logg.info(f"    library: {prepared.library.source}")
    runner = Runner(
        prepared,
        rng=checked.rng,
        device=checked.device,
        source=checked.settings.source,
        describe=lambda rows: f"cells {list(adata.obs_names[rows.cpu().numpy()[:5]])}",
        checkpoints=checkpoints,
    )
    config = model_config_of(checked, prepared)
    check_free(
        adata,
        keys,
        config.blocks,
        several=checked.n_fits > 1,
        kept=bool(config.optional),
        perturbed=bool(config.n_perturbations),
    )
    with fit_stage(0, checked.n_fits):
        fitted = runner.fit(config, train_config_of(checked, prepared))
    fitted, diagnosis, choice = _improved(runner, fitted, checked, adata.obs)
    finish(fitted.outcome, lambda: runner.read_out(fitted))
    fitted.model.cpu()
    further = further_fits(runner, fitted, checked.n_fits)
    labels = finish(fitted.outcome, lambda: learn_labels(prepared, (fitted, *further), runner.label_seed))
    if labels is not None and labels.prior is not None:
        # of the new prior; the covariates and the cure are those of the networks, which are the same
        new = finish(fitted.outcome, lambda: runner.world.once(lambda: diagnose_trained(runner, fitted)))
        diagnosis = {**diagnosis, **new}

    def complete() -> tuple[AnnData, Results]:
        params = _params(checked, prepared, fitted)
        found = _as_fit(params, prepared, fitted, adata, diagnosis)
        found = replace(found, choice=choice, members=tuple(each.model for each in further))
        if labels is not None:
            found = replace(found, labels=labels.model, prior=labels.prior or found.prior)
        results = _results(found, prepared, fitted, keys, adata, denoised=checked.denoised)
        _report(found)
        target = own(adata, copy=copy)
        announce_replaced(target, keys)
        add_ensemble(results, keys, [each.views for each in (fitted, *further)])
        results.drop_earlier(target, keys)
        results.write(target)
        return target, results

    return finish(fitted.outcome, complete)


def _improved(
    runner: Runner, fitted: Fitted, checked: CheckedArguments, obs: pd.DataFrame
) -> tuple[Fitted, dict[str, Any], dict[str, Any]]:
    """Return the fit after its cure and the choice of its likelihood, if requested, its diagnosis, and the record of the choice."""

    def diagnose_of(tried: Fitted) -> dict[str, Any]:
        return runner.world.once(lambda: diagnose_trained(runner, tried))

    diagnosis = finish(fitted.outcome, lambda: diagnose_of(fitted))
    if checked.cure:
        fitted, diagnosis = cure(runner, fitted, diagnosis, diagnose_of)
    chosen, choice = fitted, dict[str, Any]()
    if checked.choosing:
        # after a cure: with an unsound fit, zero inflation would have to explain what the latent space misses
        chosen, choice = choose_likelihood(runner, fitted)
    if chosen is not fitted:
        of_cure = {name: diagnosis[name] for name in ("cure", "before_cure") if name in diagnosis}
        diagnosis = finish(chosen.outcome, lambda: diagnose_of(chosen)) | of_cure
    # once, for the fit that is kept
    of_covariates = finish(chosen.outcome, lambda: runner.world.once(lambda: judge_covariates(runner, chosen, obs)))
    return chosen, diagnosis | of_covariates, choice


def _params(checked: CheckedArguments, prepared: Prepared, fitted: Fitted) -> Params:
    """Return every setting of the fit, and how its training went."""
    outcome = fitted.outcome
    rng, split_rng = checked.seeds
    return Params(
        **{f.name: getattr(checked, f.name) for f in fields(Recorded)},
        model=fitted.model.config,
        train=fitted.train,
        version=version("vxpress"),
        library_source=prepared.library.source,
        library_factor=prepared.library.factor,
        scale=fitted.model.decoder.output.scale,
        mask_var=prepared.mask_name,
        rng=rng,
        split_rng=split_rng,
        device=str(checked.device),
        stopped=outcome.stopped,
        best_epoch=outcome.best_epoch,
        n_steps=outcome.n_steps,
        n_voided=outcome.n_voided,
        dispersion_gain=outcome.dispersion_gain,
        n_train=len(prepared.train_n),
        n_values=rule.size(),
    )


def _as_fit(params: Params, prepared: Prepared, fitted: Fitted, adata: AnnData, diagnosis: dict[str, Any]) -> Fit:
    """Return the fit as it is stored."""
    return Fit(
        params,
        prepared.covariates,
        np.array(adata.var_names, dtype=object),
        prepared.modelled_g,
        fitted.model,
        {name: np.array(values) for name, values in fitted.outcome.history.items()},
        diagnosis,
        joint_record(fitted.model.prior, _judged(fitted.encoded, prepared)),
        features={}
        if prepared.further is None
        else {name: part.features for name, part in prepared.further.parts.items()},
        measured=prepared.measured,
    )


def _judged(encoded: Encoded, prepared: Prepared) -> DiagonalNormal:
    """Return the posteriors of the validation cells, or of all cells if there are none."""
    rows = prepared.validation_n if len(prepared.validation_n) else slice(None)
    mean, var = (torch.from_numpy(part[rows]) for part in (encoded.mean_nd, encoded.var_nd))
    return DiagonalNormal(mean, var.sqrt())


def _results(
    fit: Fit, prepared: Prepared, fitted: Fitted, keys: Keys, adata: AnnData, *, denoised: bool | None
) -> Results:
    """Return all that :func:`vxpress.tl.fit_vae` writes; ``denoised`` is its argument."""
    split = pd.Categorical(prepared.split_n(), categories=["train", "validation", "query"])
    results = Results(obs={keys.split: split}, uns={keys.uns: fit.to_uns()})
    add_posterior(results, fit.model, fitted.views, prepared.cells, keys, library_n=prepared.library.values_n)
    if (loadings_gd := fit.loadings()) is None:
        results.stale.append(("varm", keys.loadings))
    else:
        results.varm[keys.loadings] = loadings_gd
    n_features = len(fit.genes) + sum(map(len, fit.features.values()))
    n_bytes = 4 * len(prepared.cells) * n_features
    if denoised is None and n_bytes > MAX_DENSE_BYTES:
        key = "" if keys.uns == "vae" else f", key={keys.uns!r}"
        logg.warning(
            f"layers[{keys.normalized!r}] would take {n_bytes / 1e9:.1f} GB and was not written; vx.tl.denoise(adata{key}) writes it."
        )
        denoised = False
    if denoised is not False:
        for name in fit.params.modalities[1:]:
            part = fit.of(core_name(name))
            results.of_modalities[name] = {
                keys.normalized: denoised_matrix(
                    part.model,
                    fitted.encoded,
                    prepared.cells.covariates,
                    modelled_g=part.modelled_g,
                    batches=part.covariates.averaged_batches,
                    target_sum=part.params.target_sum,
                )
            }
        results.layers[keys.normalized] = denoised_matrix(
            fit.model,
            fitted.encoded,
            prepared.cells.covariates,
            modelled_g=fit.modelled_g,
            batches=fit.covariates.averaged_batches,
            target_sum=fit.params.target_sum,
            new_array=array_for(adata),
        )
    results.drop_layers(adata, keys, (keys.normalized, *keys.bounds()))
    return results


def _report(fit: Fit) -> None:
    """Log interruptions, voided steps and the verdict."""
    params = fit.params
    if params.stopped == INTERRUPTED:
        logg.warning(f"The fit was interrupted; the state of epoch {params.best_epoch + 1} is kept.")
    if params.n_voided:
        logg.warning(f"{params.n_voided} of {params.n_steps} training steps were not finite and were left out.")
    verdict = str(fit.diagnostics["verdict"])
    (logg.info if is_sound(verdict) else logg.warning)(verdict)
    warn_of_covariates(fit.diagnostics, params.batch_key, n_steps=params.n_steps)
