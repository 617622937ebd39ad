"""Cells and a result that tests of the evaluation share."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

import vxpress as vx

from ._cells import FAST, N_GENES, counts


@pytest.fixture(scope="module")
def rates() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    base = rng.gamma(2, 3, N_GENES)
    factor = np.where(rng.random(N_GENES) < 0.4, np.exp(rng.normal(0, 0.8, N_GENES)), 1.0)
    return {"ctrl": base, "drug": base * factor, "other": base * factor[::-1]}


@pytest.fixture(scope="module")
def cells(rates: dict[str, np.ndarray]) -> dict[str, AnnData]:
    """Two groups of control and treated cells; the groups differ much more than the treatment changes them."""
    rng = np.random.default_rng(1)
    second = np.roll(rates["ctrl"], 7) / rates["ctrl"]
    parts = {
        name: [
            counts(rng, rates[name] * scale, 50, group=group, drug=name) for group, scale in (("a", 1), ("b", second))
        ]
        for name in rates
    }
    found = {name: ad.concat(both) for name, both in parts.items()}
    predicted = found["ctrl"].copy()
    for group, scale in (("a", 1), ("b", second)):
        rows = (predicted.obs["group"] == group).to_numpy()
        x = predicted.X.toarray()
        x[rows] = counts(rng, rates["drug"] * scale, 50, group=group).X.toarray()
        predicted.X = sparse.csr_matrix(x)
    predicted.obs["source_cell"] = predicted.obs_names.astype(str)
    predicted.obs["drug"] = "drug"
    predicted.layers["control"] = found["ctrl"].X.copy()
    return found | {"predicted": predicted}


@pytest.fixture(scope="module")
def shared(cells: dict[str, AnnData]) -> vx.tl.PerturbationEvaluation:
    return vx.tl.evaluate_perturbation(
        cells["predicted"], cells["drug"], cells["ctrl"], groupby="group", split_controls=False, **FAST
    )
