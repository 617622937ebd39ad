"""Random batches: what they change, how often they are left out, and which true batches are."""

from __future__ import annotations

from typing import Any

from _tables.registry import Row, mean, number, results, student, table

NAME = "null_batches"
COMMAND = "python benchmarks/null_batches.py"
METHODS = {
    "default": "defaults",
    "kept": "`screen_covariates=False`",
    "harmony": "Harmony on PCA",
    "scvi": "scvi-tools",
}
SCORES = {"shared": "shared neighbours", "clusters": "ARI of clusters"}


def found(part: str) -> dict[str, Any]:
    """Return the results of a method, or those of the screen; empty without them."""
    return dict(results(NAME).get(part, {}))


def measured() -> list[str]:
    """Return the methods with results."""
    return [method for method in METHODS if found(method)]


def plain(method: str) -> list[dict[str, float]]:
    """Return the scores of pairs of seeds without batches, one per seed."""
    return list(found(method)["between seeds"])


def kind(groups: int, balanced: bool) -> str:
    """Name the kind of random batches."""
    return f"{groups} batches" + ("" if balanced else ", one with 90 %")


def against_seeds(method: str, row: dict[str, Any], score: str) -> list[float]:
    """Return differences from two seeds without batches, one per seed."""
    pairs = zip(row["fits"], plain(method), strict=True)
    return [fit[score] - between[score] for fit, between in pairs]


@table(
    "null-batches",
    (NAME, "default"),
    (NAME, "kept"),
    (NAME, "harmony"),
    (NAME, "split"),
    command=COMMAND,
    kinds=["latent"],
)
def null_batches() -> list[Row]:
    """Shared neighbours and agreement of clusters with and without random batches."""
    rows: list[Row] = [["method", "compared with the fit of the same seed without batches", "seeds", *SCORES.values()]]
    for method in measured():
        between = plain(method)
        if method != "kept":
            cells = [number(mean(pair[score] for pair in between), 3) for score in SCORES]
            seeds = str(len(between)) if method != "harmony" else "none"
            rows.append([METHODS[method], "two seeds without batches", seeds, *cells])
        if method == "default" and found("split"):
            others = found("split")["other split"]
            cells = [number(mean(pair[score] for pair in others), 3) for score in SCORES]
            rows.append([METHODS[method], "other held-out cells", str(len(others)), *cells])
        for row in found(method)["random"]:
            cells = [
                f"{number(mean(fit[score] for fit in row['fits']), 3)} "
                f"({number(mean(change := against_seeds(method, row, score)), 3, sign=True)} ± {student(change):.3f})"
                for score in SCORES
            ]
            shown = kind(row["groups"], row["balanced"])
            rows.append([METHODS[method], shown, str(len(row["fits"])), *cells])
    return rows


@table("null-screened", (NAME, "screened"), command=COMMAND)
def screened() -> list[Row]:
    """How often random labels are left out."""
    rows: list[Row] = [["random labels", "draws", "left out"]]
    for row in found("screened")["random"]:
        share = f"{100 * row['left out'] / row['draws']:.0f} %"
        rows.append([kind(row["groups"], row["balanced"]), str(row["draws"]), share])
    return rows


@table("null-true", (NAME, "screened"), command=COMMAND)
def true() -> list[Row]:
    """Which true batches are kept."""
    rows: list[Row] = [["data set", "cells", "batches", "fit with and without the screen"]]
    for name, row in found("screened")["true"].items():
        kept = "left out" if row["left out"] else "kept"
        rows.append([name, number(row["cells"], 0), kept, "same bits" if row["same fit"] else "differ"])
    return rows


def within() -> list[bool]:
    """Whether no score with random batches is below that of two seeds, for each kind, with the defaults."""
    return [
        mean(change := against_seeds("default", row, score)) + student(change) >= 0
        for row in found("default")["random"]
        for score in SCORES
    ]


def worst() -> tuple[float, float]:
    """Return the lowest shares of neighbours with random batches, and between seeds, on average over seeds."""
    random = min(mean(fit["shared"] for fit in row["fits"]) for row in found("default")["random"])
    return random, mean(pair["shared"] for pair in plain("default"))


def mixing_kept() -> bool:
    """Whether no true batch loses mixing: its fit has the same bits."""
    return all(row["same fit"] for row in found("screened")["true"].values())
