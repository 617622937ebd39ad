"""Figures show the right numbers: artists are read, images are not compared."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from scipy import sparse
from scipy.stats import norm

import vxpress as vx
from vxpress._keys import Keys
from vxpress.metrics import kl_per_cell
from vxpress.pl._colours import SOFT
from vxpress.pl._latent import umap_is_of
from vxpress.pl._shared import headline

PALE = "#d9d9d9"

# typed as Any, because return values are unions of types
pl: Any = vx.pl

FUNCTIONS = [pl.history, pl.kl, pl.latent, pl.posterior]
every = pytest.mark.parametrize("plot", FUNCTIONS, ids=lambda f: f.__name__)


def kl_of(adata: AnnData) -> np.ndarray:
    return kl_per_cell(adata.obsm["X_vae"].astype(float), adata.obsm["X_vae_var"].astype(float))


def test_the_divergence_drawn_is_that_of_the_metrics(used):
    expected = vx.metrics.kl_per_dimension(used.obsm["X_vae"], used.obsm["X_vae_var"])
    heights = [bar.get_height() for bar in pl.kl(used, show=False).patches]
    np.testing.assert_allclose(heights, np.sort(expected)[::-1])


# properties of all figures


@every
def test_returns_axes_or_a_figure_or_none(used, plot, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    axes = plot(used, show=False)
    assert all(isinstance(ax, Axes) for ax in (axes if isinstance(axes, list) else [axes]))
    assert isinstance(plot(used, return_fig=True), Figure)
    assert not shown
    assert plot(used, show=True) is None
    assert shown == [True]


@every
def test_show_follows_scanpy(used, plot, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    before = sc.settings.autoshow
    try:
        sc.settings.autoshow = False
        assert plot(used) is not None
        sc.settings.autoshow = True
        assert plot(used) is None
    finally:
        sc.settings.autoshow = before
    assert shown == [True]


@every
def test_without_a_fit_names_the_call(used, plot):
    del used.uns["vae"]
    with pytest.raises(KeyError, match=r"vx\.tl\.fit_vae\(adata\)"):
        plot(used, show=False)


@pytest.mark.parametrize("plot", [pl.kl, pl.latent, pl.posterior])
def test_without_a_posterior_names_the_call(used, plot):
    del used.obsm["X_vae_var"]
    with pytest.raises(KeyError, match=r"vx\.tl\.encode"):
        plot(used, show=False)


@every
def test_the_data_do_not_change(used, plot):
    before = used.copy()
    plot(used, show=False)
    assert list(used.uns) == list(before.uns)
    assert list(used.obs) == list(before.obs)
    assert np.array_equal(used.obsm["X_vae"], before.obsm["X_vae"])


@every
def test_the_key_selects_another_fit(used, plot):
    vx.tl.fit_vae(used, n_latent=2, max_epochs=2, denoised=False, key_added="other")
    del used.uns["vae"]
    assert plot(used, key="other", show=False) is not None


@every
def test_an_empty_or_wrong_object_is_refused(plot):
    with pytest.raises(TypeError, match="AnnData"):
        plot(np.ones((3, 3)), show=False)


@pytest.mark.parametrize("plot", [pl.kl, pl.posterior])
def test_draws_on_axes_within_a_subfigure(used, plot):
    figure = plt.figure()
    part: Any = figure.add_subfigure(figure.add_gridspec(1, 2)[0])
    ax = part.subplots() if plot is pl.kl else list(part.subplots(1, 2))
    assert plot(used, ax=ax, return_fig=True) is figure


@pytest.mark.parametrize("plot", [pl.kl, pl.latent, pl.posterior])
def test_no_cells(used, plot):
    with pytest.raises(ValueError, match="no cells"):
        plot(used[:0].copy(), show=False)


# history


def test_history_draws_both_curves_and_the_kept_epoch(used):
    ax = pl.history(used, show=False)
    history, params = used.uns["vae"]["history"], used.uns["vae"]["params"]
    train, validation, kept = ax.get_lines()
    assert np.array_equal(train.get_ydata(), history["elbo_train"])
    assert np.array_equal(validation.get_ydata(), history["elbo_validation"])
    assert list(train.get_xdata()) == list(range(1, len(history["elbo_train"]) + 1))
    assert list(kept.get_xdata()) == [params["best_epoch"] + 1] * 2
    low, high = ax.get_ylim()
    assert low < validation.get_ydata()[params["best_epoch"]] < high
    assert "nats per cell" in ax.get_ylabel()


def test_history_draws_the_weight_on_a_twin_behind(used):
    ax = pl.history(used, show=False)
    (twin,) = (other for other in ax.figure.axes if other is not ax)
    assert np.array_equal(twin.get_lines()[0].get_ydata(), used.uns["vae"]["history"]["kl_weight"])
    assert twin.get_ylim()[0] == 0
    assert twin.get_zorder() < ax.get_zorder()


def test_history_without_held_out_cells_or_with_one_epoch():
    adata = vx.datasets.simulate(40, 20)
    vx.tl.fit_vae(adata, n_latent=2, max_epochs=1, validation_fraction=0.0, denoised=False)
    ax = pl.history(adata, show=False)
    train, kept = ax.get_lines()
    assert train.get_marker() == "o"
    assert kept.get_label() == "kept: epoch 1"


def test_history_of_a_model_without_cells(used, tmp_path):
    vx.save_model(used, tmp_path / "model.safetensors")
    ax = pl.history(vx.load_model(tmp_path / "model.safetensors"), show=False)
    assert np.array_equal(ax.get_lines()[0].get_ydata(), used.uns["vae"]["history"]["elbo_train"])


# kl


def test_kl_bars_are_sorted_means_with_quartiles(used):
    ax = pl.kl(used, show=False)
    kl_nd = kl_of(used)
    order = np.argsort(-kl_nd.mean(0))
    assert np.allclose([bar.get_height() for bar in ax.patches], kl_nd.mean(0)[order])
    assert [int(label.get_text()) for label in ax.get_xticklabels()] == list(order)
    segments = np.array(ax.collections[0].get_segments())[:, :, 1]
    assert np.allclose(segments.T, np.quantile(kl_nd[:, order], [0.25, 0.75], axis=0))


def test_kl_per_cell_has_the_mean_that_metrics_reports(used):
    mean, var = used.obsm["X_vae"].astype(float), used.obsm["X_vae_var"].astype(float)
    assert np.allclose(kl_per_cell(mean, var).mean(0), vx.metrics.kl_per_dimension(mean, var))


def test_kl_marks_active_dimensions_and_shows_the_verdict(used, collapsed):
    for adata, colour in ((used, SOFT), (collapsed, PALE)):
        ax = pl.kl(adata, show=False)
        assert {bar.get_facecolor() for bar in ax.patches} == {to_rgba(colour)}
        verdict = adata.uns["vae"]["diagnostics"]["verdict"]
        assert verdict.startswith(ax.get_title(loc="left").replace("\n", " "))


def test_kl_of_a_collapsed_fit_has_low_bars_on_a_fixed_axis(collapsed):
    ax = pl.kl(collapsed, show=False)
    assert max(bar.get_height() for bar in ax.patches) < 0.1 * ax.get_ylim()[1]


def test_kl_of_many_dimensions_labels_some_ticks(used):
    vx.tl.fit_vae(used, n_latent=70, max_epochs=1, denoised=False)
    ax = pl.kl(used, show=False)
    assert len(ax.patches) == 70
    assert len(ax.get_xticks()) == 35


def test_headline_ends_at_the_first_stop_and_not_within_a_number():
    text = "prior gap: the cells lie 0.42 nats a dimension away; clustering is sound. Fit again."
    assert headline({"verdict": text}) == "prior gap: the cells lie 0.42 nats a dimension away"


# latent


def test_latent_draws_the_two_highest_dimensions(used):
    ax = pl.latent(used, show=False)
    kl_d = kl_of(used).mean(0)
    first, second = np.argsort(-kl_d)[:2]
    assert np.array_equal(ax.collections[0].get_offsets(), used.obsm["X_vae"][:, [first, second]])
    assert ax.get_xlabel() == f"dimension {first} ({kl_d[first]:.2f} nats)"
    assert ax.get_ylabel() == f"dimension {second} ({kl_d[second]:.2f} nats)"


@pytest.mark.parametrize("convert", [pd.DataFrame, sparse.csr_matrix, sparse.csc_array])
def test_latent_draws_positions_of_any_type(used, convert):
    expected = pl.latent(used, show=False).collections[0].get_offsets()
    umap = np.random.default_rng(0).normal(size=(used.n_obs, 2)).astype(np.float32)
    kwargs = {"index": used.obs_names} if convert is pd.DataFrame else {}
    for name, values in {"X_vae": used.obsm["X_vae"], "X_umap": umap}.items():
        used.obsm[name] = convert(values, **kwargs)
    kinds = {name: type(used.obsm[name]) for name in ("X_vae", "X_umap")}
    np.testing.assert_array_equal(pl.latent(used, color="group", show=False).collections[0].get_offsets(), expected)
    used.uns["neighbors"] = {"params": {"use_rep": "X_vae"}}
    np.testing.assert_array_equal(pl.latent(used, show=False).collections[0].get_offsets(), umap)
    assert {name: type(used.obsm[name]) for name in kinds} == kinds


def test_latent_draws_the_umap_of_this_fit_only(used):
    used.obsm["X_umap"] = np.random.default_rng(0).normal(size=(used.n_obs, 2))
    assert "dimension" in pl.latent(used, show=False).get_xlabel()
    used.uns["neighbors"] = {"params": {"use_rep": "X_pca"}}
    assert "dimension" in pl.latent(used, show=False).get_xlabel()
    used.uns["neighbors"] = {"params": {"use_rep": "X_vae"}}
    ax = pl.latent(used, show=False)
    assert ax.get_xlabel() == "UMAP1"
    assert np.array_equal(ax.collections[0].get_offsets(), used.obsm["X_umap"])
    assert pl.latent(used, dimensions=(1, 0), show=False).get_xlabel().startswith("dimension 1")


def test_umap_is_recognised_by_the_record_of_scanpy(used):
    # this needs no UMAP, whose compilation takes half a minute
    sc.pp.neighbors(used, use_rep="X_vae", transformer="sklearn", method="gauss")
    assert umap_is_of(used.uns, Keys.of())
    assert not umap_is_of(used.uns, Keys.of("other"))
    assert not umap_is_of({}, Keys.of())


def test_latent_colours_by_category_number_and_gene(used):
    used.obs["depth"] = used.obs["library_size"]
    gene = str(used.var_names[0])
    axes = pl.latent(used, color=["group", "depth", gene], show=False)
    assert [ax.get_title() for ax in axes] == ["group", "depth", gene]
    assert all(ax.get_xlabel().startswith("dimension") for ax in axes)
    palette = {to_rgba(colour) for colour in used.uns["group_colors"]}
    assert {tuple(colour) for colour in axes[0].collections[0].get_facecolors()} <= palette
    assert "depth_colors" not in used.uns


def test_latent_accepts_axes_layer_and_arguments_of_scanpy(used):
    gene = str(used.var_names[0])
    used.layers["twice"] = 2 * used.X
    ax = plt.figure().add_subplot()
    assert pl.latent(used, color=gene, layer="twice", ax=ax, size=5, sort_order=False, show=False) is ax
    assert np.array_equal(ax.collections[0].get_array(), used.layers["twice"][:, 0].toarray().ravel())
    assert ax.collections[0].get_sizes() == 5


def test_latent_refuses_what_it_cannot_draw(used):
    with pytest.raises(KeyError, match="'nothing'"):
        pl.latent(used, color="nothing", show=False)
    for dimensions in [(0, N) for N in (4, -1, 1.5)] + [(0,), (0, 1, 2)]:
        with pytest.raises(ValueError, match="from 0 to 2"):
            pl.latent(used, dimensions=dimensions, show=False)
    vx.tl.fit_vae(used, n_latent=1, max_epochs=1, denoised=False)
    with pytest.raises(ValueError, match=r"sc\.tl\.umap"):
        pl.latent(used, show=False)


# posterior


def test_posterior_curves_are_the_posteriors_of_the_named_cells(used):
    names = list(used.obs_names[[3, 1]])
    axes = pl.posterior(used, cells=names, show=False)
    kl_d = kl_of(used).mean(0)
    for ax, i in zip(axes, (kl_d.argmax(), kl_d.argmin()), strict=True):
        *cells, prior = ax.get_lines()
        assert [line.get_label() for line in cells] == names
        for line, n in zip(cells, (3, 1), strict=True):
            mean, var = used.obsm["X_vae"][n, i], used.obsm["X_vae_var"][n, i]
            assert np.allclose(line.get_ydata(), norm.pdf(line.get_xdata(), mean, np.sqrt(var)))
            # the whole curve is in view
            assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(1.0, abs=0.01)
        assert np.allclose(prior.get_ydata(), norm.pdf(prior.get_xdata()))
        assert ax.get_title().startswith(f"dimension {i}: KL {kl_d[i]:.2f} nats per cell\n")


def test_posterior_aggregate_is_a_density(used):
    for ax in pl.posterior(used, show=False):
        x, y = ax.collections[0].get_paths()[0].vertices.T
        area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
        assert area == pytest.approx(1.0, abs=0.02)


def test_posterior_chooses_cells_across_the_dimension(used):
    ax = pl.posterior(used, show=False)[0]
    means = [line.get_xdata()[line.get_ydata().argmax()] for line in ax.get_lines()[:-1]]
    assert len(means) == 5
    assert means == sorted(means)
    assert means[-1] - means[0] > used.obsm["X_vae"][:, kl_of(used).mean(0).argmax()].std()


def test_posterior_titles_show_whether_dimensions_are_empty(used, collapsed):
    high, low = (ax.get_title() for ax in pl.posterior(used, show=False))
    assert "most used" in high
    assert "none empty" in low
    assert all("collapsed, like all" in ax.get_title() for ax in pl.posterior(collapsed, show=False))
    used.uns["vae"]["diagnostics"]["active"] = kl_of(used).mean(0) > kl_of(used).mean(0).min()
    high, low = (ax.get_title() for ax in pl.posterior(used, show=False))
    assert "most used" in high
    assert "\nempty: posterior sd" in low


def test_posterior_of_one_dimension_is_one_panel(used):
    vx.tl.fit_vae(used, n_latent=1, max_epochs=1, denoised=False)
    assert len(pl.posterior(used, show=False)) == 1
    assert pl.posterior(used, ax=plt.figure().add_subplot(), show=False) is not None


def test_posterior_of_two_cells(used):
    ax = pl.posterior(used[:2].copy(), show=False)[0]
    assert len(ax.get_lines()) == 3


def test_posterior_refuses_unknown_cells_and_the_wrong_number_of_axes(used):
    with pytest.raises(KeyError, match="obs_names"):
        pl.posterior(used, cells=["nobody"], show=False)
    with pytest.raises(ValueError, match="list of 2"):
        pl.posterior(used, ax=[plt.figure().add_subplot()], show=False)
