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
    (NAME, "scvi"),
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
    rows: list[Row] = [["data set", "cells", "batches", "fits with and without the screen"]]
    for name, row in found("screened")["true"].items():
        kept = "left out" if row["left out"] else "kept"
        same = "same bits"
        if row["left out"]:
            lost = lost_mixing(row)
            same = f"iLISI {number(mean(lost), 3, sign=True)} ± {student(lost):.3f} from leaving them out"
        rows.append([name, number(row["cells"], 0), kept, same])
    return rows


def within() -> list[bool]:
    """Whether no score with random batches is below that of two seeds, for each kind, with the defaults."""
    return [
        mean(change := against_seeds("default", row, score)) + student(change) >= 0
        for row in found("default")["random"]
        for score in SCORES
    ]


def summary() -> str:
    """Return the lowest share of neighbours with random batches, that between seeds, and what true batches lose."""
    random = min(mean(fit["shared"] for fit in row["fits"]) for row in found("default")["random"])
    between = mean(pair["shared"] for pair in plain("default"))
    mixing = "kept" if mixing_kept() else "lost by more than 0.01"
    return f"neighbours shared {number(random, 3)} or more (two seeds {number(between, 3)}); mixing of true batches {mixing}"


def lost_mixing(row: dict[str, Any]) -> list[float]:
    """Return differences in mixing of fits without batches that were left out from fits with them, one per seed."""
    return [a - b for a, b in zip(row["iLISI"]["left out"], row["iLISI"]["kept"], strict=True)]


def mixing_kept() -> bool:
    """Whether no true batch loses more than .01 of its mixing, or its fit has the same bits."""
    rows = found("screened")["true"].values()
    return all(mean(lost_mixing(row)) >= -0.01 if row["left out"] else row["same fit"] for row in rows)
