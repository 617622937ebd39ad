"""Labels of points and lines that do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import textalloc
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from scipy.optimize import isotonic_regression

from vxpress.pl._colours import Shades

LINE = 1.15  # height of a line of text, in font sizes
FARTHEST = 0.3  # largest distance from a point to its label, as a share of the figure
# with more labels the search for positions without crossing lines takes seconds
MAX_UNCROSSED = 60


def label_points(ax: Axes, xy_n2: np.ndarray, names: Sequence[str], avoid_m2: np.ndarray) -> list[Text]:
    """Write labels next to points, without overlap with each other or other points; lines connect labels that moved.

    Call it when the limits of the axes and the size of the figure are final.
    """
    if not names:
        return []
    root, shades = ax.figure.figure, Shades.of(ax)
    root.draw_without_rendering()
    # positions are searched on temporary axes of the whole figure, because textalloc does not support subfigures
    place = ax.get_window_extent().transformed(root.transFigure.inverted())
    engine = root.get_layout_engine()
    root.set_layout_engine("none")
    over = root.add_axes(
        place.bounds, xlim=ax.get_xlim(), ylim=ax.get_ylim(), xscale=ax.get_xscale(), yscale=ax.get_yscale()
    )
    try:
        result: Any = textalloc.allocate(
            over,
            xy_n2[:, 0],
            xy_n2[:, 1],
            list(names),
            x_scatter=avoid_m2[:, 0],
            y_scatter=avoid_m2[:, 1],
            textsize=float(Text(fontsize="small").get_fontsize()),
            max_distance=FARTHEST,
            # without lines, textalloc fails on the second label
            draw_lines=True,
            avoid_crossing_label_lines=len(names) <= MAX_UNCROSSED,
            avoid_label_lines_overlap=len(names) <= MAX_UNCROSSED,
            parse_math=False,
        )
    finally:
        over.remove()
        root.set_layout_engine(engine)
    found, lines, texts, _ = result
    for line in lines:
        if line is not None:
            ax.plot(*line[:2], color=shades.quiet, linewidth=0.6, zorder=0.9, label="_line", scalex=False, scaley=False)
    style: dict[str, Any] = {"fontsize": "small", "color": shades.ink, "zorder": 4, "parse_math": False}
    halo = [withStroke(linewidth=1.5, foreground=shades.face)]
    return [
        ax.text(x, y, name, ha=text.get_horizontalalignment(), path_effects=halo, **style)
        for (x, y, *_), name, text in zip(found, names, texts, strict=True)
    ]


def label_ends(ax: Axes, lines: Sequence[Line2D]) -> list[Annotation]:
    """Write the labels of lines on their right, as close to their ends as possible without overlap."""
    if not lines:
        return []
    ax.figure.figure.draw_without_rendering()
    curves = [ax.transData.transform(line.get_xydata()) * 72 / ax.figure.figure.dpi for line in lines]
    ends = np.array([curve[-1, 1] for curve in curves])
    # labels of lines that end at the same height follow the order of the mean heights of the lines
    ends += 1e-6 * np.array([curve[:, 1].mean() for curve in curves])
    box, line = ax.get_window_extent(), LINE * float(Text(fontsize="small").get_fontsize())
    low, high = (y * 72 / ax.figure.figure.dpi for y in (box.y0, box.y1))
    shown: list[Annotation] = []
    for curve, end, place in zip(lines, ends, spread(ends, line, low, high), strict=True):
        arrow: dict[str, Any] = {
            "arrowstyle": "-",
            "color": curve.get_color(),
            "linewidth": 1.2,
            "shrinkA": 1,
            "shrinkB": 0,
        }
        shown.append(
            ax.annotate(
                str(curve.get_label()),
                tuple(np.asarray(curve.get_xydata())[-1]),
                xytext=(14, place - end),
                textcoords="offset points",
                va="center",
                fontsize="small",
                color=Shades.of(ax).ink,
                arrowprops=arrow | {"relpos": (0, 0.5)},
                annotation_clip=False,
                parse_math=False,
            )
        )
    return shown


def spread(wanted_n: np.ndarray, least: float, low: float, high: float) -> np.ndarray:
    """Compute positions at least ``least`` apart, in the order of ``wanted_n`` and as close to it as possible.

    They are between ``low`` and ``high`` if all of them fit.
    """
    order = np.argsort(wanted_n, kind="stable")
    steps = least * np.arange(len(order))
    places = np.empty(len(order))
    found = isotonic_regression(np.asarray(wanted_n, dtype=float)[order] - steps).x
    places[order] = np.clip(found, low, max(low, high - steps[-1])) + steps
    return places
