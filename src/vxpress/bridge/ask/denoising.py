"""Denoise cells: how many draws, in which form, and with which counts of their own."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from vxpress._checks import check_choice, check_range
from vxpress._unset import Unset
from vxpress.bridge.ask.arguments import values_of
from vxpress.bridge.ask.decoded import DENOISING_DRAWS, DecodingRequest, FloatName, Matrix, decode
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import read_query
from vxpress.bridge.fits.stored_cells import StoredCells, stored_library
from vxpress.bridge.read.library import log_library
from vxpress.core.data import Source
from vxpress.core.likelihoods import LIKELIHOODS

INTERVAL_DRAWS = 100


def denoise_cells(cells: StoredCells, request: DecodingRequest, counts: Source | None) -> list[Matrix]:
    """Decode cells under their own covariates: the mean, and the ends of its interval if one is requested."""
    fit = cells.fit
    return decode(
        fit.model,
        cells.encoded,
        cells.covariates,
        modelled_g=fit.modelled_g,
        request=request,
        counts=counts,
    )


def checked_draws(n_draws: int | None, interval: float | None) -> int:
    """Return the number of draws per cell, after checking that it is enough for the interval."""
    if n_draws is None:
        n_draws = DENOISING_DRAWS if interval is None else INTERVAL_DRAWS
    check_range("n_draws", n_draws, 1, 100_000, integer=True)
    if interval is not None:
        check_range("interval", interval, 0.01, 0.999)
        # one draw beyond each end, on average
        least = int(np.ceil(2 / (1 - interval) - 1e-9))
        if n_draws < least:
            msg = (
                f"n_draws={n_draws} is too small for interval={interval:g}: even the extreme draws are inside this interval. Pass "
                f"n_draws={least} or more."
            )
            raise ValueError(msg)
    return n_draws


def own_counts_of(adata: AnnData, stored: StoredCells, layer: str | Unset | None, interval: float | None) -> Source:
    """Read the counts to combine with, or raise an error if the likelihood of the fit does not allow it."""
    fit, config = stored.fit, stored.fit.params.model
    if not LIKELIHOODS[config.likelihood].gamma_rate or config.dispersion not in {"gene", "gene-batch"}:
        msg = (
            f"own_counts=True needs a fit with likelihood='nb' and a dispersion per gene, or per gene and batch; this one "
            f"has {config.likelihood!r} and {config.dispersion!r}. Leave own_counts= out, or fit again."
        )
        raise ValueError(msg)
    if interval is not None:
        msg = f"own_counts=True and interval={interval:g} were given, but an interval is available for rho alone. Leave one of the two out."
        raise ValueError(msg)
    counts = read_query(adata, fit, layer).cells.with_covariates(stored.covariates)
    if not fit.model.infers_library:
        return counts
    # mu refers to the inferred size factor, which is not a sum of counts
    return counts.with_library(log_library(stored_library(adata, stored.keys)))


def check_form(fit: Fit, dtype: FloatName, drop_below: float | None) -> None:
    """Raise if the form of the result is unknown, or not possible for the values of the fit."""
    check_choice("dtype", dtype, FloatName)
    if drop_below is None:
        return
    check_range("drop_below", drop_below, 1e-12, 1e12)
    if dtype != "float32":
        msg = f"drop_below={drop_below!r} writes a sparse matrix, which does not support {dtype}. Leave dtype= or drop_below= out."
        raise ValueError(msg)
    if not fit.model.decoder.output.nonnegative:
        msg = f"drop_below={drop_below!r}: {values_of(fit)}, which may be negative. Leave it out."
        raise ValueError(msg)
