"""What is read: populations, matrices of every kind, and errors for bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import vxpress as vx

from ._cells import FAST, N_GENES, row


def _drop_layer(adata: AnnData) -> AnnData:
    out = adata.copy()
    del out.layers["control"]
    return out


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no controls": (lambda c: ((_drop_layer(c["predicted"]), c["drug"]), {}), ValueError, "control= was not given"),
    "treated controls": (
        lambda c: ((c["predicted"], c["drug"], ad.concat([c["ctrl"], c["drug"]])), {"perturbation_key": "drug"}),
        ValueError,
        "control cells only",
    ),
    "column": (lambda c: ((c["predicted"], c["drug"], c["ctrl"]), {"groupby": "cluster"}), KeyError, "cluster"),
    "columns": (
        lambda c: ((c["predicted"], c["drug"], c["ctrl"]), {"groupby": ["group"]}),
        TypeError,
        "name of a column",
    ),
    "genes": (lambda c: ((c["predicted"], c["drug"][:, :5], c["ctrl"]), {}), KeyError, "lack 55 of the 60"),
    "log values as counts": (
        lambda c: ((c["predicted"], AnnData(c["drug"].X / 3, c["drug"].obs, c["drug"].var), c["ctrl"]), {}),
        ValueError,
        "not whole numbers",
    ),
    "counts as log values": (
        lambda c: ((c["predicted"], c["drug"], c["ctrl"]), {"log_transformed": True}),
        ValueError,
        "look like counts",
    ),
    "few cells": (lambda c: ((c["predicted"], c["drug"][:5], c["ctrl"]), {}), ValueError, "fewer than 10"),
    "no such group": (
        lambda c: ((c["predicted"], c["other"], c["ctrl"]), {"perturbation_key": "drug"}),
        ValueError,
        "No treated cell",
    ),
    "measure": (lambda c: ((c["predicted"], c["drug"], c["ctrl"]), {"measure": "r2"}), ValueError, "choose one of"),
    "floors": (lambda c: ((c["predicted"], c["drug"], c["ctrl"]), {"floors": [1]}), TypeError, "mapping of names"),
    "shape of a floor": (
        lambda c: ((c["predicted"], c["drug"], c["ctrl"]), {"floors": {"f": np.ones(3)}}),
        ValueError,
        "a change for each of 60 genes",
    ),
    "no prediction": (lambda c: (({}, c["drug"], c["ctrl"]), {}), ValueError, "at least one method"),
    "no cells": (lambda c: ((c["predicted"][:0], c["drug"], c["ctrl"]), {}), ValueError, "has 0 cells"),
    "no treated cells": (lambda c: ((c["predicted"], None, c["ctrl"]), {}), TypeError, "observed= holds a NoneType"),
    "text as a floor": (
        lambda c: ((c["predicted"], c["drug"], c["ctrl"]), {"floors": {"f": ["a"] * N_GENES}}),
        TypeError,
        "does not hold numbers",
    ),
    "path": (lambda c: (("cells.h5ad", c["drug"], c["ctrl"]), {}), TypeError, "AnnData is expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_what_is_expected(name: str, cells: dict[str, AnnData]) -> None:
    make, error, message = BAD[name]
    args, kwargs = make(cells)
    with pytest.raises(error, match=message):
        vx.tl.evaluate_perturbation(*args, **(FAST | kwargs))


@pytest.mark.parametrize(
    ("measure", "genes", "said"),
    [
        ("pearson", None, "the measures are"),
        ("pearson_change", "top7", "it has ['all',"),
        ("rank", None, "the measures are"),
    ],
)
def test_an_unknown_measure_names_the_known_ones_once(
    shared: vx.tl.PerturbationEvaluation, measure: str, genes: str | None, said: str
) -> None:
    with pytest.raises(KeyError) as raised:
        shared.scores(measure, genes)
    message = raised.value.args[0]
    assert said in message
    assert message.count("'r2_sd'") == (said == "the measures are")


def test_groups_of_few_cells_are_left_out(cells: dict[str, AnnData]) -> None:
    few = cells["drug"][np.r_[0:50, 50:55]]
    result = vx.tl.evaluate_perturbation(cells["predicted"], few, cells["ctrl"], groupby="group", **FAST)
    assert set(result.table["group"]) == {"a"}


def test_cells_without_a_group_are_left_out(cells: dict[str, AnnData]) -> None:
    parts = {name: adata.copy() for name, adata in cells.items()}
    for adata in parts.values():
        adata.obs["group"] = adata.obs["group"].where(adata.obs["group"] == "a")
    few = [parts[name] for name in ("predicted", "drug", "ctrl")]
    found = vx.tl.evaluate_perturbation(*few, groupby="group", **FAST)
    assert set(found.table["group"]) == {"a"}
    only = [adata[adata.obs["group"] == "a"] for adata in few]
    alone = vx.tl.evaluate_perturbation(*only, groupby="group", **FAST)
    np.testing.assert_allclose(found.changes["measured"], alone.changes["measured"])


def test_a_single_predicted_profile_is_scored(cells: dict[str, AnnData]) -> None:
    one = cells["predicted"][cells["predicted"].obs["group"] == "a"][:1].copy()
    one.X = sparse.csr_matrix(cells["drug"][cells["drug"].obs["group"] == "a"].X.mean(0))
    result = vx.tl.evaluate_perturbation(one, cells["drug"], cells["ctrl"], groupby="group", **FAST)
    assert row(result, "pearson_change")["score"] > 0.6
    assert np.isnan(row(result, "energy_distance")["score"])


@pytest.mark.parametrize("kind", ["dense", "integers", "columns", "view", "file"])
def test_matrices_of_every_kind_give_the_same_scores(kind: str, cells: dict[str, AnnData], tmp_path: Path) -> None:
    given = [cells[name].copy() for name in ("predicted", "drug", "ctrl")]
    expected = vx.tl.evaluate_perturbation(*given, groupby="group", **FAST)
    for i, adata in enumerate(given):
        if kind == "view":
            given[i] = adata[:, ::1]
        elif kind == "file":
            adata.write_h5ad(tmp_path / f"{i}.h5ad")
            given[i] = ad.read_h5ad(tmp_path / f"{i}.h5ad", backed="r")
        else:
            dense = adata.X.toarray()
            adata.X = {"dense": dense, "integers": dense.astype(np.int16), "columns": sparse.csc_matrix(dense)}[kind]
    found = vx.tl.evaluate_perturbation(*given, groupby="group", **FAST)
    pd.testing.assert_series_equal(found.table["score"], expected.table["score"])
