"""The likelihood of each cell under a fit, and its means over the parts of the split."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from vxpress._unset import Unset
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import read_scored
from vxpress.core.inference.importance import Bound, log_likelihood
from vxpress.core.inference.posterior import hidden


def score(
    adata: AnnData, fit: Fit, layer: str | Unset | None, n_samples: int, *, keep: bool, seed: int, device: torch.device
) -> Bound:
    """Compute the importance-weighted bound of every cell; the model is on the CPU afterwards.

    ``keep`` hides the categories of optional covariates.
    """
    cells = read_scored(adata, fit, layer)
    cells = (hidden(fit.model, cells) if keep else cells).to(device)
    found = log_likelihood(fit.model.to(device), cells, n_samples, seed=seed)
    fit.model.cpu()
    return found


def columns_of(found: Bound) -> dict[str, np.ndarray]:
    """Return the values of every cell by name."""
    return {
        "log_likelihood": found.log_likelihood_n,
        "se": found.se_n,
        "ess": found.ess_n,
        "elbo": found.elbo_n,
        "reconstruction": found.reconstruction_n,
    }


def summary_of(found: Bound, split_n: np.ndarray | None) -> pd.DataFrame:
    """Compute means over all cells and over each part of the split."""
    cells = pd.DataFrame(columns_of(found))
    parts = {"all": cells}
    if split_n is not None:
        parts |= {str(name): cells[split_n == name] for name in sorted(set(split_n) - {""})}
    rows = {}
    for name, part in parts.items():
        n = len(part)
        rows[name] = {
            "n_cells": n,
            "log_likelihood": part["log_likelihood"].mean(),
            "se": part["log_likelihood"].std(ddof=1) / np.sqrt(n) if n > 1 else np.nan,
            "se_sampling": np.sqrt(np.square(part["se"].to_numpy()).sum()) / n,
            "elbo": part["elbo"].mean(),
            "reconstruction": part["reconstruction"].mean(),
            "ess_median": part["ess"].median(),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.astype({"n_cells": np.int64})
