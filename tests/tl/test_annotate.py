"""Cells get the labels of a fit, also other cells, from a file, with genes missing; labels change nothing else in the fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import vxpress as vx

QUICK: dict[str, Any] = {"n_latent": 6, "n_hidden": 32, "max_epochs": 40, "batch_size": 64, "denoised": False}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """700 cells of 4 groups in 3 batches; the last group and the last batch are for the query."""
    return vx.datasets.simulate(
        700, 80, n_groups=4, n_batches=3, library_mean=1500, de_log_fold_change=2.0, batch_strength=0.2, rng=3
    )


@pytest.fixture(scope="module")
def reference(cells: ad.AnnData) -> ad.AnnData:
    """A fit of three of the groups in two of the batches; every second cell has no label."""
    kept = ~cells.obs["batch"].isin([cells.obs["batch"].cat.categories[2]]) & (cells.obs["group"] != _new(cells))
    adata = cells[kept].copy()
    label = adata.obs["group"].astype(object)
    label.iloc[::4], label.iloc[2::4] = np.nan, "Unknown"
    adata.obs["label"] = label
    vx.tl.fit_vae(adata, "batch", labels_key="label", unlabeled_category="Unknown", **QUICK)
    return adata


@pytest.fixture
def query(cells: ad.AnnData) -> ad.AnnData:
    """All groups of the batch that the fit has not seen."""
    return cells[cells.obs["batch"] == cells.obs["batch"].cat.categories[2]].copy()


def _new(cells: ad.AnnData) -> str:
    return str(cells.obs["group"].cat.categories[3])


def _right(adata: ad.AnnData, name: str = "vae_label") -> np.ndarray:
    return np.asarray(adata.obs[name].astype(str) == adata.obs["group"].astype(str))


def test_labels_change_neither_networks_nor_posteriors(reference: ad.AnnData) -> None:
    plain = reference.copy()
    del plain.uns["vae"]
    for slot in ("X_vae", "X_vae_var"):
        del plain.obsm[slot]
    plain.obs = plain.obs.drop(columns=["vae_split", "vae_library"])
    vx.tl.fit_vae(plain, "batch", **QUICK)
    np.testing.assert_array_equal(plain.obsm["X_vae"], reference.obsm["X_vae"])
    for name in ("elbo_train", "elbo_validation"):
        np.testing.assert_array_equal(plain.uns["vae"]["history"][name], reference.uns["vae"]["history"][name])
    for name, value in plain.uns["vae"]["weights"].items():
        np.testing.assert_array_equal(value, reference.uns["vae"]["weights"][name])


def test_cells_without_a_label_get_the_right_one(reference: ad.AnnData) -> None:
    adata = vx.tl.annotate(reference, copy=True)
    assert adata is not None
    hidden = ~adata.obs["label"].isin(adata.uns["vae_label"]["labels"]).to_numpy()
    assert _right(adata)[hidden].mean() > 0.85
    prob = adata.obsm["vae_label_prob"]
    np.testing.assert_allclose(prob.sum(1), 1.0, rtol=1e-4)
    np.testing.assert_allclose(adata.obs["vae_label_confidence"], prob.max(1))
    np.testing.assert_array_equal(adata.obs["vae_label_set_size"], adata.obsm["vae_label_set"].sum(1))
    record = adata.uns["vae_label"]
    assert record["accuracy"] > 0.9
    assert record["calibration_error"] < 0.15
    assert int(record["n_labelled"].sum()) == int((~hidden).sum())
    # a labelled cell is not tested for novelty, and is predicted by a classifier learned without it
    assert adata.obs["vae_label_novelty_pval"].isna().to_numpy()[~hidden].all()
    assert np.isclose((_right(adata))[~hidden].mean(), record["accuracy"], atol=0.01)
    again = vx.tl.annotate(adata, copy=True)
    assert again is not None
    pd.testing.assert_frame_equal(again.obs, adata.obs)


def test_a_query_of_a_new_batch_with_a_new_group(reference: ad.AnnData, query: ad.AnnData) -> None:
    vx.tl.annotate(query, model=reference, alpha=0.1)
    new = (query.obs["group"] == _new(query)).to_numpy()
    assert _right(query)[~new].mean() > 0.75
    score = query.obs["vae_label_novelty"].to_numpy()
    above = (score[new][:, None] > score[~new][None]).mean()
    assert above > 0.65  # the latent space of so few cells separates it in part only
    assert "vae" not in query.uns


def test_missing_genes_and_a_file_without_cells(reference: ad.AnnData, query: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "fit.safetensors"
    vx.save_model(reference, path)
    whole, panel = query.copy(), query[:, ::2].copy()
    vx.tl.annotate(whole, model=path)
    vx.tl.annotate(panel, model=path)
    known = (query.obs["group"] != _new(query)).to_numpy()
    best = np.array(whole.uns["vae_label"]["labels"])[panel.obsm["vae_label_prob"].argmax(1)]
    assert (best == query.obs["group"].astype(str)).to_numpy()[known].mean() > 0.75
    from_cells = vx.tl.annotate(query, model=reference, copy=True)
    assert from_cells is not None
    np.testing.assert_array_equal(from_cells.obsm["vae_label_prob"], whole.obsm["vae_label_prob"])
    # the results survive a file
    whole.write_h5ad(tmp_path / "query.h5ad")
    stored = ad.read_h5ad(tmp_path / "query.h5ad")
    np.testing.assert_array_equal(stored.obsm["vae_label_set"], whole.obsm["vae_label_set"])
    assert list(stored.uns["vae_label"]["labels"]) == list(whole.uns["vae_label"]["labels"])


def test_coarser_labels_are_sums_and_a_set_backs_off_to_them(reference: ad.AnnData) -> None:
    names = [str(name) for name in reference.obs["group"].cat.categories]
    coarse = dict(zip(names[:3], ["even", "odd", "even"], strict=True))
    adata = vx.tl.annotate(reference, coarse=coarse, copy=True)
    assert adata is not None
    labels = list(adata.uns["vae_label"]["labels"])
    even = adata.obsm["vae_label_prob"][:, [coarse[name] == "even" for name in labels]].sum(1)
    np.testing.assert_allclose(adata.obs["vae_label_coarse_confidence"], np.maximum(even, 1 - even), rtol=1e-5)
    single = (adata.obs["vae_label_set_size"] == 1).to_numpy() & (adata.obs["vae_label"] != "Unknown").to_numpy()
    only = np.array(labels)[adata.obsm["vae_label_set"][single].argmax(1)]
    np.testing.assert_array_equal(adata.obs["vae_label_nested"].astype(str)[single], only)
    both = adata.obsm["vae_label_set"][:, [labels.index(names[0]), labels.index(names[1])]].all(1)
    assert set(adata.obs["vae_label_nested"][both & ~(adata.obs["vae_label"] == "Unknown")]) <= {"Undecided"}
    # the same from a column
    reference.obs["above"] = reference.obs["group"].astype(str).map(coarse)
    column = vx.tl.annotate(reference, coarse="above", copy=True)
    assert column is not None
    pd.testing.assert_series_equal(column.obs["vae_label_nested"], adata.obs["vae_label_nested"])
    # an annotation without coarser labels leaves none behind
    vx.tl.annotate(adata)
    assert "vae_label_nested" not in adata.obs


def test_cells_are_drawn_given_a_label(reference: ad.AnnData) -> None:
    names = list(reference.uns["vae"]["prior"]["categories"])
    drawn = vx.tl.generate(reference, labels={names[0]: 40, names[1]: 40}, rng=0)
    assert drawn.obs["label"].value_counts()[names].tolist() == [40, 40, 0]
    # without labels, they are drawn from the shares, also that of none of the labels
    any_label = vx.tl.generate(reference, 400, rng=0)
    assert set(any_label.obs["label"].dropna()) == set(names)
    assert any_label.obs["label"].isna().mean() < 0.3
    drawn.obs["library_size"] = np.asarray(drawn.X.sum(1)).ravel()
    vx.tl.annotate(drawn, model=reference)
    best = np.array(names)[drawn.obsm["vae_label_prob"].argmax(1)]
    # the posteriors of labels overlap in so small a latent space
    assert (best == drawn.obs["label"].astype(str)).mean() > 0.65


def test_a_prior_of_labels_leaves_out_the_category_of_cells_without_one(reference: ad.AnnData) -> None:
    adata = reference.copy()
    for kind in ("mixture", "label_mixture"):
        vx.tl.fit_prior(adata, kind, condition_key="label", max_steps=40)  # type: ignore[arg-type]
        record = adata.uns["vae"]["prior"]
        record = record.get("refused", record)
        assert list(record["categories"]) == list(reference.uns["vae"]["labels"]["labels"])
        assert record["unlabelled"]
    # the classifier is still there
    vx.tl.annotate(adata)
    with pytest.raises(ValueError, match="condition_key='cell_type'"):
        vx.tl.fit_prior(adata, "label_mixture")


def test_several_fits_annotate_together(cells: ad.AnnData) -> None:
    adata = cells[:200].copy()
    adata.obs["label"] = adata.obs["group"].astype(str)
    vx.tl.fit_vae(adata, labels_key="label", unlabeled_category="Unknown", n_fits=2, **QUICK | {"max_epochs": 3})
    assert adata.uns["vae"]["labels"]["latent"]["centre"].shape == (12,)
    vx.tl.annotate(adata)
    assert _right(adata).mean() > 0.6


def test_cells_without_counts_are_unknown(reference: ad.AnnData, query: ad.AnnData) -> None:
    x = query.X.tolil()
    x[3] = 0
    query.X = x.tocsr()
    vx.tl.annotate(query, model=reference)
    assert query.obs["vae_label"].iloc[3] == "Unknown"
    assert query.obs["vae_label_set_size"].iloc[3] == 0
    assert np.isnan(query.obs["vae_label_novelty_pval"].iloc[3])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels_key": "group"}, ValueError, "unlabeled_category='Unknown'"),
        ({"unlabeled_category": "Unknown"}, ValueError, "labels_key='cell_type'"),
        ({"labels_key": "group", "unlabeled_category": ""}, ValueError, "name of the category"),
        ({"labels_key": "group", "unlabeled_category": 3}, ValueError, "name of the category"),
        (
            {"labels_key": "group", "unlabeled_category": "Unknown", "dispersion": "gene-label"},
            ValueError,
            "label of every cell",
        ),
        ({"prior": "label_mixture"}, ValueError, "labels_key="),
        ({"labels_key": "nothing", "unlabeled_category": "Unknown"}, KeyError, "labels_key='nothing'"),
    ],
)
def test_arguments_of_the_fit(adata: ad.AnnData, arguments: dict[str, Any], error: type, message: str) -> None:
    before = adata.copy()
    with pytest.raises(error, match=message):
        vx.tl.fit_vae(adata, **QUICK | {"max_epochs": 1}, **arguments)
    assert list(adata.uns) == list(before.uns)
    pd.testing.assert_frame_equal(adata.obs, before.obs)


def test_arguments_of_annotate(reference: ad.AnnData, query: ad.AnnData, fitted: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="has no labels to annotate with"):
        vx.tl.annotate(fitted)
    with pytest.raises(ValueError, match="alpha"):
        vx.tl.annotate(query, model=reference, alpha=0.0)
    with pytest.raises(ValueError, match="is a label of the fit"):
        vx.tl.annotate(query, model=reference, unknown_category=str(query.obs["group"].cat.categories[0]))
    with pytest.raises(ValueError, match="no coarser label for"):
        vx.tl.annotate(query, model=reference, coarse={query.obs["group"].cat.categories[0]: "even"})
    with pytest.raises(ValueError, match="not a label of the fit"):
        vx.tl.annotate(query, model=reference, coarse={"nothing": "even"})
    with pytest.raises(KeyError, match="no column next to the labels"):
        vx.tl.annotate(query, model=reference, coarse="nothing")
    with pytest.raises(TypeError, match="a mapping from labels"):
        vx.tl.annotate(query, model=reference, coarse=3)  # type: ignore[arg-type]
    names = ["group_0", "group_1", "group_2"]
    with pytest.raises(ValueError, match="a missing value as the coarser label"):
        vx.tl.annotate(query, model=reference, coarse=dict.fromkeys(names, float("nan")))
    for taken in ("Unknown", "Undecided"):
        with pytest.raises(ValueError, match=f"coarser label '{taken}'"):
            vx.tl.annotate(query, model=reference, coarse=dict.fromkeys(names, taken))
    query.obs["vae_label"] = "mine"
    with pytest.raises(ValueError, match="key_added="):
        vx.tl.annotate(query, model=reference)
    assert "vae_label" not in query.uns


def test_a_damaged_part_is_found(reference: ad.AnnData, query: ad.AnnData) -> None:
    broken = reference.copy()
    broken.uns["vae"]["labels"]["pool"] = np.array([1.0, np.nan])
    with pytest.raises(ValueError, match="damaged"):
        vx.tl.annotate(query, model=broken)
    broken = reference.copy()
    broken.uns["vae"]["labels"]["latent"]["bias"] += 0.5
    with pytest.raises(ValueError, match="checksum"):
        vx.tl.annotate(query, model=broken)
