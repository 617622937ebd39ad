"""New cells from the prior."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import vxpress as vx
from vxpress.bridge.fits.find_fit import find_fit

# so few cells are learned within a few epochs
LEARNS_FAST = vx.tl.FitOptions(norm="batch", dropout=0.1, thinning=0.0, start="mean")


def _dense(adata: ad.AnnData) -> np.ndarray:
    return np.asarray(adata.X.todense()) if sparse.issparse(adata.X) else np.asarray(adata.X)


def test_new_cells_are_an_anndata_for_scanpy(fitted: ad.AnnData, tmp_path: Path) -> None:
    new = vx.tl.generate(fitted, 120)
    fit = find_fit(fitted, None, "vae")
    assert list(new.var_names) == list(fit.genes[fit.modelled_g])
    assert new.X.dtype == np.float32
    assert new.X.format == "csr"
    assert (new.X.data % 1 == 0).all()
    assert (new.X.data > 0).all()
    assert list(new.obs.columns) == ["batch", "age", "vae_library", "vae_split"]
    assert set(new.obs["vae_split"]) == {"generated"}
    assert new.uns["vae_generate"]["params"]["drawn_from"] == "prior"
    # the library counts all genes; only some are modelled
    assert (new.obs["vae_library"] >= np.asarray(new.X.sum(1))[:, 0] * 0.5).all()
    new.write_h5ad(tmp_path / "new.h5ad")
    back = ad.read_h5ad(tmp_path / "new.h5ad")
    assert back.uns["vae_generate"]["params"] == new.uns["vae_generate"]["params"]
    assert (back.X != new.X).nnz == 0


def test_z_is_drawn_from_the_prior_and_not_from_cells(fitted: ad.AnnData) -> None:
    z = vx.tl.generate(fitted, 4000).obsm["X_vae"]
    assert np.abs(z.mean(0)).max() < 4.5 / np.sqrt(4000)
    np.testing.assert_allclose(np.cov(z.T), np.eye(z.shape[1]), atol=0.12)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "gaussian", "bernoulli"])
def test_counts_have_the_moments_of_the_decoder_at_z(adata: ad.AnnData, quick: dict, likelihood: str) -> None:
    vx.tl.fit_vae(adata, "batch", likelihood=likelihood, denoised=False, **quick)
    new = vx.tl.generate(adata, 3000, library=300.0)
    fit = find_fit(adata, None, "vae")
    with torch.no_grad():
        distribution = fit.model.likelihood(
            {"z": torch.from_numpy(new.obsm["X_vae"])},
            fit.covariates.read(new.obs, labels=False),
            torch.full((3000, 1), float(np.log(300.0))),
        )
        mean, variance = distribution.mean.double().numpy(), distribution.variance.double().numpy()
        zero = distribution.zero_probability.double().numpy()
    x = _dense(new).astype(np.float64)
    z_score = (x - mean).sum(0) / np.sqrt(variance.sum(0))
    assert np.abs(z_score).max() < 4.5
    assert ((x - mean) ** 2).sum() / variance.sum() == pytest.approx(1.0, abs=0.05)
    if likelihood == "gaussian":
        assert new.uns["vae_generate"]["params"]["scale"] == "log1p_cp10k"
        assert isinstance(new.X, np.ndarray)
    else:
        assert new.uns["vae_generate"]["params"]["scale"] == "counts"
        spread = np.sqrt((zero * (1 - zero)).sum(0))
        # the number of zeros is normal only if it varies
        assert np.abs(((x == 0) - zero).sum(0) / spread)[spread > 2.0].max() < 4.5
    if likelihood == "bernoulli":
        assert set(np.unique(x)) == {0.0, 1.0}


def test_draws_depend_on_the_seed_alone(fitted: ad.AnnData) -> None:
    first, again, other = (vx.tl.generate(fitted, 50, rng=seed) for seed in (3, 3, 4))
    assert (first.X != again.X).nnz == 0
    pd.testing.assert_frame_equal(first.obs, again.obs)
    assert (first.X != other.X).nnz > 0
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    threaded = vx.tl.generate(fitted, 50, rng=3)
    torch.set_num_threads(before)
    assert (first.X != threaded.X).nnz == 0
    vx.tl.generate(fitted, 5, rng=np.random.default_rng(0))


def test_the_anndata_does_not_change_and_needs_no_counts(fitted: ad.AnnData) -> None:
    normalised = fitted.copy()
    normalised.X = normalised.X * 0.1
    before = normalised.copy()
    new = vx.tl.generate(normalised, 30)
    assert (new.X != vx.tl.generate(fitted, 30).X).nnz == 0
    assert list(before.obs) == list(normalised.obs)
    assert set(before.uns) == set(normalised.uns)


def test_given_covariates_and_library_are_used(fitted: ad.AnnData) -> None:
    batch = fitted.obs["batch"].cat.categories[1]
    new = vx.tl.generate(
        fitted, 40, covariates={"batch": batch, "age": np.linspace(30, 60, 40)}, library=np.arange(1, 41)
    )
    assert set(new.obs["batch"]) == {batch}
    np.testing.assert_array_equal(new.obs["age"], np.linspace(30, 60, 40))
    np.testing.assert_array_equal(new.obs["vae_library"], np.arange(1, 41))


def test_missing_covariates_come_jointly_from_training_cells_with_the_given_ones(fitted: ad.AnnData) -> None:
    batch = str(fitted.obs["batch"].cat.categories[0])
    for n_neighbors in (15, None):
        new = vx.tl.generate(fitted, 200, covariates={"batch": batch}, n_neighbors=n_neighbors)
        rows = fitted.obs[(fitted.obs["batch"] == batch) & fitted.obs["vae_split"].isin(["train", "validation"])]
        known = set(zip(rows["age"], rows["vae_library"], strict=True))
        assert set(zip(new.obs["age"], new.obs["vae_library"], strict=True)) <= known


def test_size_factors_come_from_cells_near_z(adata: ad.AnnData) -> None:
    # cells of one group have ten times the molecules of the others
    rich = (adata.obs["group"] == adata.obs["group"].cat.categories[0]).to_numpy()
    del adata.obs["library_size"]
    adata.X = adata.X.multiply(np.where(rich, 10, 1)[:, None]).tocsr()
    vx.tl.fit_vae(adata, n_latent=3, n_hidden=16, max_epochs=30, batch_size=32, options=LEARNS_FAST, denoised=False)
    near, far = (vx.tl.generate(adata, 1000, n_neighbors=k) for k in (10, None))
    center = adata.obsm["X_vae"][rich].mean(0) - adata.obsm["X_vae"][~rich].mean(0)
    found = [np.corrcoef(new.obsm["X_vae"] @ center, np.log(new.obs["vae_library"]))[0, 1] for new in (near, far)]
    assert found[0] > 0.4
    assert abs(found[1]) < 0.12


def test_a_latent_library_can_be_drawn_from_its_prior(adata: ad.AnnData, quick: dict, tmp_path: Path) -> None:
    vx.tl.fit_vae(adata, "batch", library="latent", denoised=False, **quick)
    batch = str(adata.obs["batch"].cat.categories[1])
    new = vx.tl.generate(adata, 3000, covariates={"batch": batch}, library="prior")
    model = find_fit(adata, None, "vae").model
    log_l = np.log(new.obs["vae_library"])
    assert log_l.mean() == pytest.approx(float(model.get_buffer("blocks.library.log_mean_b")[1]), abs=0.05)
    assert log_l.var() == pytest.approx(float(model.get_buffer("blocks.library.log_var_b")[1]), rel=0.12)
    vx.save_model(adata, tmp_path / "m.safetensors")
    alone = vx.tl.generate(vx.load_model(tmp_path / "m.safetensors"), 3000, covariates={"batch": batch})
    assert np.log(alone.obs["vae_library"]).mean() == pytest.approx(
        float(model.get_buffer("blocks.library.log_mean_b")[1]), abs=0.05
    )


def test_the_error_for_a_model_without_cells_names_missing_arguments(fitted: ad.AnnData, tmp_path: Path) -> None:
    vx.save_model(fitted, tmp_path / "m.safetensors")
    model = vx.load_model(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"library and covariates.*library=2000, covariates="):
        vx.tl.generate(model, 10)
    with pytest.raises(ValueError, match="no cells to take covariates from"):
        vx.tl.generate(model, 10, library=500)
    given = {"batch": "batch_0", "age": 50.0}
    new = vx.tl.generate(model, 10, library=500, covariates=given)
    assert (new.X != vx.tl.generate(fitted, 10, library=500, covariates=given).X).nnz == 0
    by_path = vx.tl.generate(fitted, 10, library=500, covariates=given, model=tmp_path / "m.safetensors")
    assert (new.X != by_path.X).nnz == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_obs": 0}, ValueError, "n_obs=0"),
        ({"n_obs": 2.5}, ValueError, "a whole number"),
        ({"n_neighbors": 0}, ValueError, "n_neighbors=0"),
        ({"labels": "B cell"}, ValueError, r"does not use labels.*fit_prior.*covariates of the fit \(batch\)"),
        ({"covariates": {"batch": "nowhere"}}, ValueError, r"\['nowhere'\], which the fit has not seen.*batch_0"),
        ({"covariates": {"donor": "d1"}}, KeyError, "is not a covariate of the fit"),
        ({"covariates": {"age": "old"}}, ValueError, "finite numbers"),
        ({"covariates": {"age": [1.0, 2.0]}}, ValueError, "one value, or 10"),
        ({"covariates": "batch_0"}, TypeError, "should map columns to values"),
        ({"library": 0.0}, ValueError, "numbers above 0"),
        ({"library": [1.0]}, ValueError, "or 10 of them"),
        ({"library": "prior"}, ValueError, "needs a fit with library='latent'"),
        ({"library": "mean"}, ValueError, "a number, an array or 'prior'"),
        ({"key": "other"}, KeyError, "holds no fit"),
        ({"rng": -1}, ValueError, "rng=-1"),
    ],
)
def test_impossible_requests_are_refused(fitted: ad.AnnData, arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        vx.tl.generate(fitted, **{"n_obs": 10} | arguments)


def test_only_an_anndata_is_accepted() -> None:
    with pytest.raises(TypeError, match="AnnData is expected"):
        vx.tl.generate("model.safetensors", 10)


def test_samples_record_that_z_is_drawn_from_the_posterior(fitted: ad.AnnData) -> None:
    vx.tl.sample(fitted)
    assert fitted.uns["vae_sample"]["params"]["drawn_from"] == "posterior"
    several = vx.tl.sample(fitted, n_samples=2)
    assert several is not None
    assert several.uns["vae_sample"]["params"]["drawn_from"] == "posterior"


@pytest.fixture(scope="module")
def _labelled() -> ad.AnnData:
    adata = vx.datasets.simulate(300, 60, n_groups=3, n_batches=2, library_mean=1500, de_log_fold_change=3.0, rng=2)
    adata.obs["kind"] = adata.obs["group"].astype(str).where(np.arange(300) % 10 != 0).astype("category")
    vx.tl.fit_vae(adata, "batch", n_latent=3, n_hidden=24, max_epochs=80, batch_size=32, denoised=False)
    vx.tl.fit_prior(adata, "mixture", condition_key="kind", n_components=3)
    assert adata.uns["vae"]["prior"]["condition_key"] == "kind"
    return adata


@pytest.fixture
def labelled(_labelled: ad.AnnData) -> ad.AnnData:
    """A fit whose prior was learned with labels, which a tenth of the cells lack."""
    return _labelled.copy()


def test_cells_of_a_label_look_like_those_of_the_label(labelled: ad.AnnData) -> None:
    for name in labelled.obs["kind"].cat.categories:
        new = vx.tl.generate(labelled, 400, labels=name)
        assert set(new.obs["kind"]) == {name}
        mean = _dense(new).mean(0) / _dense(new).sum(1).mean()
        distances = {}
        for other in labelled.obs["kind"].cat.categories:
            x = _dense(labelled[labelled.obs["kind"] == other])
            distances[other] = np.abs(mean - x.mean(0) / x.sum(1).mean()).sum()
        assert min(distances, key=distances.get) == name


def test_labels_are_accepted_in_every_form(labelled: ad.AnnData) -> None:
    by_number = vx.tl.generate(labelled, labels={"group_1": 7, "group_0": 3})
    assert by_number.obs["kind"].value_counts().to_dict() == {"group_1": 7, "group_0": 3, "group_2": 0}
    counts = labelled.obs["kind"].value_counts()
    assert vx.tl.generate(labelled, labels=counts).obs["kind"].value_counts().to_dict() == counts.to_dict()
    each = ["group_2", "group_0", "group_2"]
    for labels in (each, np.array(each), pd.Series(each, index=list("xyz"))):
        assert vx.tl.generate(labelled, labels=labels).obs["kind"].to_list() == each
    assert vx.tl.generate(labelled, labels="group_0").n_obs == 1000


def test_labels_are_drawn_with_their_shares_by_default(labelled: ad.AnnData) -> None:
    new = vx.tl.generate(labelled, 4000)
    train = labelled.obs.loc[labelled.obs["vae_split"] == "train", "kind"]
    expected = train.value_counts(normalize=True, dropna=False)
    found = new.obs["kind"].value_counts(normalize=True, dropna=False)
    for name in (*labelled.obs["kind"].cat.categories, np.nan):
        assert found[name] == pytest.approx(expected[name], abs=4.5 * 0.5 / np.sqrt(4000))


def test_size_factors_come_from_cells_of_the_label(labelled: ad.AnnData) -> None:
    new = vx.tl.generate(labelled, labels="group_1", n_obs=100, n_neighbors=None)
    of_label = labelled.obs.loc[(labelled.obs["kind"] == "group_1") & (labelled.obs["vae_split"] != "query")]
    assert set(zip(new.obs["batch"], new.obs["vae_library"], strict=True)) <= set(
        zip(of_label["batch"], of_label["vae_library"], strict=True)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": "group_9"}, r"\['group_9'\], which the prior has not seen in obs\['kind'\]; it knows \['group_0'"),
        ({"labels": ["group_0"] * 3, "n_obs": 4}, "for 3 cells, but n_obs=4"),
        ({"labels": []}, "requests no cells"),
        ({"labels": {"group_0": 0}}, "requests no cells"),
        ({"labels": {"group_0": -1}}, "a whole number of cells"),
    ],
)
def test_invalid_labels_are_refused(labelled: ad.AnnData, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vx.tl.generate(labelled, **arguments)


def test_a_label_without_cells_in_adata_is_named(labelled: ad.AnnData, warned: list[str]) -> None:
    some = labelled[labelled.obs["kind"] != "group_1"].copy()
    new = vx.tl.generate(some, labels={"group_1": 5})
    assert new.n_obs == 5
    assert any("No cell of adata has kind = group_1" in text for text in warned)


def test_a_label_that_is_also_a_covariate_sets_both(adata: ad.AnnData) -> None:
    # after few steps from random weights, z still describes the groups, so that a prior given the group is better
    options = vx.tl.FitOptions(norm="batch", dropout=0.1, thinning=0.0, start="random", condition_output=False)
    settings = {"n_latent": 3, "n_hidden": 16, "max_epochs": 5, "options": options, "denoised": False}
    vx.tl.fit_vae(adata, categorical_covariate_keys=["group"], **settings)
    vx.tl.fit_prior(adata, "mixture", condition_key="group", n_components=2)
    if "condition_key" not in adata.uns["vae"]["prior"]:
        pytest.fail("the prior was not kept, so that there is nothing to test")
    new = vx.tl.generate(adata, 20, labels="group_2")
    assert set(new.obs["group"]) == {"group_2"}
    with pytest.raises(ValueError, match="Give it as labels="):
        vx.tl.generate(adata, 20, covariates={"group": "group_2"})


@pytest.mark.parametrize("prior", ["mixture", "vamp", "flow", "diffusion", "flow_matching"])
def test_every_prior_generates_cells(adata: ad.AnnData, quick: dict, prior: str) -> None:
    vx.tl.fit_vae(adata, "batch", prior=prior, denoised=False, **quick)
    new = vx.tl.generate(adata, 30)
    assert new.uns["vae_generate"]["params"]["prior"] == prior
    assert np.isfinite(new.obsm["X_vae"]).all()
    assert new.X.sum() > 0


def test_pandas_columns_are_accepted_as_labels(labelled: ad.AnnData) -> None:
    name = "group_1"
    for labels in (pd.Categorical([name] * 3), pd.Index([name] * 3), np.array([name] * 3)):
        assert list(vx.tl.generate(labelled, labels=labels).obs["kind"]) == [name] * 3
    assert vx.tl.generate(labelled, 2, labels=np.array(name)).n_obs == 2


def test_numeric_labels_are_not_treated_as_numbers_of_cells(adata: ad.AnnData, quick: dict) -> None:
    adata.obs["cluster"] = adata.obs["group"].astype("category").cat.codes.astype(int)
    vx.tl.fit_vae(adata, denoised=False, **quick)
    vx.tl.fit_prior(adata, "mixture", condition_key="cluster")
    column = adata.obs["cluster"][:7]
    assert list(vx.tl.generate(adata, labels=column).obs["cluster"].astype(int)) == list(column)
    counts = adata.obs["cluster"].value_counts()
    assert vx.tl.generate(adata, labels=counts).n_obs == adata.n_obs


@pytest.mark.parametrize("number", ["5", "x", None, float("nan"), 2.5, -1, True])
def test_numbers_of_cells_are_whole(labelled: ad.AnnData, number: object) -> None:
    name = "group_1"
    with pytest.raises(ValueError, match="should give a whole number of cells for each label"):
        vx.tl.generate(labelled, labels={name: number})  # type: ignore[dict-item]


def test_a_set_of_labels_is_refused(labelled: ad.AnnData) -> None:
    with pytest.raises(TypeError, match="has no order and no numbers"):
        vx.tl.generate(labelled, labels={"group_0", "group_1"})  # type: ignore[arg-type]
