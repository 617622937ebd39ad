"""``vx.tl.rank_genes_groups`` between any two sets of cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import vxpress as vx

QUICK: dict[str, Any] = {"n_cells": 30, "n_draws": 2}
FIELDS = ("names", "scores", "logfoldchanges", "pvals", "pvals_adj")


@pytest.fixture(scope="module")
def _trained() -> ad.AnnData:
    adata = vx.datasets.simulate(240, 50, n_groups=3, n_batches=2, library_mean=400, de_log_fold_change=2.0, rng=3)
    vx.tl.fit_vae(adata, "batch", denoised=False, n_latent=3, n_hidden=16, max_epochs=3)
    return adata


@pytest.fixture
def trained(_trained: ad.AnnData) -> ad.AnnData:
    """240 cells of three groups in two batches, with a fit."""
    return _trained.copy()


def _in(adata: ad.AnnData, group: int) -> np.ndarray:
    return (adata.obs["group"] == adata.obs["group"].cat.categories[group]).to_numpy()


def _frame(adata: ad.AnnData, group: str, key: str = "rank_genes_groups") -> pd.DataFrame:
    return sc.get.rank_genes_groups_df(adata, group, key=key)


FORMS: dict[str, Callable[[ad.AnnData, np.ndarray], Any]] = {
    "mask": lambda _, mask: mask,
    "list of booleans": lambda _, mask: mask.tolist(),
    "series": lambda adata, mask: pd.Series(mask, index=adata.obs_names),
    "nullable": lambda adata, mask: pd.Series(mask, index=adata.obs_names, dtype="boolean"),
    "positions": lambda _, mask: np.flatnonzero(mask),
    "list of positions": lambda _, mask: np.flatnonzero(mask).tolist()[::-1],
    "names": lambda adata, mask: adata.obs_names[mask],
    "list of names, some twice": lambda adata, mask: [*adata.obs_names[mask], adata.obs_names[mask][0]],
    "names of a query": lambda adata, mask: adata[mask].obs.index,
}


@pytest.mark.parametrize("form", FORMS)
def test_cells_are_accepted_in_every_form(trained: ad.AnnData, form: str) -> None:
    first, second = _in(trained, 0), _in(trained, 1)
    groups = list(trained.obs["group"].cat.categories)
    vx.tl.rank_genes_groups(trained, "group", groups=[groups[0]], reference=groups[1], **QUICK)
    vx.tl.rank_genes_groups(
        trained, cells=FORMS[form](trained, first), reference_cells=second, key_added="cells", **QUICK
    )
    trained.obs["mine"] = first
    vx.tl.rank_genes_groups(trained, cells="mine", reference_cells=second, key_added="column", **QUICK)
    pd.testing.assert_frame_equal(_frame(trained, "cells", "column"), _frame(trained, "cells", "cells"))
    ours = trained.uns["cells"]
    assert ours["names"].dtype.names == ("cells",)
    assert ours["params"]["reference"] == "reference_cells"
    expected, found = _frame(trained, groups[0]), _frame(trained, "cells", "cells")
    assert list(found["names"]) == list(expected["names"])
    np.testing.assert_allclose(found[list(FIELDS[1:])], expected[list(FIELDS[1:])], rtol=1e-5)


def test_the_default_reference_is_all_other_cells(trained: ad.AnnData) -> None:
    groups = list(trained.obs["group"].cat.categories)
    vx.tl.rank_genes_groups(trained, cells={name: _in(trained, i) for i, name in enumerate(groups[:2])}, **QUICK)
    ranked = trained.uns["rank_genes_groups"]
    assert ranked["names"].dtype.names == tuple(groups[:2])
    assert ranked["params"]["reference"] == "rest"
    vx.tl.rank_genes_groups(trained, "group", groups=groups[:2], key_added="by_column", **QUICK)
    for name in groups[:2]:
        pd.testing.assert_frame_equal(_frame(trained, name), _frame(trained, name, "by_column"))


def test_scanpy_reads_and_plots_it(trained: ad.AnnData) -> None:
    mpl.use("Agg")
    vx.tl.rank_genes_groups(trained, cells={"a": slice(0, 60)}, reference_cells={"b": slice(60, 150)}, **QUICK)
    assert trained.uns["rank_genes_groups"]["params"]["reference"] == "b"
    sc.pl.rank_genes_groups(trained, n_genes=3, show=False)
    sc.pp.normalize_total(trained)
    sc.pp.log1p(trained)
    sc.pl.rank_genes_groups_dotplot(trained, n_genes=3, groupby="group", dendrogram=False, show=False)
    vx.pl.volcano(trained, show=False)
    mpl.pyplot.close("all")


def test_cells_in_neither_set_have_no_effect(trained: ad.AnnData) -> None:
    sets = {"cells": np.arange(40), "reference_cells": np.arange(40, 100)}
    vx.tl.rank_genes_groups(trained, **sets, **QUICK)
    before = _frame(trained, "cells")
    trained.X.data[trained.X.indptr[150] :] = 7
    vx.tl.rank_genes_groups(trained, **sets, **QUICK)
    pd.testing.assert_frame_equal(_frame(trained, "cells"), before)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({}, TypeError, "Neither groupby= nor cells="),
        ({"reference_cells": [0]}, TypeError, "Neither groupby= nor cells="),
        ({"groupby": "group", "cells": [0, 1]}, ValueError, "one of the two"),
        ({"groupby": "group", "reference_cells": [0, 1]}, ValueError, "one of the two"),
        ({"cells": [0, 1], "reference": "group_1"}, ValueError, "reference_cells="),
        ({"cells": [0, 1], "groups": ["group_1"]}, ValueError, "reference_cells="),
        ({"cells": np.zeros(240, bool)}, ValueError, "selects no cell"),
        ({"cells": []}, ValueError, "selects no cell"),
        ({"cells": np.ones(240, bool)}, ValueError, "leaves none to compare"),
        ({"cells": np.ones(239, bool)}, ValueError, "240 booleans"),
        ({"cells": np.ones((240, 2), bool)}, ValueError, "shape"),
        ({"cells": [0, 240]}, ValueError, "position 240"),
        ({"cells": [-1, 3]}, ValueError, "position -1"),
        ({"cells": [0.0, 1.0]}, TypeError, "0.0"),
        ({"cells": 3}, TypeError, "int"),
        ({"cells": ["nobody"]}, KeyError, "nobody"),
        ({"cells": "nothing"}, KeyError, "nor a column"),
        ({"cells": "batch"}, ValueError, "240 booleans"),
        ({"cells": pd.Series([True, None] * 120, dtype="boolean")}, ValueError, r"missing \(NaN\) for 120 of 240"),
        (
            {"cells": [0, 1, 2], "reference_cells": [2, 3]},
            ValueError,
            "1 cell.s. of reference_cells= are also in cells=",
        ),
        ({"cells": {"a": [0, 1], "b": [1, 2]}}, ValueError, "another set"),
        ({"cells": {}}, ValueError, "no set of cells"),
        ({"cells": {"": [0]}}, ValueError, "empty"),
        ({"cells": {1: [0], "1": [2]}}, ValueError, "differ as text"),
        ({"cells": {"a": [0, 1]}, "reference_cells": {"a": [2, 3]}}, ValueError, "name 'a'"),
        ({"cells": [0, 1], "reference_cells": {"a": [2, 3], "b": [4]}}, ValueError, "2 names"),
    ],
)
def test_bad_sets_are_refused(trained: ad.AnnData, arguments: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        vx.tl.rank_genes_groups(trained, **arguments, **QUICK)
    assert "rank_genes_groups" not in trained.uns
