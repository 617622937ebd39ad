"""Cells of a sorted file that are read by blocks: bounds compared with a full shuffle."""

from __future__ import annotations

import math
from typing import Any

from _tables.registry import Row, mean, number, results, student, table

NAME = "shuffle_buffer"
LABELS = {
    "memory": "in memory, all cells shuffled",
    "one window": "blocks of 128, one window",
    "1/4": "blocks of 128, windows of 1/4 of the cells",
    "1/16": "blocks of 128, windows of 1/16",
    "1/64": "blocks of 128, windows of 1/64",
    "1/16, blocks of 16": "blocks of 16, windows of 1/16",
    "1/16, blocks of 1024": "blocks of 1,024, windows of 1/16",
    "one block": "blocks of 128, each shuffled by itself",
    "file order": "in the order of the file",
}


def found() -> dict[str, dict[str, Any]]:
    """Return the bounds of each order, by seed."""
    return dict(results(NAME))


def gains(order: str, bound: str) -> list[float]:
    """Return the differences from a full shuffle with the same seed, one per seed."""
    runs = found()
    return [run[bound] - runs["memory"][seed][bound] for seed, run in runs[order].items()]


def between_seeds(bound: str) -> float:
    """Return the standard deviation between seeds of a full shuffle."""
    values = [run[bound] for run in found()["memory"].values()]
    return math.sqrt(sum((value - mean(values)) ** 2 for value in values) / (len(values) - 1))


@table(
    "shuffle-buffer",
    *((NAME, order) for order in LABELS),
    command="OMP_NUM_THREADS=1 python benchmarks/shuffle_buffer.py",
    kinds=["likelihood"],
)
def shuffle_buffer() -> list[Row]:
    """Bounds of training and held-out cells."""
    rows: list[Row] = [["order of the cells", "ELBO of training cells", "ELBO of held-out cells"]]
    for order, label in LABELS.items():
        cells = []
        for bound in ("train", "held_out"):
            if order == "memory":
                value = mean(run[bound] for run in found()[order].values())
                cells.append(f"{number(value, 3)} (between seeds ± {number(between_seeds(bound), 3)})")
            else:
                difference = gains(order, bound)
                cells.append(f"{number(mean(difference), 3, sign=True)} ± {number(student(difference), 3)}")
        rows.append([label, *cells])
    return rows
