"""``vx.pl.covariates`` shows the numbers of the diagnosis."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import vxpress as vx

# typed as Any, because return values are unions of types
pl: Any = vx.pl


@pytest.fixture(scope="session")
def _covaried() -> AnnData:
    adata = vx.datasets.simulate(120, 40, n_batches=2)
    vx.tl.fit_vae(adata, "batch", n_latent=2, n_hidden=8, max_epochs=2, denoised=False)
    columns = {
        "name": ["batch", "a very long name of a column of obs", "nested"],
        "n_categories": [2, 40, 3],
        "worth": [25.0, -0.2, np.nan],
        "low": [20.0, -0.9, np.nan],
        "high": [30.0, 0.5, np.nan],
        "p": [0.001, 0.42, np.nan],
        "n_compared": [100, 90, 0],
        "associated_by": ["batch", "batch", "nested"],
        "associated": ["nested", "condition", "condition"],
        "association": [1.0, 0.25, np.nan],
    }
    adata.uns["vae"]["diagnostics"]["covariates"] = {name: np.array(values) for name, values in columns.items()}
    return adata


@pytest.fixture
def covaried(_covaried: AnnData) -> AnnData:
    return _covaried.copy()


def test_points_intervals_and_image_are_the_record(covaried):
    worth, association = pl.covariates(covaried, show=False)
    (points, *_) = worth.lines
    np.testing.assert_array_equal(points.get_xdata(), [25.0, -0.2, np.nan])
    segments = worth.collections[0].get_segments()
    np.testing.assert_array_equal([segment[:, 0] for segment in segments[:2]], [[20.0, 30.0], [-0.9, 0.5]])
    labels = [label.get_text() for label in worth.get_yticklabels()]
    assert labels[0] == "batch (2)\np ≤ 0.001"
    assert labels[1].endswith("… (40)\np = 0.42")
    assert worth.get_xlim()[0] < -0.9
    assert worth.get_xlim()[1] > 30
    assert worth.get_ylim()[0] > worth.get_ylim()[1]  # the batch is on top
    np.testing.assert_array_equal(
        association.images[0].get_array().filled(np.nan), [[1.0, 0.25], [np.nan, np.nan], [np.nan, np.nan]]
    )
    assert [text.get_text() for text in association.texts] == ["1.00", "0.25"]
    assert [label.get_text() for label in association.get_xticklabels()] == ["nested", "condition"]


def test_returns_follow_the_other_figures(covaried, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    assert pl.covariates(covaried, show=True) is None
    assert isinstance(pl.covariates(covaried, return_fig=True), Figure)
    _, given = plt.subplots()
    assert pl.covariates(covaried, ax=given, show=False) == [given]
    assert not given.images
    _, two = plt.subplots(1, 2)
    assert pl.covariates(covaried, ax=list(two), show=False) == list(two)
    with pytest.raises(TypeError, match="show='no'"):
        pl.covariates(covaried, show="no")


def test_without_held_out_cells_it_says_so(covaried):
    record = covaried.uns["vae"]["diagnostics"]["covariates"]
    covaried.uns["vae"]["diagnostics"]["covariates"] = {name: record[name] for name in ("name", "n_categories")}
    (worth,) = pl.covariates(covaried, show=False)
    assert isinstance(worth, Axes)
    assert [text.get_text() for text in worth.texts] == ["no held-out cells:\nworth was not computed"]


def test_an_earlier_fit_and_one_without_covariates_name_the_call(covaried, used):
    del covaried.uns["vae"]["diagnostics"]["covariates"]
    with pytest.raises(ValueError, match=r"vx\.tl\.diagnose\(adata\)"):
        pl.covariates(covaried)
    with pytest.raises(ValueError, match=r"no categorical covariates.*batch_key="):
        pl.covariates(used)
    del used.uns["vae"]
    with pytest.raises(KeyError, match=r"vx\.tl\.fit_vae\(adata\)"):
        pl.covariates(used)
