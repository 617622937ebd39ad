"""Curves of expression along the dose of a perturbation."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import vxpress as vx
from vxpress.core.inference.dose_response import Curves, Observed, hill

KEYS = {"perturbation_key": "drug", "dose_key": "dose", "control": "ctrl"}
DOSES = (0.1, 1.0, 10.0)


def _cells(n: int = 80, g: int = 20) -> ad.AnnData:
    """A raises genes 0-4 by up to a factor of e^1.5 with half effect at 1; B has one dose and lowers genes 5-9."""
    rng = np.random.default_rng(0)
    drug = np.repeat(["ctrl", *["A"] * 3, "B"], n)
    dose = np.repeat([0.0, *DOSES, 2.0], n)
    log = np.tile(rng.normal(1.5, 0.4, g), (len(drug), 1))
    log[drug == "A", :5] += (1.5 * dose / (dose + 1.0))[drug == "A", None]
    log[drug == "B", 5:10] -= 1.0
    x = rng.poisson(np.exp(log)).astype(np.float32)
    obs = pd.DataFrame({"drug": drug, "dose": dose}, index=[f"c{i}" for i in range(len(drug))])
    obs["library_size"] = 2 * x.sum(1).astype(int)
    return ad.AnnData(sparse.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(g)]))


@pytest.fixture(scope="module")
def fitted() -> ad.AnnData:
    adata = _cells()
    vx.tl.fit_vae(adata, n_latent=3, n_hidden=16, max_epochs=30, batch_size=64, denoised=False, **KEYS)
    return adata


@pytest.fixture(scope="module")
def table(fitted: ad.AnnData) -> pd.DataFrame:
    return vx.tl.dose_response(fitted, "A", genes=["g0", "g12"], n_resamples=50)


def test_a_curve_grows_from_0_near_the_measured_changes(table: pd.DataFrame) -> None:
    g0, g12 = (table[table["gene"] == name].set_index("dose") for name in ("g0", "g12"))
    assert g0.loc[0.0, "change"] == g0.loc[0.0, "low"] == g0.loc[0.0, "high"] == 0.0
    assert (np.diff(g0["change"]) >= -1e-6).all()
    for dose in DOSES:
        row = g0.loc[np.isclose(g0.index, dose, rtol=1e-5)].iloc[0]
        assert row["n_cells"] == 80
        assert abs(row["change"] - row["measured"]) < 5 * row["measured_error"]
        assert row["low"] < row["change"] < row["high"]
    # the share of a gene falls if others rise
    highest = g12.loc[np.isclose(g12.index, DOSES[-1], rtol=1e-5)].iloc[0]
    assert highest["change"] < 0
    assert abs(highest["change"] - highest["measured"]) < 5 * highest["measured_error"]
    assert not table["extrapolated"].any() or table.loc[table["extrapolated"], "dose"].max() < DOSES[0]


def test_the_curve_at_a_dose_does_not_depend_on_the_other_doses(fitted: ad.AnnData, table: pd.DataFrame) -> None:
    whole = table[table["gene"] == "g0"].reset_index(drop=True)
    for rows in ([0, 5], [len(whole) - 1]):
        part = vx.tl.dose_response(fitted, "A", genes="g0", doses=whole["dose"][rows].tolist(), n_resamples=50)
        for column in ("change", "low", "high", "measured", "extrapolated"):
            np.testing.assert_allclose(part[column].astype(float), whole[column][rows].astype(float), err_msg=column)
    beyond = vx.tl.dose_response(fitted, "A", genes="g0", doses=[1e6], n_resamples=50)
    assert beyond["extrapolated"].all()
    assert beyond["change"][0] >= whole["change"].max() - 1e-6
    observed = vx.tl.dose_response(fitted, "A", genes="g0", doses=[0.1, 1, 10], n_resamples=50)
    assert (observed["n_cells"] == 80).all()
    assert not observed["extrapolated"].any()


def test_more_cells_give_narrower_intervals(fitted: ad.AnnData, table: pd.DataFrame) -> None:
    few = fitted[np.arange(fitted.n_obs) % 8 == 0].copy()
    wide = vx.tl.dose_response(few, "A", genes=["g0"], n_resamples=50)
    width = [float((part["high"] - part["low"]).iloc[-1]) for part in (wide, table[table["gene"] == "g0"])]
    assert width[0] > 1.5 * width[1]


def test_extrapolated_and_single_doses_are_warned_about(fitted: ad.AnnData, warned: list[str]) -> None:
    found = vx.tl.dose_response(fitted, "A", genes="g0", doses=[0, 5, 100], n_resamples=10)
    assert found["extrapolated"].tolist() == [False, False, True]
    assert any("up to 100" in message and "extrapolation" in message for message in warned)
    assert found["measured"].isna().all()
    warned.clear()
    vx.tl.dose_response(fitted, "B", genes="g5", n_resamples=10)
    assert any("one dose of 'B'" in message for message in warned)


def test_impossible_requests_say_what_to_change(fitted: ad.AnnData, quick: dict) -> None:
    with pytest.raises(ValueError, match=r"'A\+B' is not a single perturbation"):
        vx.tl.dose_response(fitted, "A+B", genes="g0")
    with pytest.raises(KeyError, match="'nothing'"):
        vx.tl.dose_response(fitted, "A", genes="nothing")
    with pytest.raises(ValueError, match="not negative"):
        vx.tl.dose_response(fitted, "A", genes="g0", doses=[-1])
    adata = _cells(20)
    vx.tl.fit_vae(adata, perturbation_key="drug", control="ctrl", **quick)
    with pytest.raises(ValueError, match="dose_key="):
        vx.tl.dose_response(adata, "A", genes="g0")


def test_the_figure(table: pd.DataFrame) -> None:
    axes: Any = vx.pl.dose_response(table, show=False)
    assert [ax.get_title(loc="left") for ax in axes] == ["g0", "g12"]
    assert axes[0].get_xlabel() == "dose of A"
    with pytest.raises(ValueError, match="lacks the columns"):
        vx.pl.dose_response(table[["gene", "dose"]], show=False)
    with pytest.raises(TypeError, match="found dict"):
        vx.pl.dose_response({}, show=False)


@pytest.mark.parametrize("lowest", [0.1, float(np.float32(0.1)), 0.09999, 0.02])
def test_no_tick_of_the_figure_is_between_0_and_the_lowest_measured_dose(lowest: float) -> None:
    dose = np.array([0.0, lowest / 4, lowest, 1.0, 10.0])
    measured = np.array([0, 0, 9, 9, 9])
    columns = dict.fromkeys(("change", "low", "high", "measured", "measured_error"), 1.0)
    table = pd.DataFrame({"gene": "g0", "dose": dose, **columns, "n_cells": measured, "extrapolated": measured == 0})
    axes: Any = vx.pl.dose_response(table, show=False)
    np.testing.assert_allclose(axes[0].get_xticks(), [0.0, 0.1, 1.0, 10.0])


def test_deviations_are_those_of_estimates_of_a_known_curve() -> None:
    """With one observed dose, the curve moves by the error of that dose, in proportion to the dose."""
    observed = Observed(np.array([0.0, 1.0]), np.array([[0.16, 0.03], [0.12, 0.04]]))
    curves = Curves(observed, np.array([0.0, 0.5, 1.0]))
    shape, amplitude = curves.estimate(np.array([[0.0, 7.0], [1.0, 7.0]]))
    np.testing.assert_allclose(amplitude, [1.0, 0.0])
    found = curves.deviations(shape, amplitude, 4_000, np.random.default_rng(0))
    np.testing.assert_allclose(found.std(0), [[0, 0], [0.1, 0.025], [0.2, 0.05]], rtol=0.05, atol=1e-12)


def test_a_shape_is_found_and_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    dose, grid = np.array([0.0, 0.1, 0.3, 1.0]), np.array([0.2, 0.5, 1.0])
    amplitude = rng.normal(0, 1.0, 200)
    half, slope = np.array(0.3), np.array(1.2)
    truth = hill(grid, half, slope)[:, None] * amplitude
    curves = Curves(Observed(dose, np.full((4, 200), 0.15)), grid)
    inside = []
    for _ in range(10):
        measured = hill(dose, half, slope)[:, None] * amplitude + 0.15 * rng.standard_normal((4, 200))
        shape, estimated = curves.estimate(measured)
        curve = curves.curve(shape, estimated)
        np.testing.assert_allclose(curve, truth, atol=0.9)
        spread = curves.deviations(shape, estimated, 100, rng)
        low, high = (curve + np.quantile(spread, q, axis=0) for q in (0.025, 0.975))
        inside.append(((low <= truth) & (truth <= high)).mean())
    assert 0.9 < np.mean(inside) <= 1.0
