"""A path through the latent space: its points, the density of cells along it, and expression at its points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scanpy import logging as logg

from vxpress.bridge.ask.decoded import DENOISING_SEED, DecodingRequest, Matrix, decode
from vxpress.bridge.ask.generation import Columns, get_column_names, requested_covariates
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.read.columns import find_column, get_numbers
from vxpress.core.blocks import Z
from vxpress.core.inference.paths import CellDensity, percentile_among
from vxpress.core.inference.posterior import Draws, Encoded
from vxpress.core.maps.paths import PATHS, linear_path
from vxpress.metrics import log_aggregate_posterior

Method = Literal["linear", "spherical", "flow"]
# number of cells whose density under the prior is computed if it needs a numerical integration
N_COSTLY = 300


def check_apart(mean_nd: np.ndarray, ends: list[np.ndarray]) -> None:
    """Raise unless the cells of the two ends have different mean positions."""
    if np.array_equal(mean_nd[ends[0]].mean(0), mean_nd[ends[1]].mean(0)):
        msg = f"source= and target= are identical ({len(ends[0])} and {len(ends[1])} cells). Choose two different groups or cells."
        raise ValueError(msg)


def path_with_densities(
    fit: Fit,
    method: Method,
    position_s: np.ndarray,
    posterior: tuple[np.ndarray, np.ndarray],
    ends: list[np.ndarray],
    *,
    rng: np.random.Generator,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the points between the mean positions of the cells of both ends, and the densities there.

    ``posterior`` are mean and variance of all cells, float64 (n, d).
    """
    start_d, end_d = (posterior[0][rows].mean(0) for rows in ends)
    path_sd = PATHS[method](fit.model.prior, fit.condition_key).points(start_d, end_d, position_s)
    return path_sd, _densities(fit, path_sd, position_s, CellDensity.choose(*posterior, ends, rng))


def with_other_blocks(path_sd: np.ndarray, position_s: np.ndarray, encoded: Encoded, ends: list[np.ndarray]) -> Encoded:
    """Return the points of a path; blocks other than z move linearly between the means of the cells of both ends."""
    point = {Z: path_sd}
    for name, mean_nc in encoded.mean.items():
        if name != Z:
            start_c, end_c = (mean_nc[rows].mean(0, dtype=np.float64) for rows in ends)
            point[name] = linear_path(start_c, end_c, position_s)
    return Encoded.at(point)


def decode_path(
    fit: Fit,
    path: Encoded,
    obs: pd.DataFrame,
    *,
    batches: tuple[int | None, ...],
    scale: np.float32,
    genes: np.ndarray | None,
) -> Matrix:
    """Decode the points of a path under the covariates of ``obs``."""
    return decode(
        fit.model,
        path,
        fit.covariates.read(obs, labels=False),
        modelled_g=fit.modelled_g,
        request=DecodingRequest(Draws(1, batches, DENOISING_SEED), scale, genes=genes),
    )[0]


def _densities(fit: Fit, path_sd: np.ndarray, position_s: np.ndarray, cells: CellDensity) -> dict[str, np.ndarray]:
    """Compute the densities of the steps, and the percentage of cells at a lower density."""
    prior, mean_nd = fit.model.prior, cells.mean_nd
    if not prior.cheap and len(mean_nd) > N_COSTLY:
        mean_nd = mean_nd[np.linspace(0, len(mean_nd) - 1, N_COSTLY).astype(int)]
    with torch.no_grad():
        prior_s, prior_n = (
            prior.log_prob(torch.from_numpy(z.astype(np.float32))).double().numpy() for z in (path_sd, mean_nd)
        )
    return {
        "log_density": log_aggregate_posterior(path_sd, cells.mean_nd, cells.var_nd),
        "density_percentile": cells.percentiles(path_sd, position_s),
        "prior_log_density": prior_s,
        "prior_percentile": percentile_among(prior_s, prior_n),
    }


def covariates_of(
    adata: AnnData, fit: Fit, covariates: Mapping[str, Any] | None, rows: np.ndarray, n_steps: int
) -> pd.DataFrame:
    """Return the covariates of the steps, the same for all: given, or taken from the cells of the ends."""
    table = fit.covariates
    columns = Columns.of(fit, labels=False)
    given = requested_covariates(covariates, columns, n_steps)
    if table.batch_key in given:
        msg = f"covariates= names the batch, {table.batch_key!r}. Choose it with transform_batch=."
        raise ValueError(msg)
    obs = pd.DataFrame(given, index=np.arange(n_steps))
    for name in columns.names:
        if name in given:
            continue
        if name in columns.doses:
            value = pd.Series(find_column(adata.obs, name).to_numpy(dtype=object)[rows]).mode()
            obs[name] = value.iloc[0] if len(value) else np.nan
        elif name in columns.numbers:
            obs[name] = float(get_numbers(adata.obs, name)[rows].mean())
        else:
            names = get_column_names(adata.obs, name, columns.categories[name])
            found, counts = np.unique(names[rows].astype(str), return_counts=True)
            obs[name] = found[counts.argmax()]
    return obs


def warn_empty(empty_s: np.ndarray, position_s: np.ndarray, names: list[str], method: Method) -> None:
    """Warn about steps in regions with hardly any cells."""
    if not empty_s.any():
        return
    steps = np.flatnonzero(empty_s)
    runs = np.split(steps, np.flatnonzero(np.diff(steps) > 1) + 1)
    where = ", ".join(
        f"{position_s[run[0]]:.2f}" + (f"-{position_s[run[-1]]:.2f}" if len(run) > 1 else "") for run in runs
    )
    more = (
        ""
        if method == "flow"
        else " For a path that follows the cells, call vx.tl.fit_prior(adata, prior='flow') and use method='flow'."
    )
    logg.warning(
        f"{len(steps)} of {len(empty_s)} steps from {names[0]} to {names[1]} cross regions with hardly any cells (position {where}; "
        f"obs['empty']). Expression decoded there is not supported by data.{more}"
    )
