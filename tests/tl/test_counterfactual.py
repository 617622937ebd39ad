from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import vxpress as vx


@pytest.fixture(scope="module")
def _two_conditions() -> ad.AnnData:
    """Three groups under two conditions whose effect is known; the third group lacks the second condition."""
    adata = vx.datasets.simulate(
        900,
        80,
        n_groups=3,
        n_batches=2,
        library_mean=2000,
        batch_strength=0.3,
        de_fraction=0.6,
        de_log_fold_change=1.5,
        keep_truth=True,
        rng=4,
    )
    adata = adata[~((adata.obs["group"] == "group_2") & (adata.obs["batch"] == "batch_1"))].copy()
    adata.obs["condition"] = adata.obs["batch"].cat.rename_categories(["control", "treated"])
    adata.obs["dose"] = (adata.obs["condition"] == "treated").astype(float) * 10
    # with which so few cells and genes are learned within a few epochs
    options = vx.tl.FitOptions(norm="batch", dropout=0.1, thinning=0.0, start="mean")
    settings = {"n_latent": 3, "n_hidden": 32, "max_epochs": 40, "batch_size": 64, "options": options}
    vx.tl.fit_vae(adata, categorical_covariate_keys=["condition"], **settings)
    return adata


@pytest.fixture
def two_conditions(_two_conditions: ad.AnnData) -> ad.AnnData:
    return _two_conditions.copy()


def test_the_known_effect_is_recovered(two_conditions: ad.AnnData) -> None:
    adata = two_conditions
    vx.tl.counterfactual(adata, "condition", "treated", target_sum=1.0)
    vx.tl.denoise(adata, target_sum=1.0, key_added="as_is")
    effect_g = np.diff(adata.varm["batch_log_fold_change_true"], axis=1)[:, 0]
    # the composition under the other condition; effects of the simulation multiply and need no rescaling
    control = ((adata.obs["condition"] == "control") & (adata.obs["group"] != "group_2")).to_numpy()
    truth = adata.layers["rho_true"][control] * np.exp2(effect_g)
    found, as_is = (adata.layers[name][control] for name in ("vae_counterfactual", "as_is"))
    change = np.log2(found) - np.log2(as_is)
    assert np.corrcoef(change.mean(0), effect_g)[0, 1] > 0.9
    distance = [np.median(np.abs(np.log2(layer) - np.log2(truth))) for layer in (found, as_is)]
    assert distance[0] < 0.5 * distance[1]


def test_under_its_own_condition_a_cell_is_denoised(two_conditions: ad.AnnData) -> None:
    for name in ("control", "treated"):
        vx.tl.counterfactual(two_conditions, "condition", name)
        here = (two_conditions.obs["condition"] == name).to_numpy()
        for layer in ("vae_counterfactual", "vae_normalized"):
            assert two_conditions.layers[layer].dtype == np.float32
        np.testing.assert_array_equal(
            two_conditions.layers["vae_counterfactual"][here], two_conditions.layers["vae_normalized"][here]
        )


def test_the_batch_can_be_the_condition(fitted: ad.AnnData) -> None:
    vx.tl.denoise(fitted, transform_batch="batch_1", key_added="there")
    vx.tl.denoise(fitted, transform_batch="observed", key_added="own")
    vx.tl.counterfactual(fitted, "batch", "batch_1")
    np.testing.assert_array_equal(fitted.layers["vae_counterfactual"], fitted.layers["there"])
    here = (fitted.obs["batch"] == "batch_1").to_numpy()
    np.testing.assert_array_equal(fitted.layers["vae_counterfactual"][here], fitted.layers["own"][here])
    with pytest.raises(ValueError, match="Leave it out"):
        vx.tl.counterfactual(fitted, "batch", "batch_1", transform_batch="batch_0")


def test_a_number_is_in_the_units_of_its_column(fitted: ad.AnnData) -> None:
    i = 5
    vx.tl.counterfactual(fitted, "age", float(fitted.obs["age"].iloc[i]), transform_batch="observed")
    vx.tl.denoise(fitted, transform_batch="observed", key_added="own")
    np.testing.assert_allclose(fitted.layers["vae_counterfactual"][i], fitted.layers["own"][i], rtol=1e-5)
    others = np.delete(np.arange(fitted.n_obs), i)
    assert not np.allclose(fitted.layers["vae_counterfactual"][others], fitted.layers["own"][others], rtol=1e-4)


def test_support_is_low_where_the_condition_does_not_occur(two_conditions: ad.AnnData, warned: list[str]) -> None:
    adata = two_conditions
    vx.tl.counterfactual(adata, "condition", "treated")
    support = adata.obs["vae_counterfactual_support"]
    lacking = adata.obs["group"] == "group_2"
    assert np.median(support[lacking]) < 0.2
    assert np.median(support[~lacking]) > 0.8
    n_low = int((support[adata.obs["condition"] == "control"] < 0.2).sum())
    assert n_low > 100
    assert any(message.startswith(f"{n_low} of ") for message in warned)
    warned.clear()
    vx.tl.counterfactual(adata, "condition", "control")
    assert (adata.obs["vae_counterfactual_support"][adata.obs["condition"] == "treated"] > 0.2).mean() > 0.9


def test_support_of_a_number(two_conditions: ad.AnnData, warned: list[str]) -> None:
    adata = two_conditions
    vx.tl.fit_vae(
        adata,
        continuous_covariate_keys=["dose"],
        n_latent=3,
        n_hidden=32,
        max_epochs=40,
        batch_size=64,
        key_added="num",
    )
    vx.tl.counterfactual(adata, "dose", 10, key="num")
    lacking = adata.obs["group"] == "group_2"
    support = adata.obs["num_counterfactual_support"]
    assert np.median(support[lacking]) < 0.2 < 0.6 < np.median(support[~lacking])
    warned.clear()
    vx.tl.counterfactual(adata, "dose", 1000, key="num")
    assert (adata.obs["num_counterfactual_support"] < 1e-6).all()
    assert any("No cell of adata" in message for message in warned)


def test_a_condition_that_no_cell_has_raises_a_warning(two_conditions: ad.AnnData, warned: list[str]) -> None:
    part = two_conditions[two_conditions.obs["condition"] == "control"].copy()
    vx.tl.counterfactual(part, "condition", "treated")
    assert (part.obs["vae_counterfactual_support"] == 0).all()
    assert any("No cell of adata" in message for message in warned)
    np.testing.assert_allclose(part.layers["vae_counterfactual"].sum(1), 1e4, rtol=1e-3)


def test_a_single_cell_works(fitted: ad.AnnData) -> None:
    one = fitted[:1].copy()
    vx.tl.counterfactual(one, "batch", str(one.obs["batch"].iloc[0]))
    assert one.obs["vae_counterfactual_support"].tolist() == [1.0]


def test_counts_are_not_needed(fitted: ad.AnnData) -> None:
    vx.tl.counterfactual(fitted, "batch", "batch_1", target_sum="library", key_added="a")
    fitted.X = fitted.X * 0.37
    vx.tl.counterfactual(fitted, "batch", "batch_1", target_sum="library", key_added="b")
    np.testing.assert_array_equal(fitted.layers["a"], fitted.layers["b"])


def test_results_are_reproducible_and_survive_a_file(fitted: ad.AnnData, tmp_path: Path) -> None:
    out = vx.tl.counterfactual(fitted, "age", 70, copy=True)
    assert out is not None
    assert "vae_counterfactual" not in fitted.layers
    vx.tl.counterfactual(fitted, "age", 70, transform_batch="batch_0")
    vx.tl.counterfactual(fitted, "age", 70)
    np.testing.assert_array_equal(out.layers["vae_counterfactual"], fitted.layers["vae_counterfactual"])
    out.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    assert back.uns["vae_counterfactual"]["params"]["key_covariate"] == "age"
    assert back.uns["vae_counterfactual"]["params"]["value"] == 70
    vx.tl.counterfactual(back, "age", 70)
    np.testing.assert_allclose(back.layers["vae_counterfactual"], out.layers["vae_counterfactual"], rtol=1e-5)
    np.testing.assert_allclose(
        back.obs["vae_counterfactual_support"], out.obs["vae_counterfactual_support"], rtol=1e-12
    )


def test_results_of_some_genes_are_returned(fitted: ad.AnnData) -> None:
    names = list(fitted.var_names[[3, 0]])
    part = vx.tl.counterfactual(fitted, "batch", "batch_0", genes=names)
    assert part is not None
    assert "vae_counterfactual" not in fitted.layers
    assert "vae_counterfactual_support" not in fitted.obs
    vx.tl.counterfactual(fitted, "batch", "batch_0")
    np.testing.assert_allclose(part.X, fitted[:, names].layers["vae_counterfactual"], rtol=1e-5)
    np.testing.assert_array_equal(part.obs["vae_counterfactual_support"], fitted.obs["vae_counterfactual_support"])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (("bath", "batch_0"), KeyError, "not a covariate"),
        (("batch", "batch_9"), ValueError, "is not a category"),
        (("age", "old"), ValueError, "finite number"),
    ],
)
def test_unknown_conditions_are_refused(
    fitted: ad.AnnData, arguments: tuple, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        vx.tl.counterfactual(fitted, *arguments)
    assert "vae_counterfactual" not in fitted.layers


@pytest.mark.parametrize("name", ["vae", "taken", "column", "a/b"])
def test_results_of_others_are_not_replaced(fitted: ad.AnnData, name: str) -> None:
    fitted.layers["taken"] = fitted.X.copy()
    fitted.obs["column_support"] = 1.0
    with pytest.raises(ValueError, match=r"another key_added|without '/'"):
        vx.tl.counterfactual(fitted, "batch", "batch_0", key_added=name)
    assert str(fitted.uns["vae"]["format"]).startswith("vxpress-fit")


@pytest.mark.parametrize("arguments", [{"n_draws": 0}, {"n_neighbors": 0}, {"target_sum": "x"}, {"rng": -1}])
def test_settings_out_of_range_are_refused(fitted: ad.AnnData, arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        vx.tl.counterfactual(fitted, "batch", "batch_0", **arguments)


def test_a_label_moves_cells_by_the_difference_of_the_means_of_labelled_cells(adata: ad.AnnData, quick: dict) -> None:
    adata.obs["type"] = adata.obs["group"].astype(str).where(np.arange(adata.n_obs) % 4 > 0, "unknown")
    vx.tl.fit_vae(adata, labels_key="type", unlabeled_category="unknown", **quick)
    vx.tl.counterfactual(adata, "type", "group_1", rng=3)
    own = (adata.obs["type"] == "group_1").to_numpy()
    vx.tl.denoise(adata, rng=3, key_added="plain")
    plain = adata.layers["plain"]
    np.testing.assert_allclose(adata.layers["vae_counterfactual"][own], plain[own], rtol=1e-5)
    # the same as decoding at the moved positions
    moved = adata.copy()
    mean = {
        name: adata.obsm["X_vae"][adata.obs["type"] == name].astype(float).mean(0) for name in ("group_0", "group_1")
    }
    others = (adata.obs["type"] == "group_0").to_numpy()
    moved.obsm["X_vae"][others] += (mean["group_1"] - mean["group_0"]).astype(np.float32)
    vx.tl.denoise(moved, rng=3, key_added="plain")
    expected = moved.layers["plain"]
    np.testing.assert_allclose(adata.layers["vae_counterfactual"][others], expected[others], rtol=1e-4)
    assert not np.allclose(expected[others], plain[others], rtol=1e-2)
    support = adata.obs["vae_counterfactual_support"]
    assert support[own].mean() > support[others].mean()
    with pytest.raises(ValueError, match="knows"):
        vx.tl.counterfactual(adata, "type", "unknown")
