"""``vx.tl.outliers`` on AnnData."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse
from scipy.stats import false_discovery_control

import vxpress as vx

COLUMNS = ["vae_outlier_score", "vae_outlier_pval", "vae_outlier_pval_adj", "vae_outlier", "vae_outlier_genes"]


@pytest.fixture(scope="module")
def _parts() -> dict[str, ad.AnnData]:
    adata = vx.datasets.simulate(700, 50, n_groups=3, n_batches=2, library_mean=300, rng=1)
    adata.obs = adata.obs[["batch"]].copy()
    reference, calibration, query = adata[:300].copy(), adata[300:550].copy(), adata[550:].copy()
    vx.tl.fit_vae(reference, "batch", n_latent=3, n_hidden=16, max_epochs=20, batch_size=64, denoised=False)
    # cells with permuted genes, unlike all types of the fit
    counts = query.X.toarray()
    counts[:15] = counts[:15, ::-1]
    query.X = sparse.csr_matrix(counts)
    return {"reference": reference, "calibration": calibration, "query": query}


@pytest.fixture
def parts(_parts: dict[str, ad.AnnData]) -> dict[str, ad.AnnData]:
    """Reference, calibration and query; the first 15 cells of the query are unusual."""
    return {name: part.copy() for name, part in _parts.items()}


def _run(parts: dict[str, ad.AnnData], **kwargs) -> ad.AnnData:
    query = parts["query"]
    vx.tl.outliers(query, parts["reference"], calibration=parts["calibration"], **kwargs)
    return query


def test_unusual_cells_are_found_and_others_are_not(parts):
    query = _run(parts)
    pval = query.obs["vae_outlier_pval"]
    assert (pval.iloc[:15] < 0.05).mean() > 0.7
    assert (pval.iloc[15:] < 0.05).mean() < 0.15
    assert query.obs["vae_outlier"].dtype == bool
    _run(parts, alpha=0.4, min_stratum=1000)
    assert query.obs["vae_outlier"].iloc[:15].mean() > query.obs["vae_outlier"].iloc[15:].mean()
    np.testing.assert_allclose(
        query.obs["vae_outlier_pval_adj"], false_discovery_control(query.obs["vae_outlier_pval"])
    )
    np.testing.assert_array_equal(query.obs["vae_outlier"], query.obs["vae_outlier_pval_adj"] <= 0.4)
    assert set(query.obs["vae_outlier_genes"].iloc[0].split(", ")) <= set(query.var_names)


def test_an_unseen_batch_is_treated_as_the_average_batch(parts):
    known = _run(parts).obs["vae_outlier_pval"].copy()
    query = parts["query"]
    query.obs["batch"] = np.where(np.arange(query.n_obs) % 2, query.obs["batch"].astype(str), "new")
    _run(parts)
    pval = query.obs["vae_outlier_pval"]
    assert pval.notna().all()
    np.testing.assert_allclose(pval[1::2], known[1::2], atol=0.02)
    with pytest.raises(ValueError, match="modelled genes are missing"):
        vx.tl.outliers(query[:, 5:].copy(), parts["reference"], calibration=parts["calibration"])


def test_the_record_of_the_call(parts):
    query = _run(parts, alpha=0.2, min_stratum=100)
    record = query.uns["vae_outlier"]
    assert record["n_calibration"] == 250
    assert record["n_tested"] == 150
    assert record["n_outliers"] == query.obs["vae_outlier"].sum()
    assert record["params"]["alpha"] == 0.2
    sizes = parts["calibration"].obs["batch"].value_counts()
    assert record["strata"].tolist() == [*(sizes.index[sizes >= 100].sort_values()), "all batches"]
    assert record["smallest_pval"] == pytest.approx(1 / (1 + max(sizes.max(), 250 if (sizes < 100).any() else 0)))
    assert query.obs["vae_outlier_pval"].min() >= record["smallest_pval"]
    assert abs(record["rho_log_depth"]) < 0.2


def test_cells_of_the_fit_and_calibration_cells_get_no_p_value(parts):
    both = ad.concat(parts, label="part", uns_merge="first", join="outer")
    both.obs["usual"] = (both.obs["part"] == "calibration").to_numpy()
    both.obsm["X_vae"] = np.zeros((both.n_obs, 3), dtype=np.float32)
    both.obsm["X_vae"][:300] = parts["reference"].obsm["X_vae"]
    before = both.copy()
    vx.tl.outliers(both, calibration="usual")
    tested = (both.obs["part"] == "query").to_numpy()
    assert both.obs["vae_outlier_pval"].notna().to_numpy().tolist() == tested.tolist()
    assert not both.obs["vae_outlier"][~tested].any()
    alone = _run(parts)
    np.testing.assert_allclose(both.obs["vae_outlier_pval"][tested], alone.obs["vae_outlier_pval"], atol=1e-9)
    by_array = before.copy()
    vx.tl.outliers(by_array, calibration=before.obs["usual"].to_numpy())
    np.testing.assert_array_equal(by_array.obs["vae_outlier_pval"], both.obs["vae_outlier_pval"])


def test_same_seed_same_result_and_copy_writes_nothing(parts):
    again = vx.tl.outliers(parts["query"], parts["reference"], calibration=parts["calibration"], copy=True)
    assert not set(COLUMNS) & set(parts["query"].obs.columns)
    query = _run(parts)
    assert again is not None
    assert again.obs[COLUMNS].equals(query.obs[COLUMNS])
    broken = _run(parts, randomize_ties=True, rng=0).obs["vae_outlier_pval"]
    assert (broken <= again.obs["vae_outlier_pval"]).all()
    assert (broken > again.obs["vae_outlier_pval"] - 1 / 126).all()
    assert not broken.equals(again.obs["vae_outlier_pval"])


def test_a_subset_of_cells_and_genes_in_any_order(parts):
    whole = _run(parts).obs
    some = parts["query"][40:10:-1, ::-1].copy()
    vx.tl.outliers(some, parts["reference"], calibration=parts["calibration"])
    for name in ("vae_outlier_score", "vae_outlier_pval"):
        np.testing.assert_allclose(some.obs[name], whole[name].iloc[40:10:-1], rtol=1e-4, atol=1e-4)


def test_the_model_may_be_a_file_and_results_survive_a_file(parts, tmp_path):
    whole = _run(parts).obs
    parts["reference"].write_h5ad(tmp_path / "reference.h5ad")
    query = parts["query"][:20].copy()
    vx.tl.outliers(query, tmp_path / "reference.h5ad", calibration=parts["calibration"])
    np.testing.assert_allclose(
        query.obs["vae_outlier_score"], whole["vae_outlier_score"].iloc[:20], rtol=1e-4, atol=1e-4
    )
    query.write_h5ad(tmp_path / "query.h5ad")
    read = sc.read_h5ad(tmp_path / "query.h5ad")
    np.testing.assert_allclose(read.obs["vae_outlier_pval"], query.obs["vae_outlier_pval"])
    assert read.uns["vae_outlier"]["n_calibration"] == 250
    vx.tl.outliers(read, tmp_path / "reference.h5ad", calibration=parts["calibration"])


def test_other_names(parts):
    _run(parts, key_added="odd")
    assert {"odd", "odd_pval", "odd_pval_adj", "odd_score", "odd_genes"} <= set(parts["query"].obs)
    assert "odd" in parts["query"].uns


def test_cells_without_counts_get_no_p_value(parts):
    query = parts["query"]
    counts = query.X.toarray()
    counts[3] = 0
    query.X = sparse.csr_matrix(counts)
    _run(parts)
    assert np.isnan(query.obs["vae_outlier_pval"].iloc[3])
    assert query.obs["vae_outlier_pval"].notna().sum() == 149


def test_labels_that_the_dispersion_depends_on(adata):
    adata.obs["group"] = adata.obs["group"].astype(str)
    reference, rest = adata[:80].copy(), adata[80:].copy()
    vx.tl.fit_vae(
        reference, dispersion="gene-label", labels_key="group", n_latent=2, n_hidden=8, max_epochs=1, denoised=False
    )
    vx.tl.outliers(rest, reference, calibration=np.arange(80) < 60)
    assert rest.obs["vae_outlier_pval"].notna().sum() == 20


def test_missing_calibration_names_the_calls(parts):
    with pytest.raises(ValueError, match=r"calibration= is missing.*vx.tl.fit_vae.*calibration=calibration"):
        vx.tl.outliers(parts["query"], parts["reference"])


def test_cells_of_the_fit_cannot_calibrate(parts):
    reference, query = parts["reference"], parts["query"]
    with pytest.raises(ValueError, match="'train' or 'validation'"):
        vx.tl.outliers(query, reference, calibration=reference)
    # also if nothing in obs shows it
    bare = ad.AnnData(reference.X, obs=reference.obs[["batch"]], var=reference.var)
    with pytest.raises(ValueError, match="have the same latent state as a cell of the fit"):
        vx.tl.outliers(query, reference, calibration=bare)
    assert not set(COLUMNS) & set(query.obs.columns)


def test_cells_of_another_fit_do_not_count_as_cells_of_this_fit(parts):
    expected = _run(parts).obs[COLUMNS]
    query, calibration = (parts[name].copy() for name in ("query", "calibration"))
    query.obs = query.obs.drop(columns=COLUMNS)
    for other in (query, calibration):
        vx.tl.fit_vae(other, "batch", n_latent=2, n_hidden=8, max_epochs=1, denoised=False)
    vx.tl.outliers(query, parts["reference"], calibration=calibration, key_added="again")
    assert query.obs["again_pval"].notna().all()
    np.testing.assert_array_equal(query.obs["again_pval"], expected["vae_outlier_pval"])
    # the cells of the fit itself are still recognised
    own = parts["reference"][:20].copy()
    with pytest.raises(ValueError, match="No cell of adata is left to test"):
        vx.tl.outliers(own, parts["reference"], calibration=parts["calibration"])


def test_outlier_genes_are_genes_with_counts(parts):
    query = parts["query"]
    counts = np.zeros(query.shape, np.float32)
    counts[:, 4] = 1
    counts[1:, 7] = 2
    query.X = sparse.csr_matrix(counts)
    _run(parts)
    assert query.obs["vae_outlier_genes"].iloc[0] == query.var_names[4]
    assert set(query.obs["vae_outlier_genes"].iloc[1].split(", ")) == set(query.var_names[[4, 7]])


def test_cells_do_not_calibrate_themselves(parts):
    with pytest.raises(ValueError, match="adata itself"):
        vx.tl.outliers(parts["query"], parts["reference"], calibration=parts["query"])


def test_backed_cells(parts, tmp_path):
    whole = _run(parts).obs["vae_outlier_score"].copy()
    parts["query"].obs["usual"] = False
    both = ad.concat([parts["query"], parts["calibration"]])
    both.obs["usual"] = np.arange(both.n_obs) >= 150
    both.obs = both.obs[["batch", "usual"]].copy()
    both.write_h5ad(tmp_path / "both.h5ad")
    backed = sc.read_h5ad(tmp_path / "both.h5ad", backed="r")
    vx.tl.outliers(backed, parts["reference"], calibration="usual")
    np.testing.assert_allclose(backed.obs["vae_outlier_score"].iloc[:150], whole, rtol=1e-4, atol=1e-4)


def test_nothing_to_test(parts):
    with pytest.raises(ValueError, match="left to test: 300 of 300"):
        vx.tl.outliers(parts["reference"], calibration=parts["calibration"])


def test_training_cells_are_needed(parts, tmp_path):
    vx.save_model(parts["reference"], tmp_path / "fit.safetensors")
    for model in (None, tmp_path / "fit.safetensors"):
        query = parts["query"].copy()
        vx.tl.encode(query, parts["reference"])
        with pytest.raises(KeyError, match="no training cells"):
            vx.tl.outliers(query, model, calibration=parts["calibration"])


def test_warnings(parts, warned):
    calibration = parts["calibration"]
    other = str(calibration.obs["batch"].iloc[0])
    alone = calibration[calibration.obs["batch"] == other].copy()
    parts["calibration"] = alone[:60].copy()
    _run(parts)
    said = " ".join(warned)
    assert "without calibration cells" in said
    assert "no cell can be marked unless" in said
    warned.clear()
    seen = ad.AnnData(parts["reference"].X, obs=parts["reference"].obs[["batch"]], var=parts["reference"].var)
    vx.tl.outliers(seen, parts["reference"], calibration=calibration)
    assert "the same latent state as a training cell" in " ".join(warned)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"calibration": "nowhere"}, KeyError, "not a column"),
        ({"calibration": "batch"}, ValueError, "150 booleans"),
        ({"calibration": np.ones(3, dtype=bool)}, ValueError, r"shape \(3,\)"),
        ({"calibration": 3}, TypeError, "takes an AnnData"),
        ({"calibration": np.arange(150) < 20}, ValueError, "at least 50"),
        ({"calibration": np.ones(150, dtype=bool)}, ValueError, "left to test"),
        ({"alpha": 0.0}, ValueError, "alpha"),
        ({"min_stratum": 0}, ValueError, "min_stratum"),
        ({"rng": -1}, ValueError, "rng"),
        ({"key_added": "a/b"}, ValueError, "without '/'"),
        ({"key_added": "batch"}, ValueError, "which no earlier call wrote"),
        ({"key": "other"}, KeyError, "no fit"),
    ],
)
def test_bad_arguments(parts, arguments, error, match):
    given = {"calibration": parts["calibration"]} | arguments
    before = list(parts["query"].obs.columns)
    with pytest.raises(error, match=match):
        vx.tl.outliers(parts["query"], parts["reference"], **given)
    assert list(parts["query"].obs.columns) == before
