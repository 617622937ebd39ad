"""Simulated cells, and what tests read of a result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

import vxpress as vx

N_GENES = 60
GENES = pd.Index([f"gene{i}" for i in range(N_GENES)])
FAST: dict[str, Any] = {"n_resamples": 20, "n_top": (10,), "n_cells": 60}


def counts(rng: np.random.Generator, rate_g: np.ndarray, n: int, **obs: str) -> AnnData:
    x = rng.poisson(rng.gamma(5, 0.2, size=(n, 1)) * rate_g).astype(np.float32)
    frame = pd.DataFrame({name: np.repeat(value, n) for name, value in obs.items()})
    frame.index = [f"{'_'.join(obs.values())}_{i}" for i in range(n)]
    return AnnData(sparse.csr_matrix(x), obs=frame, var=pd.DataFrame(index=GENES))


def mean(adata: AnnData, group: str = "a") -> np.ndarray:
    part = adata[adata.obs["group"] == group]
    return np.asarray(vx.metrics.log1p_normalized(part.X).mean(0)).reshape(-1)


def row(result: vx.tl.PerturbationEvaluation, measure: str, genes: str = "all", **where: str) -> pd.Series:
    table = result.table[(result.table["measure"] == measure) & (result.table["genes"] == genes)]
    for column, value in ({"group": "a", "kind": "prediction"} | where).items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def stating(cells: dict[str, AnnData]) -> AnnData:
    """Predicted cells that state a change, as predict_perturbation writes it."""
    rng = np.random.default_rng(7)
    stored = cells["predicted"].copy()
    totals = [float(stored.X[(stored.obs["group"] == group).to_numpy()].sum()) for group in "ab"]
    stored.layers["control"] = cells["ctrl"].X[: stored.n_obs]
    stored.obs["library_size"] = np.asarray(stored.layers["control"].sum(1)).ravel()
    stored.uns["perturbation"] = {
        "params": {"groupby": "group"},
        "groups": np.array(["a", "b"]),
        "genes": np.array(GENES, dtype=object),
        "change": rng.normal(0, 0.2, (2, N_GENES)),
        "molecules": np.array(totals),
        "floors": {"f": rng.normal(0, 0.2, (2, N_GENES))},
    }
    return stored
