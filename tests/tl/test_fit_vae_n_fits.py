"""Several fits of the same cells: the first is that of one fit, and all of them together are one embedding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

import vxpress as vx
from vxpress.bridge.fits.find_fit import find_fit
from vxpress.bridge.fits.runner import Runner
from vxpress.bridge.fits.weights import stored_weights
from vxpress.core.model import VAE
from vxpress.core.training import TrainingError

BOTH = "X_vae_ensemble", "X_vae_ensemble_var"
QUICK: dict[str, Any] = {"n_latent": 3, "n_hidden": 8, "max_epochs": 2, "batch_size": 64, "denoised": False}


@pytest.fixture(scope="module")
def _three(_simulated: ad.AnnData) -> ad.AnnData:
    adata = _simulated.copy()
    adata.var["highly_variable"] = np.arange(adata.n_vars) % 3 != 0
    options = vx.tl.FitOptions(encode_covariates=True)
    vx.tl.fit_vae(adata, "batch", n_fits=3, options=options, **QUICK)
    return adata


@pytest.fixture
def three(_three: ad.AnnData) -> ad.AnnData:
    """The simulated cells with three fits of 40 of the 60 genes, whose encoders receive the batch."""
    return _three.copy()


@pytest.fixture
def cells(_simulated: ad.AnnData) -> ad.AnnData:
    """The same cells without a fit."""
    return _simulated.copy()


def _neighbors(adata: ad.AnnData, **arguments: Any) -> tuple[str, np.ndarray]:
    vx.pp.neighbors(adata, 5, **arguments)
    return adata.uns["neighbors"]["params"]["use_rep"], adata.obsp["distances"].toarray()


# the fits


def test_the_first_of_several_fits_is_the_fit_with_n_fits_1(three: ad.AnnData, cells: ad.AnnData) -> None:
    cells.var["highly_variable"] = three.var["highly_variable"]
    vx.tl.fit_vae(cells, "batch", options=vx.tl.FitOptions(encode_covariates=True), **QUICK)
    assert set(BOTH).isdisjoint(cells.obsm)
    assert "ensemble" not in cells.uns["vae"]
    for name in ("X_vae", "X_vae_var"):
        np.testing.assert_array_equal(three.obsm[name], cells.obsm[name])
    weights = cells.uns["vae"]["weights"]
    for name, value in three.uns["vae"]["weights"].items():
        np.testing.assert_array_equal(value, weights[name])


def test_the_embedding_is_that_of_all_models_side_by_side(three: ad.AnnData) -> None:
    for name, of_first in zip(BOTH, ("X_vae", "X_vae_var"), strict=True):
        assert three.obsm[name].shape == (three.n_obs, 9)
        assert three.obsm[name].dtype == np.float32
        parts = np.hsplit(three.obsm[name], 3)
        np.testing.assert_array_equal(parts[0], three.obsm[of_first])
        assert not any(np.allclose(parts[i], parts[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_further_models_are_trained_and_have_no_readout(three: ad.AnnData) -> None:
    fit = find_fit(three, None, "vae")
    assert len(fit.members) == 2
    assert fit.model.config.n_readout == 20
    for model in fit.members:
        assert model.config.n_readout == 0
        dispersions = (stored_weights(each)["decoder.log_dispersion"] for each in (model, fit.model))
        np.testing.assert_array_equal(*dispersions)
        # of weights that all start at zero, none would have moved without training
        assert np.any(stored_weights(model)["decoder.body.norms.0.bias"])


def test_seeds_of_further_fits_are_hashed_and_neighbouring_seeds_do_not_share_any(cells: ad.AnnData) -> None:
    runner = Runner.__new__(Runner)
    found = set()
    for runner.init_seed in range(4):
        for runner.train_seed in range(4):
            assert runner.seeds(0) == (runner.init_seed, runner.train_seed)
            for number in (1, 2):
                found |= set(runner.seeds(number))
    assert len(found) == 4 * 4 * 2 * 2
    assert all(0 <= seed < 2**62 for seed in found)


@pytest.mark.parametrize("n_fits", [0, -1, 1.5, "3", None, 101])
def test_a_wrong_number_of_fits_is_named(cells: ad.AnnData, n_fits: Any) -> None:
    with pytest.raises(ValueError, match="n_fits"):
        vx.tl.fit_vae(cells, n_fits=n_fits)
    assert "X_vae" not in cells.obsm


# what ends a further fit


@pytest.mark.parametrize(("stopped_in", "n_kept"), [(1, 1), (2, 2)])
def test_an_interrupt_of_a_further_fit_keeps_the_complete_ones(
    cells: ad.AnnData, monkeypatch: pytest.MonkeyPatch, warned: list[str], stopped_in: int, n_kept: int
) -> None:
    whole = cells.copy()
    vx.tl.fit_vae(whole, n_fits=3, **QUICK)
    _fail_in(monkeypatch, stopped_in, KeyboardInterrupt())
    vx.tl.fit_vae(cells, n_fits=3, **QUICK)
    assert any("Interrupted" in text and f"fit {stopped_in + 1} of 3" in text for text in warned)
    assert str(cells.uns["vae"]["params"]["stopped"]) != "interrupted"
    np.testing.assert_array_equal(cells.obsm["X_vae"], whole.obsm["X_vae"])
    if n_kept == 1:
        assert set(BOTH).isdisjoint(cells.obsm)
    else:
        np.testing.assert_array_equal(cells.obsm[BOTH[0]], whole.obsm[BOTH[0]][:, : 3 * n_kept])
    vx.tl.encode(cells)


def test_a_further_fit_that_cannot_be_trained_is_left_out(
    cells: ad.AnnData, monkeypatch: pytest.MonkeyPatch, warned: list[str]
) -> None:
    _fail_in(monkeypatch, 1, TrainingError("no finite step"))
    vx.tl.fit_vae(cells, n_fits=3, **QUICK)
    assert any("2 of 3" in text and "no finite step" in text for text in warned)
    assert cells.obsm[BOTH[0]].shape == (cells.n_obs, 6)


def _fail_in(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    real = Runner.fit

    def fit(self: Runner, *settings: Any) -> Any:
        if len(settings) > 2 and settings[2] == number:
            raise error
        return real(self, *settings)

    monkeypatch.setattr(Runner, "fit", fit)


# the stored fit


@pytest.mark.parametrize("where", ["memory", "h5ad", "zarr", "safetensors"])
def test_stored_models_encode_cells_as_they_did_in_the_fit(
    three: ad.AnnData, cells: ad.AnnData, where: str, tmp_path: Path
) -> None:
    model: Any = three
    if where != "memory":
        model = tmp_path / f"fit.{where}"
        write = {
            "h5ad": three.write_h5ad,
            "zarr": three.write_zarr,
            "safetensors": lambda path: vx.save_model(three, path),
        }
        write[where](model)
    vx.tl.encode(cells, model)
    for name in ("X_vae", "X_vae_var", *BOTH):
        np.testing.assert_array_equal(cells.obsm[name], three.obsm[name])
    assert set(cells.uns["vae"]["ensemble"]) == {"model", "2", "3"}


@pytest.mark.parametrize("damage", ["a model is lost", "a weight is changed", "settings differ"])
def test_damage_of_a_further_model_is_found(three: ad.AnnData, damage: str) -> None:
    record = three.uns["vae"]["ensemble"]
    if damage == "a model is lost":
        del record["2"]
    elif damage == "a weight is changed":
        record["2"]["encoder.mean.bias"][0] += 1
    else:
        record["model"]["n_genes"] = 39
    with pytest.raises(ValueError, match="damaged"):
        vx.tl.encode(three)


@pytest.mark.parametrize("fine_tune", [False, 3])
@pytest.mark.parametrize("every", [1, 2])
def test_each_model_encodes_new_batches_and_missing_genes_as_if_it_were_alone(
    three: ad.AnnData, cells: ad.AnnData, every: int, fine_tune: int
) -> None:
    new = cells[:60, ::every].copy()
    new.obs["batch"] = "new"
    query = new.copy()
    vx.tl.encode(query, three, fine_tune=fine_tune)
    blocks = [np.hsplit(query.obsm[name], 3) for name in BOTH]
    for number, model in enumerate(find_fit(three, None, "vae").members, 1):
        alone = new.copy()
        vx.tl.encode(alone, _with_one_model(three, model), fine_tune=fine_tune)
        np.testing.assert_array_equal(blocks[0][number], alone.obsm["X_vae"])
        np.testing.assert_array_equal(blocks[1][number], alone.obsm["X_vae_var"])
    # the stored fit knows the new batch
    again = new.copy()
    vx.tl.encode(again, query)
    np.testing.assert_allclose(again.obsm[BOTH[0]], query.obsm[BOTH[0]], atol=1e-6)


def _with_one_model(adata: ad.AnnData, model: VAE) -> ad.AnnData:
    fit = find_fit(adata, None, "vae")
    params = replace(fit.params, model=model.config, n_fits=1)
    return ad.AnnData(uns={"vae": replace(fit, model=model, members=(), params=params).to_uns()})


def test_fine_tuning_moves_the_cells_of_a_new_batch_in_all_models(three: ad.AnnData, cells: ad.AnnData) -> None:
    query = cells[:60].copy()
    query.obs["batch"] = "new"
    tuned = query.copy()
    vx.tl.encode(query, three)
    vx.tl.encode(tuned, three, fine_tune=3)
    for before, after in zip(np.hsplit(query.obsm[BOTH[0]], 3), np.hsplit(tuned.obsm[BOTH[0]], 3), strict=True):
        assert not np.array_equal(before, after)
    vx.tl.encode(cells, tuned)
    np.testing.assert_allclose(cells.obsm[BOTH[0]], three.obsm[BOTH[0]], atol=1e-6)


def test_a_new_prior_leaves_the_further_models_as_they_are(three: ad.AnnData) -> None:
    expected = three.obsm[BOTH[0]].copy()
    vx.tl.fit_prior(three, "mixture", n_components=2, max_steps=400, key_added="mix")
    assert three.uns["mix"]["prior"]["kind"] == "mixture"
    np.testing.assert_array_equal(three.obsm["mix_ensemble"], expected)
    vx.tl.encode(three, key="mix")
    np.testing.assert_array_equal(three.obsm["mix_ensemble"], expected)


# slots of earlier calls


def test_a_single_fit_removes_the_embedding_of_the_fits_that_it_replaces(three: ad.AnnData) -> None:
    vx.tl.fit_vae(three, key_added="other", n_fits=2, **QUICK)
    assert three.obsm["other_ensemble"].shape == (three.n_obs, 6)
    vx.tl.fit_vae(three, **QUICK)
    assert set(BOTH).isdisjoint(three.obsm)
    assert "other_ensemble" in three.obsm


def test_encoding_by_a_single_fit_removes_the_embedding_of_several(three: ad.AnnData, cells: ad.AnnData) -> None:
    query = cells.copy()
    vx.tl.encode(query, three)
    vx.tl.fit_vae(cells, **QUICK)
    vx.tl.encode(query, cells)
    assert set(BOTH).isdisjoint(query.obsm)


@pytest.mark.parametrize("with_fit", [True, False])
def test_an_embedding_of_the_user_is_neither_replaced_nor_removed(cells: ad.AnnData, *, with_fit: bool) -> None:
    if with_fit:
        vx.tl.fit_vae(cells, **QUICK)
    mine = cells.obsm[BOTH[0]] = np.ones((cells.n_obs, 2))
    with pytest.raises(ValueError, match="X_vae_ensemble"):
        vx.tl.fit_vae(cells, n_fits=2, **QUICK)
    vx.tl.fit_vae(cells, **QUICK)
    np.testing.assert_array_equal(cells.obsm[BOTH[0]], mine)


def test_a_slot_named_like_another_view_stays(three: ad.AnnData) -> None:
    mine = three.obsm["X_vae_ensemble_kept"] = np.ones((three.n_obs, 2))
    vx.tl.fit_vae(three, **QUICK)
    np.testing.assert_array_equal(three.obsm["X_vae_ensemble_kept"], mine)


# neighbours


def test_neighbors_are_those_of_all_models_unless_one_is_asked_for(three: ad.AnnData) -> None:
    used, of_all = _neighbors(three)
    assert used == "X_vae_ensemble"
    used, of_first = _neighbors(three, ensemble=False)
    assert used == "X_vae"
    assert not np.array_equal(of_all, of_first)
    used, again = _neighbors(three, ensemble=True)
    np.testing.assert_array_equal(again, of_all)
    _, euclidean = _neighbors(three, distance="euclidean")
    i, j = map(int, np.argwhere(euclidean > 0)[0])
    difference = three.obsm[BOTH[0]][i] - three.obsm[BOTH[0]][j]
    np.testing.assert_allclose(euclidean[i, j], np.sqrt((difference**2).sum()), rtol=1e-5)


@pytest.mark.parametrize("ensemble", [0, 1, "no"])
def test_ensemble_is_true_false_or_none(three: ad.AnnData, ensemble: Any) -> None:
    with pytest.raises(ValueError, match=r"ensemble=.*True, False or None is expected"):
        vx.pp.neighbors(three, 5, ensemble=ensemble)
    assert "neighbors" not in three.uns
    assert _neighbors(three, ensemble=np.False_)[0] == "X_vae"


def test_neighbors_name_what_is_missing(three: ad.AnnData, fitted: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="n_fits=3"):
        vx.pp.neighbors(fitted, ensemble=True)
    del three.obsm[BOTH[1]]
    with pytest.raises(KeyError, match=r"X_vae_ensemble_var.*encode.*ensemble=False"):
        vx.pp.neighbors(three)
    vx.pp.neighbors(three, ensemble=False)


def test_draws_of_several_models_are_those_of_each_in_turn(three: ad.AnnData) -> None:
    """With posteriors of no width, a draw has the neighbours by the means of one model."""
    three.obsm[BOTH[1]] = np.full_like(three.obsm[BOTH[1]], 1e-12)
    vx.pp.neighbors(three, 5, distance="euclidean", n_draws=3)
    expected = np.zeros((three.n_obs, three.n_obs))
    for mean_nd in np.hsplit(three.obsm[BOTH[0]].astype(float), 3):
        squared = ((mean_nd[:, None] - mean_nd[None]) ** 2).sum(-1) + np.diag(np.full(three.n_obs, np.inf))
        nearest = np.argsort(squared, axis=1)[:, :4]
        expected[np.arange(three.n_obs)[:, None], nearest] += 1 / 3
    np.testing.assert_allclose(three.obsp["edge_frequency"].toarray(), expected, atol=1e-6)


def test_a_umap_of_the_embedding_is_drawn_as_that_of_the_fit(three: ad.AnnData) -> None:
    from vxpress._keys import Keys
    from vxpress.pl._latent import umap_is_of

    _neighbors(three)
    assert umap_is_of(three.uns, Keys.of())
    assert not umap_is_of(three.uns, Keys.of("other"))
