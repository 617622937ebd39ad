"""Expression along a path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import vxpress as vx

PALE = "#d9d9d9"
mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def _axes(*args: Any, **settings: Any) -> list[Axes]:
    found = vx.pl.trajectory(*args, show=False, **settings)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(
    ("names", "expected"), [(("0", "12"), "0: group 0, 1: group 12"), (("B", "T 2"), "0: B, 1: T 2")]
)
def test_groups_that_are_numbers_go_with_their_column(
    fitted: ad.AnnData, names: tuple[str, str], expected: str
) -> None:
    fitted.obs["group"] = fitted.obs["group"].cat.rename_categories(
        dict(zip(["group_0", "group_1"], names, strict=True))
    )
    path = vx.tl.interpolate(fitted, *names, groupby="group", n_steps=3)
    (ax,) = _axes(path)
    assert expected in ax.get_xlabel().replace("\u00a0", " ").replace("\n", " ")


@pytest.fixture
def path(fitted: ad.AnnData) -> ad.AnnData:
    path = vx.tl.interpolate(fitted, "group_0", "group_1", groupby="group", n_steps=9)
    path.obs["empty"] = np.isin(np.arange(9), [3, 4])
    return path


def test_lines_show_expression_and_bands_the_flagged_steps(path: ad.AnnData) -> None:
    names = list(path.var_names[[3, 1]])
    (ax,) = _axes(path, names, relative=False)
    assert [line.get_label() for line in ax.lines] == names
    for line, name in zip(ax.lines, names, strict=True):
        np.testing.assert_allclose(line.get_ydata(), np.asarray(path[:, name].X)[:, 0])
        np.testing.assert_allclose(line.get_xdata(), path.obs["position"])
    bands = [p for p in ax.patches if isinstance(p, Rectangle) and p.get_facecolor() == to_rgba(PALE)]
    spans = sorted((band.get_x(), band.get_x() + band.get_width()) for band in bands)
    np.testing.assert_allclose(spans, [(0.3125, 0.4375), (0.4375, 0.5625)])
    (relative,) = _axes(path, names)
    assert max(np.asarray(line.get_ydata()).max() for line in relative.lines) == pytest.approx(1.0)


def test_the_genes_drawn_by_default_change_most(path: ad.AnnData) -> None:
    (ax,) = _axes(path)
    labels = [line.get_label() for line in ax.lines]
    assert len(labels) == 8
    x = np.asarray(path.X, dtype=float)
    small = 0.01 * x.max()
    ratio = dict(zip(path.var_names, (x.max(0) + small) / (x.min(0) + small), strict=True))
    assert min(ratio[name] for name in labels) >= max(v for name, v in ratio.items() if name not in labels) - 1e-9


def test_the_path_is_drawn_at_full_length_among_the_cells(path: ad.AnnData, fitted: ad.AnnData) -> None:
    _, plane = _axes(path, cells=fitted)
    drawn, z = plane.lines[0].get_xydata(), path.obsm["X_vae"]
    steps = [np.linalg.norm(np.diff(points, axis=0), axis=1) for points in (drawn, z)]
    np.testing.assert_allclose(*steps, rtol=1e-4)
    sizes = [len(points.get_offsets()) for points in plane.collections]
    assert sizes == [fitted.n_obs, 7, 2]
    assert {"group_0", "group_1"} <= {text.get_text() for text in plane.texts}


def test_axes_and_figures_are_returned_as_in_scanpy(path: ad.AnnData, fitted: ad.AnnData) -> None:
    assert isinstance(vx.pl.trajectory(path, return_fig=True), Figure)
    _, axes = plt.subplots(1, 2)
    assert vx.pl.trajectory(path, cells=fitted, ax=axes, show=False) == list(axes)
    with pytest.raises(ValueError, match="a list of 2"):
        vx.pl.trajectory(path, cells=fitted, ax=axes[0], show=False)


def test_data_that_are_not_a_path_are_refused(path: ad.AnnData, fitted: ad.AnnData) -> None:
    with pytest.raises(KeyError, match="This is not a path"):
        vx.pl.trajectory(fitted)
    with pytest.raises(KeyError, match="the same key= as to"):
        vx.pl.trajectory(path, key="other")
    with pytest.raises(TypeError, match="interpolate"):
        vx.pl.trajectory(path.to_df())
    with pytest.raises(KeyError, match="not in the path"):
        vx.pl.trajectory(path, ["nope"])
    bare = fitted.copy()
    del bare.obsm["X_vae"]
    with pytest.raises(KeyError, match="has no 'X_vae'"):
        vx.pl.trajectory(path, cells=bare)
    bare.obsm["X_vae"] = np.zeros((bare.n_obs, 2))
    with pytest.raises(ValueError, match="but the path has"):
        vx.pl.trajectory(path, cells=bare)
