"""Encode cells with a fit: its posterior of every cell, after training the weights of new categories if requested."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scanpy import logging as logg

from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import Query
from vxpress.bridge.read.prepare import MIN_CELLS
from vxpress.core.blocks import Z
from vxpress.core.inference.posterior import Encoded, encode
from vxpress.core.query.fine_tuning import Completed, fine_tune
from vxpress.core.query.masked import encode_masked
from vxpress.core.split import split_cells

VALIDATION_FRACTION = 0.1


def encode_query(
    query: Query, device: torch.device, *, max_epochs: int, rng: np.random.Generator
) -> tuple[Encoded, np.ndarray, Fit]:
    """Return posterior and size factor of every cell after at most ``max_epochs`` of fine-tuning, and the fit, on the CPU."""
    fit = query.fit
    model, cells = fit.model.to(device), query.cells.to(device)
    missing = query.missing
    if missing is not None:
        missing = replace(missing, observed_g=missing.observed_g.to(device))
    new = np.flatnonzero(query.new_n)
    if max_epochs and len(new):
        completed = None
        if missing is not None:
            masked = encode_masked(model, cells, missing, keep_filled=True)
            assert masked.filled_nh is not None  # noqa: S101 - requested by keep_filled
            means = masked.encoded.posterior(model).mean()
            others = {name: value.to(device) for name, value in means.items() if name != Z}
            completed = Completed(missing.observed_g, masked.filled_nh, others)
            cells = cells.with_library(masked.log_library_n1)
        codes_nk = query.cells.covariates.categorical_nk.numpy()[new]
        split = split_cells(len(new), VALIDATION_FRACTION, rng, codes_nk)
        fit = replace(fit, covariates=fit.covariates.trained_on(codes_nk[split[0]], known=query.n_known))
        train, validation = (torch.from_numpy(new[part]).to(device) for part in split)
        added = [len(names) for names in query.added]
        seed = int(rng.integers(2**62))
        outcome = fine_tune(
            model, cells, added, train, validation, max_epochs=max_epochs, seed=seed, completed=completed
        )
        logg.info(
            f"    trained the weights of new categories for {outcome.n_epochs} epoch(s): the ELBO of {len(validation)} "
            f"held-out cells went from {outcome.before:.1f} to {outcome.after:.1f} nats per cell"
        )
    library_n = query.observed_n
    if missing is None:
        encoded = encode(model, cells)
    else:
        masked = encode_masked(model, query.cells.to(device), missing)
        encoded, log_library_n = masked.encoded, masked.log_library_n1.squeeze(-1).cpu().numpy()
        if not missing.library_known:
            library_n = np.where(library_n > 0, np.exp(log_library_n.astype(np.float64)), 0.0)
    model.cpu()
    return encoded, library_n, fit


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
