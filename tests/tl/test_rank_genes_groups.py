"""``vx.tl.rank_genes_groups``: scanpy's layout, correct genes, and bad input."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import vxpress as vx

# scanpy drops a column in place, and pandas 3 warns
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")

FIELDS = ("names", "scores", "logfoldchanges", "pvals", "pvals_adj")


@pytest.fixture(scope="module")
def _trained() -> ad.AnnData:
    adata = vx.datasets.simulate(
        600, 120, n_groups=3, n_batches=2, library_mean=600, de_fraction=0.3, de_log_fold_change=1.5, rng=3
    )
    adata.obs["donor"] = np.random.default_rng(0).choice([f"d{i}" for i in range(6)], adata.n_obs)
    vx.tl.fit_vae(adata, "batch", denoised=False, n_latent=4, n_hidden=32, max_epochs=25)
    return adata


@pytest.fixture
def simulated(_trained: ad.AnnData) -> ad.AnnData:
    """600 cells of three groups in two batches, with a fit that uses the batches."""
    return _trained.copy()


def frame(adata: ad.AnnData, group: str, key: str = "rank_genes_groups") -> pd.DataFrame:
    return sc.get.rank_genes_groups_df(adata, group, key=key).set_index("names").loc[adata.var_names]


def equal(one: dict, other: dict) -> None:
    assert one["params"] == other["params"]
    for name in FIELDS:
        for group in one["names"].dtype.names:
            np.testing.assert_array_equal(one[name][group], other[name][group])


def test_the_layout_is_that_of_scanpy(simulated):
    vx.tl.rank_genes_groups(simulated, "group", key_added="ours")
    normal = simulated.copy()
    sc.pp.normalize_total(normal)
    sc.pp.log1p(normal)
    sc.tl.rank_genes_groups(normal, "group", method="t-test")
    ours, theirs = simulated.uns["ours"], normal.uns["rank_genes_groups"]
    assert set(theirs) <= set(ours)
    assert set(theirs["params"]) <= set(ours["params"])
    for name in FIELDS:
        assert type(ours[name]) is type(theirs[name])
        assert ours[name].dtype == theirs[name].dtype
        assert ours[name].shape == theirs[name].shape
    for group in ours["names"].dtype.names:
        assert (np.diff(ours["scores"][group]) <= 0).all()
        assert set(ours["names"][group]) == set(simulated.var_names)
        pvals = ours["pvals"][group]
        np.testing.assert_allclose(np.argsort(pvals, kind="stable")[:1], np.argmax(np.abs(ours["scores"][group])))
        assert (ours["pvals_adj"][group] >= pvals).all()


@pytest.mark.filterwarnings("ignore:set_ticklabels")
def test_scanpy_plots_and_filters_it(simulated):
    mpl.use("Agg")
    vx.tl.rank_genes_groups(simulated, "group")
    sc.pp.normalize_total(simulated)
    sc.pp.log1p(simulated)
    sc.tl.dendrogram(simulated, "group", use_rep="X_vae")
    for plot in ("", "_dotplot", "_heatmap", "_violin", "_stacked_violin", "_matrixplot", "_tracksplot"):
        getattr(sc.pl, f"rank_genes_groups{plot}")(simulated, n_genes=3, show=False)
        mpl.pyplot.close("all")
    sc.pl.rank_genes_groups_dotplot(simulated, n_genes=2, values_to_plot="logfoldchanges", show=False)
    mpl.pyplot.close("all")
    sc.tl.filter_rank_genes_groups(simulated, min_fold_change=1.2)
    assert "rank_genes_groups_filtered" in simulated.uns


def test_it_survives_a_file_and_is_found_again_there(simulated, tmp_path: Path):
    path = tmp_path / "cells.h5ad"
    vx.tl.rank_genes_groups(simulated, "group", sample_key="donor", delta=0.2)
    simulated.write_h5ad(path)
    back = ad.read_h5ad(path)
    vx.tl.rank_genes_groups(back, "group", sample_key="donor", delta=0.2, key_added="again")
    for group in back.obs["group"].cat.categories:
        pd.testing.assert_frame_equal(frame(back, group), frame(simulated, group), check_index_type=False)
        np.testing.assert_allclose(frame(back, group, "again")["scores"], frame(simulated, group)["scores"], rtol=1e-4)


def test_it_finds_differing_genes_and_few_others(simulated):
    vx.tl.rank_genes_groups(simulated, "group")
    fold = 2.0 ** simulated.varm["log_fold_change_true"]
    unchanged = ~simulated.var["de_true"].to_numpy()
    wrong, found = 0, 0
    for i, group in enumerate(simulated.obs["group"].cat.categories):
        true = np.log2(fold[:, i] / np.delete(fold, i, axis=1).mean(1))
        result = frame(simulated, group)
        called = (result["pvals_adj"] < 0.05).to_numpy()
        strong = np.abs(true) > 1
        assert called[strong].mean() > 0.6
        assert (np.sign(result["scores"]) == np.sign(true))[called & strong].all()
        assert np.sqrt(np.mean((result["logfoldchanges"] - true)[strong] ** 2)) < 0.5
        wrong, found = wrong + (called & unchanged).sum(), found + called.sum()
    assert wrong <= 0.05 * found + 1


def test_without_counts_it_finds_no_more_genes_and_no_false_ones(simulated, warned):
    vx.tl.rank_genes_groups(simulated, "group", use_counts=False, key_added="model")
    assert not warned
    normal = simulated.copy()
    sc.pp.normalize_total(normal)
    sc.pp.log1p(normal)
    vx.tl.rank_genes_groups(normal, "group")
    assert "not whole numbers" in warned[0]
    vx.tl.rank_genes_groups(simulated, "group")
    unchanged = ~simulated.var["de_true"].to_numpy()
    for group in simulated.obs["group"].cat.categories:
        np.testing.assert_array_equal(frame(normal, group)["scores"], frame(simulated, group, "model")["scores"])
        model, counts = frame(simulated, group, "model"), frame(simulated, group)
        assert (model["pvals_adj"] < 0.05).sum() <= (counts["pvals_adj"] < 0.05).sum()
        assert (model["pvals_adj"] < 0.05)[unchanged].mean() < 0.03
        assert np.corrcoef(model["logfoldchanges"], counts["logfoldchanges"])[0, 1] > 0.2
    assert normal.uns["rank_genes_groups"]["params"]["counts"] is False
    with pytest.raises(ValueError, match="not whole numbers"):
        vx.tl.rank_genes_groups(normal, "group", use_counts=True)


def test_counts_may_be_in_a_layer_and_in_any_format(simulated):
    vx.tl.rank_genes_groups(simulated, "group")
    expected = simulated.uns["rank_genes_groups"]
    other = simulated.copy()
    other.layers["counts"] = sparse.csc_matrix(other.X)
    sc.pp.normalize_total(other)
    vx.tl.rank_genes_groups(other, "group", layer="counts")
    assert other.uns["rank_genes_groups"]["params"]["layer"] == "counts"
    for group in expected["names"].dtype.names:
        np.testing.assert_allclose(
            other.uns["rank_genes_groups"]["scores"][group], expected["scores"][group], rtol=1e-5
        )


def test_exchanging_group_and_reference_changes_the_sign(simulated):
    first, second, _ = simulated.obs["group"].cat.categories
    vx.tl.rank_genes_groups(simulated, "group", groups=[first], reference=second, key_added="there", n_cells=5_000)
    vx.tl.rank_genes_groups(simulated, "group", groups=[second], reference=first, key_added="back", n_cells=5_000)
    assert simulated.uns["there"]["names"].dtype.names == (first,)
    there, back = frame(simulated, first, "there"), frame(simulated, second, "back")
    np.testing.assert_allclose(there["logfoldchanges"], -back["logfoldchanges"], atol=1e-4)
    np.testing.assert_allclose(there["scores"], -back["scores"], atol=1e-3)
    vx.tl.rank_genes_groups(simulated, "group", reference=second)
    assert second not in simulated.uns["rank_genes_groups"]["names"].dtype.names


def test_seed_copy_subset_and_number_of_genes(simulated):
    copied = vx.tl.rank_genes_groups(simulated, "group", copy=True, rng=1)
    assert copied is not None
    assert "rank_genes_groups" not in simulated.uns
    vx.tl.rank_genes_groups(simulated, "group", rng=1)
    equal(simulated.uns["rank_genes_groups"], copied.uns["rank_genes_groups"])
    vx.tl.rank_genes_groups(simulated, "group", rng=1, n_genes=5)
    for name in FIELDS:
        np.testing.assert_array_equal(
            simulated.uns["rank_genes_groups"][name], copied.uns["rank_genes_groups"][name][:5]
        )
    assert len(simulated.uns["rank_genes_groups"]["names"]) == 5
    part = simulated[simulated.obs["batch"] == simulated.obs["batch"].iloc[0], 20:80].copy()
    vx.tl.rank_genes_groups(part, "group")
    assert set(part.uns["rank_genes_groups"]["names"][part.obs["group"].iloc[0]]) == set(part.var_names)


def test_categories_of_any_kind(simulated):
    simulated.obs["odd"] = pd.Categorical(
        np.where(np.arange(600) < 2, "few", simulated.obs["group"].astype(str)),
        categories=[*map(str, simulated.obs["group"].cat.categories), "few", "unused"],
    )
    simulated.obs.loc[simulated.obs_names[-5:], "odd"] = np.nan
    vx.tl.rank_genes_groups(simulated, "odd")
    stored = simulated.uns["rank_genes_groups"]
    assert stored["names"].dtype.names == (*map(str, simulated.obs["group"].cat.categories), "few")
    for group in stored["names"].dtype.names:
        for name in FIELDS[1:]:
            assert np.isfinite(stored[name][group]).all()
    simulated.obs["number"] = np.arange(600) % 3
    vx.tl.rank_genes_groups(simulated, "number")
    assert simulated.uns["rank_genes_groups"]["names"].dtype.names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("column", "names"),
    [
        (pd.array([None, *(i % 3 for i in range(599))], dtype="Int64"), ("0", "1", "2")),
        (pd.array([None, *(i % 2 > 0 for i in range(599))], dtype="boolean"), ("False", "True")),
        (pd.array([None, *("ab"[i % 2] for i in range(599))], dtype="string"), ("a", "b")),
    ],
)
def test_nullable_columns_with_gaps(simulated, column, names):
    simulated.obs["nullable"] = column
    vx.tl.rank_genes_groups(simulated, "nullable")
    assert simulated.uns["rank_genes_groups"]["names"].dtype.names == names


def test_random_groups_are_not_called(simulated):
    rng = np.random.default_rng(1)
    for _ in range(5):
        simulated.obs["random"] = pd.Categorical(rng.choice(["a", "b", "c"], simulated.n_obs))
        for use_counts in (None, False):
            vx.tl.rank_genes_groups(simulated, "random", use_counts=use_counts)
            for group in "abc":
                assert (frame(simulated, group)["pvals_adj"] < 0.05).sum() <= 1


def test_groups_that_equal_batches_raise_a_warning(simulated, warned):
    simulated.obs["site"] = simulated.obs["batch"].astype(str)
    vx.tl.rank_genes_groups(simulated, "site", key_added="corrected")
    assert "cannot distinguish a batch effect" in warned[0]
    vx.tl.rank_genes_groups(simulated, "site", batch_key=None, key_added="raw")
    assert len(warned) == 1
    group = simulated.obs["site"].iloc[0]
    size = {key: frame(simulated, group, key)["logfoldchanges"].std() for key in ("corrected", "raw")}
    assert size["corrected"] < 0.7 * size["raw"]


def test_samples_give_fewer_calls_than_cells(simulated, warned):
    simulated.obs["sick"] = np.where(simulated.obs["donor"].isin(["d0", "d1", "d2"]), "yes", "no")
    vx.tl.rank_genes_groups(simulated, "sick", sample_key="donor", key_added="samples")
    vx.tl.rank_genes_groups(simulated, "sick", key_added="cells")
    assert (frame(simulated, "yes", "samples")["pvals"] >= frame(simulated, "yes", "cells")["pvals"] - 1e-12).all()
    assert not warned
    two = simulated[simulated.obs["donor"].isin(["d0", "d5"])].copy()
    vx.tl.rank_genes_groups(two, "sick", sample_key="donor")
    assert "one degree of freedom" in warned[0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groupby": "nothing"}, KeyError, "is not a column"),
        ({"groupby": "age"}, ValueError, "not categories"),
        ({"groupby": "one"}, ValueError, "at least two"),
        ({"reference": "elsewhere"}, ValueError, "choose 'rest'"),
        ({"groups": ["elsewhere"]}, ValueError, "has the categories"),
        ({"groups": "elsewhere"}, ValueError, "a list of categories"),
        ({"groups": []}, ValueError, "Name one or more"),
        ({"delta": -1}, ValueError, "delta"),
        ({"n_cells": 0}, ValueError, "n_cells"),
        ({"n_draws": 2.5}, ValueError, "n_draws"),
        ({"n_genes": 0}, ValueError, "n_genes"),
        ({"batch_key": "nothing"}, KeyError, "is not a column"),
        ({"sample_key": "nothing"}, KeyError, "is not a column"),
        ({"groups": 5}, ValueError, "a list of categories"),
        ({"layer": "nothing"}, KeyError, "is not in adata.layers"),
        ({"layer": "nothing", "use_counts": True}, KeyError, "is not in adata.layers"),
        ({"key": "nothing"}, KeyError, "holds no fit"),
        ({"key_added": "a/b"}, ValueError, "without '/'"),
        ({"key_added": "vae"}, ValueError, "which no earlier call wrote"),
        ({"rng": "seed"}, ValueError, "rng"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(fitted, arguments, error, message):
    fitted.obs["one"] = "same"
    before = set(fitted.uns)
    with pytest.raises(error, match=message):
        vx.tl.rank_genes_groups(fitted, **{"groupby": "group", **arguments})
    assert set(fitted.uns) == before


def test_genes_outside_the_fit_and_fits_without_a_count_distribution(fitted, warned, quick):
    more = ad.concat(
        [fitted, ad.AnnData(np.ones((fitted.n_obs, 2), np.float32), obs=fitted.obs[[]])],
        axis=1,
        merge="first",
        uns_merge="first",
    )
    vx.tl.rank_genes_groups(more, "group")
    assert "2 gene(s) of adata are unknown" in warned[0]
    assert len(more.uns["rank_genes_groups"]["names"]) == fitted.n_vars
    vx.tl.fit_vae(fitted, likelihood="gaussian", key_added="g", denoised=False, **quick)
    with pytest.raises(ValueError, match="gaussian"):
        vx.tl.rank_genes_groups(fitted, "group", key="g")


@pytest.mark.parametrize("likelihood", ["zinb", "poisson", "bernoulli"])
def test_every_count_distribution_works(adata, quick, likelihood):
    vx.tl.fit_vae(adata, likelihood=likelihood, denoised=False, **quick)
    for use_counts in (True, False):
        vx.tl.rank_genes_groups(adata, "group", use_counts=use_counts)
        assert np.isfinite(frame(adata, str(adata.obs["group"].iloc[0]))).all(axis=None)
