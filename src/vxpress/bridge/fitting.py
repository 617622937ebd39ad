"""Turn a trained model into its diagnosis, its record, and the results to write."""

from __future__ import annotations

from copy import deepcopy as copy_of
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scanpy import logging as logg

from vxpress._keys import Keys
from vxpress.bridge.ask.decoded import denoised_matrix
from vxpress.bridge.fits.fit import Fit, Params
from vxpress.bridge.fits.learn_prior import joint_record
from vxpress.bridge.fits.results import Results
from vxpress.bridge.fits.runner import Fitted
from vxpress.bridge.health.diagnosis import Decoding, diagnose
from vxpress.bridge.read.prepare import Prepared
from vxpress.core.inference.posterior import Encoded
from vxpress.core.normal import DiagonalNormal

MAX_DENSE_BYTES = 1_000_000_000


def diagnosis_of(prepared: Prepared, fitted: Fitted) -> dict[str, Any]:
    """Diagnose a fit of these cells."""
    model = fitted.model
    if prepared.cells.log_library_n1.device != next(model.parameters()).device:
        model = copy_of(model).cpu()
    held_out = np.zeros(len(prepared.cells), dtype=bool)
    held_out[prepared.validation_n] = True
    return diagnose(
        fitted.encoded.mean_nd,
        fitted.encoded.var_nd,
        held_out,
        fitted.train,
        fitted.outcome.history,
        n_steps=fitted.outcome.n_steps,
        decoding=Decoding(model, prepared.cells.covariates, prepared.cells, prepared.train_n),
    )


def as_fit(params: Params, prepared: Prepared, fitted: Fitted, adata: AnnData, diagnosis: dict[str, Any]) -> Fit:
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
    )


def _judged(encoded: Encoded, prepared: Prepared) -> DiagonalNormal:
    """Return the posteriors of the validation cells, or of all cells if there are none."""
    rows = prepared.validation_n if len(prepared.validation_n) else slice(None)
    mean, var = (torch.from_numpy(part[rows]) for part in (encoded.mean_nd, encoded.var_nd))
    return DiagonalNormal(mean, var.sqrt())


def results_of(fit: Fit, prepared: Prepared, encoded: Encoded, keys: Keys, *, denoised: bool | None) -> Results:
    """Return all that :func:`vxpress.tl.fit_vae` writes; ``denoised`` is its argument."""
    library = prepared.library.values_n
    if encoded.log_library_n is not None:
        library = np.exp(encoded.log_library_n.astype(np.float64))
    split = pd.Categorical(prepared.split_n(), categories=["train", "validation", "query"])
    results = Results(
        obs={keys.split: split, keys.library: library},
        obsm={keys.latent: encoded.mean_nd, keys.latent_var: encoded.var_nd},
        uns={keys.uns: fit.to_uns()},
        stale=[("layers", name) for name in keys.bounds()],
    )
    if (loadings_gd := fit.loadings()) is None:
        results.stale.append(("varm", keys.loadings))
    else:
        results.varm[keys.loadings] = loadings_gd
    n_bytes = 4 * len(prepared.cells) * len(fit.genes)
    if denoised is None and n_bytes > MAX_DENSE_BYTES:
        key = "" if keys.uns == "vae" else f", key={keys.uns!r}"
        logg.warning(
            f"layers[{keys.normalized!r}] would take {n_bytes / 1e9:.1f} GB and was not written; vx.tl.denoise(adata{key}) writes it."
        )
        denoised = False
    if denoised is False:
        results.stale.append(("layers", keys.normalized))
    else:
        results.layers[keys.normalized] = denoised_matrix(
            fit.model,
            encoded.mean_nd,
            encoded.var_nd,
            prepared.cells.covariates,
            modelled_g=fit.modelled_g,
            batches=fit.covariates.averaged_batches,
            target_sum=fit.params.target_sum,
        )
    return results
