"""Encode cells with a fit: its posterior of every cell, after training the weights of new categories if requested."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scanpy import logging as logg

from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import Query
from vxpress.bridge.read.prepare import MIN_CELLS
from vxpress.core.blocks import Z
from vxpress.core.data import Source
from vxpress.core.inference.posterior import Views, encode_views, hidden
from vxpress.core.model import VAE
from vxpress.core.query.fine_tuning import Completed, fine_tune
from vxpress.core.query.masked import Missing, encode_masked
from vxpress.core.split import split_cells

VALIDATION_FRACTION = 0.1


@dataclass(frozen=True)
class QueryResult:
    """Posterior of every cell by each model of a fit, the first one first, size factors, and the fit, on the CPU."""

    views: list[Views]
    library_n: np.ndarray
    fit: Fit


@dataclass(frozen=True)
class _FineTuning:
    """Which cells the weights of new categories are trained on, for at most ``max_epochs``, and how many there are."""

    train: torch.Tensor
    validation: torch.Tensor
    added: list[int]
    max_epochs: int
    seed: int


def encode_query(query: Query, device: torch.device, *, max_epochs: int, rng: np.random.Generator) -> QueryResult:
    """Encode every cell after at most ``max_epochs`` of fine-tuning, which all models of the fit get."""
    fit = query.fit
    cells, missing = query.cells.to(device), query.missing
    if missing is not None:
        missing = replace(missing, observed_g=missing.observed_g.to(device))
    new = np.flatnonzero(query.new_n)
    tuning = None
    if max_epochs and len(new):
        codes_nk = query.cells.covariates.categorical_nk.numpy()[new]
        split = split_cells(len(new), VALIDATION_FRACTION, rng, codes_nk)
        fit = replace(fit, covariates=fit.covariates.trained_on(codes_nk[split[0]], known=query.n_known))
        train, validation = (torch.from_numpy(new[part]).to(device) for part in split)
        added = [len(names) for names in query.added]
        tuning = _FineTuning(train, validation, added, max_epochs, int(rng.integers(2**62)))
    views, library_n = [], query.observed_n
    for model in (fit.model, *fit.members):
        found, log_library_n1 = _encode(model.to(device), cells, missing, tuning)
        model.cpu()
        if model is fit.model and missing is not None and not missing.library_known:
            log_library_n = log_library_n1.squeeze(-1).cpu().numpy().astype(np.float64)
            library_n = np.where(library_n > 0, np.exp(log_library_n), 0.0)
        views.append(found)
    return QueryResult(views, library_n, fit)


def _encode(
    model: VAE, cells: Source, missing: Missing | None, tuning: _FineTuning | None
) -> tuple[Views, torch.Tensor]:
    """Fine-tune a model in place, if requested, and return the posteriors of every cell and its log size factor."""
    if tuning is not None:
        _fine_tune(model, cells, missing, tuning)
    if missing is None:
        return encode_views(model, cells), cells.log_library_n1
    masked = encode_masked(model, cells, missing)
    kept = encode_masked(model, hidden(model, cells), missing).encoded if model.config.optional else None
    return (masked.encoded, kept), masked.log_library_n1


def _fine_tune(model: VAE, cells: Source, missing: Missing | None, tuning: _FineTuning) -> None:
    """Train the weights of new categories."""
    completed = None
    if missing is not None:
        masked = encode_masked(model, cells, missing, keep_filled=True)
        assert masked.filled_nh is not None  # noqa: S101 - requested by keep_filled
        means = masked.encoded.posterior(model).mean()
        others = {name: value.to(cells.device) for name, value in means.items() if name != Z}
        completed = Completed(missing.observed_g, masked.filled_nh, others)
        cells = cells.with_library(masked.log_library_n1)
    outcome = fine_tune(
        model,
        cells,
        tuning.added,
        tuning.train,
        tuning.validation,
        max_epochs=tuning.max_epochs,
        seed=tuning.seed,
        completed=completed,
    )
    logg.info(
        f"    trained the weights of new categories for {outcome.n_epochs} epoch(s): the ELBO of {len(tuning.validation)} "
        f"held-out cells went from {outcome.before:.1f} to {outcome.after:.1f} nats per cell"
    )


def check_enough_new(query: Query) -> None:
    """Raise unless there are enough cells to learn new categories from; warn if there is nothing to learn."""
    if not any(query.added):
        logg.warning(
            "fine_tune= trains the weights of new categories, but the fit knows all categories of these cells."
        )
        return
    n_new = int(query.new_n.sum())
    if n_new < MIN_CELLS:
        msg = (
            f"fine_tune= was given, but {n_new} cell(s) with counts have a new category; at least {MIN_CELLS} are needed. "
            "Omit fine_tune=: new categories are then treated as the average of the known ones."
        )
        raise ValueError(msg)
