"""Behaviour of all figures with invalid input, given axes, interrupts and styles."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure

import vxpress as vx
from vxpress.pl._colours import PALETTE, Shades
from vxpress.pl._labels import spread

pl: Any = vx.pl
NAMES = ("history", "kl", "latent", "posterior", "predictive_check", "trajectory", "volcano")


@pytest.fixture(scope="session")
def _everything(_used: AnnData) -> AnnData:
    """Return a fit with all results that the figures read."""
    adata = _used.copy()
    vx.tl.predictive_check(adata, n_draws=2)
    path = vx.tl.interpolate(adata, "group_0", "group_1", groupby="group", n_steps=5)
    logged = adata.copy()
    sc.pp.log1p(logged)
    sc.tl.rank_genes_groups(logged, "group", method="t-test")
    adata.uns["rank_genes_groups"] = logged.uns["rank_genes_groups"]
    adata.uns["path"] = {"x": path.X, "names": list(path.var_names)}
    adata.uns["_path"] = path
    return adata


@pytest.fixture
def draw(_everything: AnnData) -> Any:
    """Return a function such that ``draw("kl", ax=3)`` calls ``vx.pl.kl`` on suitable data."""

    def call(name: str, *, adata: AnnData | None = None, **kwargs: Any) -> Any:
        if adata is None:
            adata = _everything.uns["_path"] if name == "trajectory" else _everything
        if name == "volcano":
            kwargs = {"group": "group_1"} | kwargs
        return getattr(pl, name)(adata, **({"show": False} | kwargs))

    return call


@pytest.mark.parametrize("name", NAMES)
def test_invalid_axes_are_refused_and_no_figure_is_left_open(draw, name):
    figure, one = plt.subplots()
    for ax in ("x", 3, {"a": one}, [one, "x"], figure):
        with pytest.raises(TypeError, match=r"plt\.subplots"):
            draw(name, ax=ax)
    with pytest.raises(ValueError, match="9 axes"):
        draw(name, ax=plt.figure().subplots(3, 3))
    n = {"posterior": 2, "predictive_check": 6}.get(name, 1)
    with pytest.raises(ValueError, match="polar axes"):
        draw(name, ax=[plt.figure().add_subplot(projection="polar") for _ in range(n)])
    open_before = plt.get_fignums()
    for figsize in (3, (3,), (0, 3), (-1, 3), ("a", 3), (np.nan, 3), (3, np.inf), (1e6, 3), "ab"):
        with pytest.raises(ValueError, match="inches"):
            draw(name, figsize=figsize)
    with pytest.raises(ValueError, match="existing"):
        draw(name, figsize=(3, 3), ax=one)
    with pytest.raises(TypeError, match="show="):
        draw(name, show="yes")
    with pytest.raises(TypeError, match="return_fig="):
        draw(name, return_fig=3)
    assert plt.get_fignums() == open_before


@pytest.mark.parametrize("name", [name for name in NAMES if name != "volcano"])
@pytest.mark.parametrize("key", [3, "", "a/b", ["vae"]])
def test_an_invalid_key_is_refused(draw, name, key):
    with pytest.raises(ValueError, match="key="):
        draw(name, key=key)
    assert not plt.get_fignums()


@pytest.mark.parametrize("name", ["latent", "posterior", "predictive_check", "trajectory"])
@pytest.mark.parametrize("ncols", [0, -1, 1.5, "2", True])
def test_ncols_is_a_whole_number(draw, name, ncols):
    with pytest.raises(ValueError, match="ncols="):
        draw(name, ncols=ncols)
    assert not plt.get_fignums()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", NAMES)
def test_on_failure_a_new_figure_is_closed_and_the_users_figure_is_not(draw, name, error, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"vxpress.pl._{name}.finish", fail)
    with pytest.raises(error):
        draw(name)
    assert not plt.get_fignums()
    n = {"posterior": 2, "predictive_check": 6}.get(name, 1)
    axes = plt.figure().subplots(1, n)
    with pytest.raises(error):
        draw(name, ax=axes)
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_all_text_is_inside_a_figure_of_half_a_page(draw, name):
    height = {"predictive_check": 12.0, "posterior": 5.0}.get(name, 2.8)
    figure = draw(name, figsize=(3.5, height), return_fig=True)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 > -0.05
    assert box.y0 > -0.05
    assert box.x1 < width + 0.05
    assert box.y1 < height + 0.05
    assert all(ax.get_position().height * height > 0.8 for ax in figure.axes if ax.get_xlabel())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", ["dark_background", {"font.size": 18, "axes.grid": True}, "scanpy"])
def test_draws_in_any_style_and_does_not_change_it(draw, name, settings):
    with plt.rc_context():
        if settings == "scanpy":
            sc.set_figure_params(dpi=60, figsize=(3, 3))
        else:
            plt.style.use(settings)
        before = dict(mpl.rcParams)
        draw(name, return_fig=True).draw_without_rendering()
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", ["history", "kl", "latent", "volcano"])
def test_draws_into_a_grid_with_and_without_constrained_layout(draw, name):
    for layout in ("constrained", "tight", None):
        axes = plt.figure(layout=layout).subplots(2, 2)
        assert draw(name, ax=axes[1, 0]) is axes[1, 0]
        axes[0, 0].figure.draw_without_rendering()
        assert not axes[0, 0].has_data()
    parts: Any = plt.figure().subfigures(1, 2)
    part = parts[0].subplots()
    assert draw(name, ax=part, return_fig=True) is part.figure.figure


def test_greys_are_visible_on_dark_axes():
    with plt.style.context("dark_background"):
        shades = Shades.of(plt.figure().add_subplot())
    assert sum(to_rgb(shades.ink)) > 2
    assert to_rgb(shades.face) == (0, 0, 0)
    light = Shades.of(plt.figure().add_subplot(facecolor="none"))
    assert (light.ink, light.quiet, light.pale) == ("#333333", "#9a9a9a", "#d9d9d9")


# cells and colours


def test_cells_can_be_names_positions_or_a_mask(used):
    names = list(used.obs_names[[3, 1]])
    mask = np.isin(np.arange(used.n_obs), [1, 3])
    label = lambda cells: [line.get_label() for line in pl.posterior(used, cells=cells, show=False)[0].lines[:-1]]
    for cells in (names, tuple(names), np.array(names), pd.Index(names), pd.Series(names), [3, 1], np.array([3, 1])):
        assert label(cells) == names
    for cells in (mask, list(mask), pd.Series(mask, index=used.obs_names)):
        assert label(cells) == names[::-1]
    assert label(names[0]) == names[:1]


@pytest.mark.parametrize(
    ("cells", "error"),
    [
        (3, TypeError),
        (3.5, TypeError),
        ([1.5], TypeError),
        ([None], TypeError),
        (["nobody"], KeyError),
        ("nobody", KeyError),
        ([], ValueError),
        ([10_000], ValueError),
        (np.ones(3, dtype=bool), ValueError),
        (np.zeros(200, dtype=bool), ValueError),
        (np.ones(200, dtype=bool), ValueError),
    ],
)
def test_invalid_cells_are_refused(used, cells, error):
    with pytest.raises(error, match="cells"):
        pl.posterior(used, cells=cells, show=False)
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"color": 3}, TypeError, "color=3"),
        ({"color": [3]}, TypeError, "color="),
        ({"color": []}, ValueError, "color="),
        ({"color": {"group": 1}}, TypeError, "color="),
        ({"color": ["group", "nothing"]}, KeyError, "nothing"),
        ({"layer": "nothing"}, KeyError, "adata.layers"),
        ({"gene_symbols": "nothing"}, KeyError, "adata.var"),
        ({"dimensions": 3}, ValueError, "dimensions="),
        ({"dimensions": "ab"}, ValueError, "dimensions="),
        ({"colour": "group"}, TypeError, "colour"),
        ({"save": "x.png"}, TypeError, "savefig"),
        ({"projection": "3d"}, TypeError, "projection"),
    ],
)
def test_latent_names_invalid_arguments(used, kwargs, error, words):
    with pytest.raises(error, match=words):
        pl.latent(used, **kwargs, show=False)
    assert not plt.get_fignums()


@pytest.mark.parametrize(("genes", "error"), [(3, TypeError), ([], TypeError), ([3], TypeError), ({}, TypeError)])
def test_genes_of_a_path_are_names(draw, genes, error):
    with pytest.raises(error, match="genes="):
        draw("trajectory", genes=genes)
    with pytest.raises(ValueError, match="at most 24"):
        draw("trajectory", genes=np.arange(80) < 25)


def test_existing_colours_are_kept_and_missing_ones_are_written(used):
    used.obs["own"] = used.obs["group"]
    used.uns["own_colors"] = ["#000001", "#000002", "#000003", "#000004"][: used.obs["group"].nunique()]
    before = list(used.uns["own_colors"])
    pl.latent(used, color=["own", "group"], show=False)
    assert used.uns["own_colors"] == before
    n = used.obs["group"].nunique()
    assert list(used.uns["group_colors"]) == list(PALETTE[:n])
    used.uns["group_colors"] = ["#123456"]
    pl.latent(used, color="group", show=False)
    assert used.uns["group_colors"][0] == "#123456"
    assert len(set(used.uns["group_colors"])) == n
    used.uns["group_colors"] = 3
    with pytest.raises(ValueError, match="del adata"):
        pl.latent(used, color="group", show=False)


def test_colours_of_a_view_are_not_written_to_its_parent(used):
    view = used[:100]
    ax = pl.latent(view, color="group", show=False)
    assert view.is_view
    assert "group_colors" not in used.uns
    assert len(ax.collections[0].get_offsets()) == 100
    gene = str(used.var_names[2])
    drawn = pl.latent(view, color=gene, show=False).collections[0].get_array()
    np.testing.assert_allclose(np.sort(drawn), np.sort(np.asarray(view.X[:, 2].todense()).ravel()))


@pytest.mark.parametrize("n", [1, 2, 24, 25, 40, 110])
def test_any_number_of_categories_with_long_names_and_missing_values(used, n):
    names = [f"a rather long name of a category of cells, number {i}" for i in range(n)]
    values = np.resize(np.array(names, dtype=object), used.n_obs)
    values[:5] = np.nan
    used.obs["many"] = pd.Categorical(values, categories=names)
    figure = pl.latent(used, color=["many", "group"], return_fig=True)
    figure.draw_without_rendering()
    ax = next(ax for ax in figure.axes if ax.get_title() == "many")
    assert [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()] == [*names, "NA"]
    box = ax.get_legend().get_window_extent()
    assert box.x0 >= ax.get_window_extent().x1
    assert ax.get_position().width * figure.get_size_inches()[0] > 1.5


@pytest.mark.parametrize("kind", ["bool", "text", "constant", "nan", "some nan"])
def test_any_kind_of_column_is_drawn(used, kind):
    n = used.n_obs
    columns = {
        "bool": np.arange(n) % 2 == 0,
        "text": np.where(np.arange(n) % 2, "a", "b"),
        "constant": np.ones(n),
        "nan": np.full(n, np.nan),
        "some nan": np.where(np.arange(n) % 2, np.nan, 1.0),
    }
    used.obs["x"] = columns[kind]
    pl.latent(used, color="x", return_fig=True).draw_without_rendering()


def test_one_cell_is_drawn(used):
    one = used[:1].copy()
    for plot in (pl.kl, pl.latent, pl.posterior):
        plot(one, return_fig=True).draw_without_rendering()


def _seen(colours: list[str], matrix: list[list[float]]) -> np.ndarray:
    """Compute colours in CIELAB as seen with a deficiency (Machado, Oliveira & Fernandes 2009, severity 1)."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(matrix).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize(
    "matrix",
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ],
    ids=["all cones", "no red cones", "no green cones", "no blue cones"],
)
def test_the_palette_is_safe_for_colour_blind_readers(matrix):
    def closest(colours: list[str]) -> float:
        lab = _seen(colours, matrix)
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
        return float(apart[np.triu_indices(len(lab), 1)].min())

    from scanpy.plotting.palettes import default_20

    assert closest(list(PALETTE[:10])) > 10
    assert closest(list(PALETTE)) > 6
    assert matrix[0][0] == 1 or closest(list(PALETTE[:20])) > closest(default_20)


# layout


def test_panels_wrap(used):
    genes = list(used.var_names[:7])
    axes = pl.latent(used, color=genes, ncols=3, show=False)
    rows = {ax.get_subplotspec().rowspan.start for ax in axes}
    assert rows == {0, 1, 2}
    narrow = pl.latent(used, color=genes[:2], figsize=(3.5, 6), show=False)
    assert [ax.get_subplotspec().colspan.start for ax in narrow] == [0, 0]
    given = plt.figure().subplots(2)
    assert pl.latent(used, color=genes[:2], ax=given, show=False) == list(given)


def test_titles_of_neighbouring_panels_do_not_overlap(used):
    for figure in (
        pl.posterior(used, return_fig=True),
        pl.latent(
            used, color=["group", *used.var_names[:3]], title=["a title of many words " * 3] * 4, return_fig=True
        ),
    ):
        figure.draw_without_rendering()
        boxes = [ax.title.get_window_extent() for ax in figure.axes if ax.get_title()]
        assert len(boxes) >= 2
        for i, one in enumerate(boxes):
            assert not any(one.overlaps(other) for other in boxes[:i])


def test_spread_keeps_the_order_and_the_least_distance():
    wanted = np.array([5.0, 5.0, 1.0, 5.1, 30.0])
    places = spread(wanted, 2.0, 0.0, 40.0)
    order = np.argsort(wanted, kind="stable")
    assert np.diff(places[order]).min() >= 2.0 - 1e-9
    # labels with enough space do not move; the three that overlap move as little as possible
    assert places[[2, 4]] == pytest.approx([1.0, 30.0])
    assert places[[0, 1, 3]].mean() == pytest.approx(wanted[[0, 1, 3]].mean())
    squeezed = spread(np.full(5, 39.0), 2.0, 0.0, 40.0)
    assert squeezed.max() == pytest.approx(40.0)
    assert squeezed.min() == pytest.approx(32.0)


def test_the_lines_of_a_path_are_labelled_at_their_ends(draw):
    (ax,) = draw("trajectory", genes=["gene_1", "gene_2"])
    named = {text.get_text(): text.arrow_patch.get_edgecolor() for text in ax.texts}
    assert named == {line.get_label(): to_rgba(line.get_color()) for line in ax.lines}
