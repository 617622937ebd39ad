"""Numbers of training cells, and categories that have few of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import vxpress as vx
from vxpress.bridge.read.covariates import CovariateTable
from vxpress.bridge.read.learned import MIN_CELLS, learned

OBS = pd.DataFrame({"batch": ["a"] * 50 + ["b"] * 50 + ["lone"] * 2 + ["pair"] * 3, "plate": ["1", "2", "3"] * 35})


@pytest.fixture
def table() -> CovariateTable:
    """Batches a and b learned, "lone" and "pair" not."""
    found = CovariateTable.learn(OBS, "batch", ["plate"], [], None)
    return found.trained_on(found.read(OBS).categorical_nk.numpy())


def test_the_numbers_are_those_of_the_training_cells(table: CovariateTable) -> None:
    assert table.n_train == ((50, 50, 2, 3), (35, 35, 35))
    stored = table.to_uns()
    np.testing.assert_array_equal(stored["n_train_0"], [50, 50, 2, 3])
    assert CovariateTable.from_uns(stored) == table


@pytest.mark.parametrize(
    "bad", [[50, 50, 2], [50, 50, 2, -1], [50, 50, 2, 2.5], ["a", "b", "c", "d"], [[50, 50, 2, 3]], 5]
)
def test_damaged_numbers_are_refused(table: CovariateTable, bad: object) -> None:
    with pytest.raises(ValueError, match=r"damaged.*n_train_0.*4 numbers of training cells"):
        CovariateTable.from_uns(table.to_uns() | {"n_train_0": np.array(bad)})


def test_a_record_without_numbers_is_refused(table: CovariateTable) -> None:
    stored = table.to_uns()
    del stored["n_train_1"]
    with pytest.raises(ValueError, match="n_train_1"):
        CovariateTable.from_uns(stored)


def test_the_average_is_over_learned_batches_and_names_the_others(table: CovariateTable, warned: list[str]) -> None:
    assert table.batch_codes(None) == (0, 1)
    assert table.decoding_batches(None) == (0, 1)
    said = warned[0]
    assert "excludes" in said
    assert "'lone' (2), 'pair' (3)" in said


def test_an_explicitly_requested_batch_is_used_with_a_warning(table: CovariateTable, warned: list[str]) -> None:
    assert table.batch_codes("b") == (1,)
    assert not warned
    assert table.batch_codes(["a", "lone"]) == (0, 2)
    (said,) = warned
    assert "'lone' (2)" in said
    assert "'a'" not in said


def test_the_first_few_are_named_and_the_rest_counted(warned: list[str]) -> None:
    obs = pd.DataFrame({"batch": ["main"] * 60 + [f"s{i:02}" for i in range(20)]})
    table = CovariateTable.learn(obs, "batch", [], [], None)
    table = table.trained_on(table.read(obs).categorical_nk.numpy())
    assert table.batch_codes(None) == (0,)
    (said,) = warned
    assert "'s04' (1) and 15 more" in said
    assert "s05" not in said


def test_all_batches_are_used_if_none_has_many_cells(warned: list[str]) -> None:
    few = MIN_CELLS - 1
    for n_train, expected in (
        ([1, few, 0], [True, True, False]),
        ([1, MIN_CELLS, 0], [False, True, False]),
        # if most cells are in small batches, their average is more informative than that of the others
        ([few, few, MIN_CELLS], [True, True, True]),
        ([few, few, 3 * MIN_CELLS], [False, False, True]),
        ([0, 0], [True, True]),
    ):
        np.testing.assert_array_equal(learned(n_train), expected)
    obs = pd.DataFrame({"batch": list("aabbcc")})
    table = CovariateTable.learn(obs, "batch", [], [], None)
    assert table.trained_on(table.read(obs).categorical_nk.numpy()).batch_codes(None) == (0, 1, 2)
    assert not warned


def test_new_categories_have_no_training_cells_until_they_are_trained_on(table: CovariateTable) -> None:
    query = pd.DataFrame({"batch": ["new"] * 40 + ["a"] * 5, "plate": "1"})
    wider, added = table.with_categories_of(query)
    assert added == (("new",), ())
    assert wider.n_train == ((50, 50, 2, 3, 0), (35, 35, 35))
    assert wider.averaged_batches == (0, 1)
    codes_nk = wider.read(query).categorical_nk.numpy()
    # known categories are not trained again
    tuned = wider.trained_on(codes_nk, known=[4, 3])
    assert tuned.n_train == ((50, 50, 2, 3, 40), (35, 35, 35))
    assert tuned.averaged_batches == (0, 1, 4)


def test_batches_of_one_cell_are_trained_on_but_left_out_of_averages(warned: list[str]) -> None:
    adata = vx.datasets.simulate(120, 20, n_batches=2, rng=1)
    batch = adata.obs["batch"].astype(str).to_numpy()
    batch[::30] = [f"lone{i}" for i in range(4)]
    adata.obs["batch"] = batch
    options = vx.tl.FitOptions(screen_covariates=False)
    vx.tl.fit_vae(adata, "batch", n_latent=2, n_hidden=8, max_epochs=1, options=options)
    said = " ".join(warned)
    assert "4 categories with fewer than 30 training cells: 'lone0' (1), 'lone1' (1)" in said
    assert "Averages over batches exclude these batches" in said
    lone = adata.obs["batch"].astype(str).str.startswith("lone")
    assert (adata.obs.loc[lone, "vae_split"] == "train").all()
    assert adata.uns["vae"]["covariates"]["n_train_0"].sum() == (adata.obs["vae_split"] == "train").sum()
    # the layer of the fit, and decoding under named batches
    layer = adata.layers["vae_normalized"].copy()
    vx.tl.denoise(adata, transform_batch=["batch_0", "batch_1"])
    np.testing.assert_array_equal(adata.layers["vae_normalized"], layer)
    warned.clear()
    vx.tl.denoise(adata)
    np.testing.assert_array_equal(adata.layers["vae_normalized"], layer)
    assert "excludes" in warned[0]
    vx.tl.rank_genes_groups(adata, "group", n_draws=2, n_cells=20)
    assert any("excludes" in text for text in warned[1:])


def test_fine_tuning_counts_the_cells_it_trained_on() -> None:
    adata = vx.datasets.simulate(200, 20, n_batches=3, rng=1)
    query = adata[adata.obs["batch"] == "batch_2"].copy()
    reference = adata[adata.obs["batch"] != "batch_2"].copy()
    vx.tl.fit_vae(reference, "batch", n_latent=2, n_hidden=8, max_epochs=1, denoised=False)
    before = reference.uns["vae"]["covariates"]["n_train_0"]
    for fine_tune, n_new in ((False, 0), (1, round(0.9 * query.n_obs))):
        vx.tl.encode(query, reference, fine_tune=fine_tune)
        np.testing.assert_array_equal(query.uns["vae"]["covariates"]["n_train_0"], [*before, n_new])
