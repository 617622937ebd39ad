"""Compare the counts of cells with what a fit would draw for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from vxpress._unset import Unset
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import read_scored
from vxpress.bridge.read.joint import cells_at, has_shown
from vxpress.core.inference.predictive_check import LEVELS, Summary, predictive_check
from vxpress.core.likelihoods import LIKELIHOODS


def check_counts(adata: AnnData, fit: Fit, layer: str | Unset | None, *, n_draws: int, seed: int) -> dict[str, Any]:
    """Return the tables of genes, cells and coverage, the histogram of the transform, and the number of expressed entries."""
    has_n = has_shown(adata)
    adata = adata if has_n.all() else cells_at(adata, np.flatnonzero(has_n))
    found = predictive_check(fit.model, read_scored(adata, fit, layer), n_draws=n_draws, seed=seed)
    return {
        "genes": _frame(found.genes, pd.Index(fit.genes[fit.modelled_g], dtype=object)),
        "cells": _frame(found.cells, pd.Index(adata.obs_names, dtype=object)),
        "coverage": pd.DataFrame(
            {"nominal": LEVELS, "all": found.coverage, "expressed": found.expressed_coverage},
            index=pd.Index([_percent(level) for level in LEVELS], dtype=object),
        ),
        "pit": found.pit * len(found.pit),
        "n_expressed": found.n_expressed,
    }


def is_discrete(record: Mapping[str, Any]) -> bool:
    """Return whether the values of a stored check are counts, from its ``params``."""
    return LIKELIHOODS[str(record["likelihood"])].discrete


def _percent(level: float) -> str:
    return f"{100 * level:.0f}"


def _frame(summary: Summary, index: pd.Index) -> pd.DataFrame:
    values = {name: value for name, value in vars(summary).items() if name != "coverage"}
    values |= {f"coverage_{_percent(level)}": summary.coverage[k] for k, level in enumerate(LEVELS)}
    return pd.DataFrame(values, index=index)
