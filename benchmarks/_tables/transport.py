"""Maps of the latent space from control to treated cells."""

from __future__ import annotations

from _tables.registry import Row, mean, number, results, student, table

METHODS = {
    "control cells": "control cells (identity)",
    "shift": "`shift`",
    "bures": "`bures`",
    "sinkhorn": "`sinkhorn`",
    "icnn": "`icnn`",
    "flow_matching": "`flow_matching`",
    "treated cells, decoded": "treated cells, decoded",
    "floor": "real against real",
}
DISTANCES = ("energy latent", "mmd latent", "energy counts", "mmd counts")
COMMAND = "python benchmarks/transport.py --threads 1"


def by_seed(scope: str, method: str, metric: str) -> list[float]:
    """Return the score of each seed, the mean over groups of cells."""
    found = results("transport")["kang"].values()
    return [mean(scores[metric] for scores in of_seed[scope][method].values()) for of_seed in found]


def times_floor(scope: str, method: str, metric: str) -> str:
    """Format a distance as a multiple of that between two halves of real cells, with its 95 % interval over seeds."""
    pairs = zip(by_seed(scope, method, metric), by_seed(scope, "floor", metric), strict=True)
    ratios = [value / floor for value, floor in pairs]
    return f"{number(mean(ratios))} ± {number(student(ratios))}"


def against_shift(scope: str, method: str, metric: str) -> str:
    """Format the difference from the shift as a multiple of the floor, with its 95 % interval over seeds."""
    parts = (by_seed(scope, name, metric) for name in (method, "shift", "floor"))
    gaps = [(value - shift) / floor for value, shift, floor in zip(*parts, strict=True)]
    return f"{number(mean(gaps), sign=True)} ± {number(student(gaps))}"


def scores(scope: str) -> list[Row]:
    """List the distances of every method as multiples of the floor, and the agreement of variances."""
    rows: list[Row] = [
        [
            "cells",
            "energy distance, latent",
            "MMD, latent",
            "energy distance, counts",
            "MMD, counts",
            "r2 of variances",
            "r2 of variances, paired counts",
        ]
    ]
    for method, label in METHODS.items():
        # the decoded cells are at the positions of those they are compared with
        same = method == "treated cells, decoded"
        cells = ["" if same and "latent" in name else times_floor(scope, method, name) for name in DISTANCES]
        paired = f"{method}, paired"
        known = paired in results("transport")["kang"]["0"][scope]
        variances = [
            number(mean(by_seed(scope, name, "variance r2")), 3) for name in (method, *([paired] if known else []))
        ]
        rows.append([label, *cells, *variances, *([] if known else [""])])
    return rows


@table("transport_types", ("transport", "kang"), command=COMMAND, kinds=["likelihood", "latent"])
def transport_types() -> list[Row]:
    """Maps that are learned for each cell type."""
    return scores("per type")


@table("transport_pooled", ("transport", "kang"), command=COMMAND, kinds=["likelihood", "latent"])
def transport_pooled() -> list[Row]:
    """Maps that are learned for all cells together."""
    return scores("pooled")


@table("transport_differences", ("transport", "kang"), command=COMMAND, kinds=["likelihood", "latent"])
def transport_differences() -> list[Row]:
    """Maps against the shift, paired by seed."""
    rows: list[Row] = [
        ["learned", "map", "energy distance, latent", "MMD, latent", "energy distance, counts", "MMD, counts"]
    ]
    for scope, words in (("per type", "per type"), ("pooled", "for all cells")):
        for method in ("bures", "sinkhorn", "icnn", "flow_matching"):
            rows.append([words, f"`{method}`", *(against_shift(scope, method, metric) for metric in DISTANCES)])
    return rows


@table("transport_cost", ("transport", "cost"), command="python benchmarks/transport.py --cost --threads 1")
def transport_cost() -> list[Row]:
    """Time and memory of maps."""
    found = results("transport")["cost"]["methods"]
    sizes = list(next(iter(found.values())))
    head = [f"{part}, {int(n):,} cells" for n in sizes for part in ("seconds", "processor seconds", "MB")]
    rows: list[Row] = [["map", *head]]
    for method, of_size in found.items():
        cells = [
            number(of_size[n][key], digits)
            for n in sizes
            for key, digits in (("seconds", 1), ("processor", 1), ("megabytes", 0))
        ]
        rows.append([f"`{method}`", *cells])
    return rows
