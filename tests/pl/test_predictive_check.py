from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from anndata import AnnData
from matplotlib.figure import Figure

import vxpress as vx


@pytest.fixture
def checked(used: AnnData) -> AnnData:
    vx.tl.predictive_check(used, n_draws=3)
    return used


def test_panels_show_the_computed_numbers(checked: AnnData) -> None:
    axes = vx.pl.predictive_check(checked, show=False)
    assert isinstance(axes, list)
    found = checked.uns["vae_predictive_check"]
    tables = [found["genes"]] * 3 + [found["cells"]]
    for ax, table, name in zip(axes, tables, ("mean", "variance", "zero_fraction", "zero_fraction"), strict=False):
        points = np.asarray(ax.collections[0].get_offsets())
        expected = table[[name, f"{name}_predicted"]].to_numpy()
        if ax.get_xscale() == "log":
            expected = expected[(expected > 0).all(1)]
        np.testing.assert_allclose(points, expected)
    bars: Any = axes[4].patches
    np.testing.assert_allclose([bar.get_height() for bar in bars], found["pit"])
    assert f"{found['coverage'].loc['90', 'expressed']:.1%} in the 90 % interval" in axes[4].get_title()
    shown = [np.asarray(points.get_offsets())[:, 1] for points in axes[5].collections]
    np.testing.assert_allclose(shown, found["genes"][["coverage_50", "coverage_90"]].to_numpy().T)


def test_returns_axes_or_a_figure_or_none(checked: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    assert isinstance(vx.pl.predictive_check(checked, return_fig=True), Figure)
    assert not shown
    assert vx.pl.predictive_check(checked, show=True) is None
    assert shown
    given = list(plt.figure().subplots(3, 2).flat)
    assert vx.pl.predictive_check(checked, ax=given, show=False) == given
    with pytest.raises(ValueError, match="list of 6"):
        vx.pl.predictive_check(checked, ax=given[:2])


def test_names_the_missing_call(used: AnnData) -> None:
    with pytest.raises(KeyError, match=r"vx\.tl\.predictive_check\(adata\)"):
        vx.pl.predictive_check(used)
    with pytest.raises(KeyError, match="key='mine'"):
        vx.pl.predictive_check(used, key="mine")
    with pytest.raises(TypeError, match="AnnData"):
        vx.pl.predictive_check(None)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_draws_every_scale(likelihood: str) -> None:
    adata = vx.datasets.simulate(60, 30, library_mean=200)
    adata.X = adata.X.toarray() * (np.arange(30) != 4)
    vx.tl.fit_vae(adata, likelihood=likelihood, n_latent=2, max_epochs=2, denoised=False)
    vx.tl.predictive_check(adata, n_draws=2)
    figure = vx.pl.predictive_check(adata, return_fig=True)
    assert isinstance(figure, Figure)
    figure.canvas.draw()
