"""The worth of covariates and their confounding in the diagnosis: what is recorded, kept, and warned about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import vxpress as vx
from vxpress.bridge.health.covariates import record_of, warn_of_covariates
from vxpress.bridge.read.covariates import CovariateTable

WORTH = {"worth", "low", "high", "p", "n_compared"}
PAIRS = {"associated_by", "associated", "association"}


def recorded(adata: ad.AnnData, key: str = "vae") -> dict[str, Any]:
    return adata.uns[key]["diagnostics"]["covariates"]


@pytest.fixture(scope="session")
def _two_batches() -> ad.AnnData:
    adata = vx.datasets.simulate(600, 60, n_groups=2, n_batches=2, batch_strength=0.5, library_mean=500, rng=0)
    rng = np.random.default_rng(0)
    adata.obs["lane"] = pd.Categorical(rng.choice(["l1", "l2", "l3"], 600))
    # two donors of each batch, so that the donor determines the batch
    adata.obs["donor"] = pd.Categorical(adata.obs["batch"].astype(str) + rng.choice(["x", "y"], 600))
    adata.obs["one"] = "same"
    options = vx.tl.FitOptions(screen_covariates=False)
    lane = ["lane"]
    vx.tl.fit_vae(
        adata, "batch", categorical_covariate_keys=lane, max_epochs=60, n_hidden=32, options=options, denoised=False
    )
    return adata


@pytest.fixture
def two_batches(_two_batches: ad.AnnData) -> ad.AnnData:
    return _two_batches.copy()


def test_the_batch_is_worth_something_and_a_random_column_is_not(two_batches):
    found = recorded(two_batches)
    assert set(found) == {"name", "n_categories"} | WORTH | PAIRS
    assert found["name"].tolist() == ["batch", "lane"]
    assert found["n_categories"].tolist() == [2, 3]
    assert found["p"][0] == pytest.approx(0.001)
    assert found["low"][0] > 0.3
    assert found["low"][1] < 0 < found["high"][1]
    assert found["associated_by"].tolist() == ["batch", "lane"]
    assert (found["association"] < 0.05).all()


def test_the_record_survives_files_and_is_kept_without_counts(two_batches, tmp_path: Path):
    before = recorded(two_batches)
    two_batches.write_h5ad(tmp_path / "cells.h5ad")
    two_batches.write_zarr(tmp_path / "cells.zarr")
    for read in (ad.read_h5ad(tmp_path / "cells.h5ad"), ad.read_zarr(tmp_path / "cells.zarr")):
        assert set(recorded(read)) == set(before)
        for name, values in before.items():
            np.testing.assert_array_equal(np.asarray(recorded(read)[name], dtype=values.dtype), values)
    two_batches.X = two_batches.X * 0.5
    vx.tl.diagnose(two_batches)
    for name in WORTH:
        np.testing.assert_array_equal(recorded(two_batches)[name], before[name])


def test_diagnose_computes_the_same_worth_from_the_counts(two_batches):
    before = recorded(two_batches)
    del two_batches.uns["vae"]["diagnostics"]["covariates"]  # as a fit of an earlier version
    vx.tl.diagnose(two_batches, n_cells=5)
    # with other noise
    np.testing.assert_allclose(recorded(two_batches)["worth"][0], before["worth"][0], rtol=0.3)
    del two_batches.uns["vae"]["diagnostics"]["covariates"]
    vx.tl.diagnose(two_batches, gaps=False)
    assert not WORTH & set(recorded(two_batches))


def test_biology_that_a_covariate_determines_is_warned_about(two_batches, warned):
    two_batches.obs["condition"] = two_batches.obs["batch"].astype(object).where(np.arange(600) % 5 > 0)
    vx.tl.diagnose(two_batches, gaps=False, biology_keys=["condition", "donor", "batch"])
    found = recorded(two_batches)
    pairs = {
        (by, of): share
        for by, of, share in zip(*(found[name] for name in ("associated_by", "associated", "association")), strict=True)
    }
    assert set(pairs) == {
        (by, of) for by in ("batch", "lane") for of in ("batch", "lane", "condition", "donor") if by != of
    }
    assert pairs["batch", "condition"] == 1.0
    # the batch is one of two bits of the donor
    np.testing.assert_allclose(pairs["batch", "donor"], 0.5, atol=0.02)
    (message,) = [text for text in warned if "condition" in text]
    assert "Every category of obs['batch'] has a single value of obs['condition']" in message
    assert not any("donor" in text for text in warned)
    with pytest.raises(KeyError, match="biology_keys='absent'"):
        vx.tl.diagnose(two_batches, gaps=False, biology_keys="absent")


def test_a_donor_within_a_batch_cannot_be_told_apart_from_it(two_batches, warned):
    vx.tl.fit_vae(
        two_batches, "donor", categorical_covariate_keys=["batch"], max_epochs=40, key_added="nested", denoised=False
    )
    found = recorded(two_batches, "nested")
    assert found["n_compared"][1] == 0
    assert np.isnan(found["worth"][1])
    assert found["n_compared"][0] > 40
    assert any(
        "Every category of obs['donor'] has a single value of obs['batch'], so their effects cannot be told apart"
        in text
        for text in warned
    )
    assert not any("'batch' explains nothing" in text for text in warned)


@pytest.mark.parametrize(
    "arguments",
    [
        {"likelihood": "poisson"},
        {"likelihood": "gaussian", "library": "latent"},
        {"likelihood": "zinb", "dispersion": "gene-batch"},
        {"prior": "vamp"},
        {"prior": "diffusion"},
        {"dispersion": "gene-label", "labels_key": "group"},
        {"options": vx.tl.FitOptions(encode_covariates=True, covariate_code="embedding")},
    ],
    ids=str,
)
def test_every_kind_of_model_has_it(adata, quick, arguments):
    vx.tl.fit_vae(adata, "batch", denoised=False, **(quick | arguments))
    found = recorded(adata)
    assert np.isfinite([found["worth"], found["low"], found["high"], found["p"]]).all()
    assert found["low"] < found["worth"] < found["high"]
    assert ("association" in found) == ("labels_key" in arguments)


def test_nothing_is_recorded_without_covariates_and_no_worth_without_held_out_cells(adata, quick):
    adata.obs["one"] = "same"
    vx.tl.fit_vae(adata, denoised=False, **quick)
    assert "covariates" not in adata.uns["vae"]["diagnostics"]
    vx.tl.fit_vae(adata, "batch", validation_fraction=0.0, denoised=False, **quick)
    assert set(recorded(adata)) == {"name", "n_categories"}
    vx.tl.fit_vae(adata, "one", categorical_covariate_keys=["batch"], denoised=False, **quick)
    assert recorded(adata)["n_compared"].tolist() == [0, 16]
    assert np.isnan(recorded(adata)["association"][1])


PLAIN: dict[str, list[Any]] = {
    "name": ["batch"],
    "worth": [0.1],
    "low": [-0.2],
    "high": [0.4],
    "p": [0.3],
    "n_compared": [80],
}


def a_record(**columns: Any) -> dict[str, Any]:
    return {"covariates": {name: np.array(values) for name, values in (PLAIN | columns).items()}}


@pytest.mark.parametrize(
    ("columns", "n_steps", "expected"),
    [
        ({}, 1000, True),
        ({"p": [0.01], "low": [0.01]}, 1000, False),
        ({"n_compared": [20]}, 1000, False),
        ({}, 50, False),
        ({"worth": [np.nan], "low": [np.nan], "high": [np.nan], "p": [np.nan], "n_compared": [0]}, 1000, False),
    ],
)
def test_when_a_covariate_is_said_to_be_worth_nothing(warned, columns, n_steps, expected):
    warn_of_covariates(a_record(**columns), "batch", n_steps=n_steps)
    assert len(warned) == expected
    if expected:
        assert warned[0].startswith(
            "batch_key='batch' explains nothing in held-out cells: +0.10 nats per cell (-0.20 to +0.40), p = 0.3."
        )
        assert warned[0].endswith("Leave it out: vx.tl.fit_vae(adata).")


def test_a_covariate_that_the_model_does_not_receive_is_said_to_be_left_out_already(warned):
    warn_of_covariates(a_record(worth=[0.0], low=[0.0], high=[0.0]), "batch", n_steps=500)
    assert "the model was fitted without it. Leave it out: vx.tl.fit_vae(adata)." in " ".join(warned)


def test_the_call_without_a_worthless_covariate_keeps_the_others(warned):
    columns = {name: values * 3 for name, values in PLAIN.items()} | {"name": ["batch", "lane", "day"]}
    warn_of_covariates(a_record(**columns | {"p": [0.01, 0.4, 0.01]}), "batch", n_steps=1000)
    (message,) = warned
    assert "vx.tl.fit_vae(adata, batch_key='batch', categorical_covariate_keys=['day'])" in message


def test_a_covariate_that_determines_another_is_warned_about_once(warned):
    obs = pd.DataFrame({"batch": list("aabb") * 30, "copy": list("xxyy") * 30})
    table = CovariateTable.learn(obs, "batch", ["copy"], [], None)
    warn_of_covariates({"covariates": record_of(table, obs, {})}, "batch", n_steps=1000)
    assert len(warned) == 1


def test_biology_keys_without_covariates_are_said_to_have_no_effect(fitted, warned):
    adata = fitted.copy()
    adata.obs["half"] = np.arange(adata.n_obs) % 2
    vx.tl.fit_vae(adata, max_epochs=1, denoised=False, key_added="plain")
    vx.tl.diagnose(adata, key="plain", gaps=False, biology_keys="half")
    assert any("biology_keys= has no effect" in line for line in warned)


def test_covariates_are_judged_once_however_many_fits_a_cure_tries(adata, monkeypatch):
    judged = []

    def worth_of(*arguments, **options):
        judged.append(arguments[0])
        return {}

    def cure(runner, first, diagnosis, diagnose):
        return first, [diagnosis, diagnose(first), diagnose(first)][-1]

    monkeypatch.setattr("vxpress.bridge.health.diagnose_fit.worth_of", worth_of)
    monkeypatch.setattr("vxpress.bridge.fitting.cure", cure)
    vx.tl.fit_vae(adata, "batch", max_epochs=1, n_hidden=8, denoised=False, cure=True)
    assert len(judged) == 1
    assert list(adata.uns["vae"]["diagnostics"]["covariates"]["name"]) == ["batch"]
