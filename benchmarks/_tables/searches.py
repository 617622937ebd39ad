"""Searches for the defaults: around the present ones, and the first one scored again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from _paired import Difference, of_values
from _versions import RESULTS

from _tables.registry import Row, mean, number, results, table

# what release 0.1.0 did in each respect, and how the page justified it
OLD = {
    "20 dimensions": "10 dimensions",
    "dropout 0.3": "dropout 0.1",
    "layer norm": "batch norm",
    "covariates at the output": "covariates at the first layer only",
    "layer norm, covariates at the output": "batch norm, covariates at the first layer only",
    "64 hidden units": "128 hidden units",
    "32 hidden units": "128 hidden units",
    "weight decay 0.3": "weight decay 1e-4",
    "weight decay 1": "weight decay 1e-4",
    "warm-up 0.1": "warm-up as in 0.1",
    "256 cells a step": "512 cells a step",
    "rate 0.01": "rate 0.02",
    "dispersions as trained": "dispersions refitted",
    "zinb": "negative binomial",
}
SCORES = ("purity", "ARI best", "ARI matched", "CiLISI")


def change_of(
    rows: list[dict[str, Any]], change: str, score: Callable[[dict[str, Any]], float | None]
) -> Difference | None:
    """Return the difference from no change, over pairs of data set and seed."""
    base = {(row["set"], row["seed"]): score(row) for row in rows if row["change"] == "none"}
    found = []
    for row in rows:
        before = base.get((row["set"], row["seed"]))
        value = score(row)
        if row["change"] == change and before is not None and value is not None:
            found.append(value - before)
    return of_values(found) if found else None


def structure(row: dict[str, Any]) -> float:
    """Return the mean of purity and best ARI, by which the table judges."""
    return mean([row["purity"], row["ARI best"]])


def verdict(found: Difference) -> str:
    """Judge a choice by the difference that the other value makes."""
    if found.value + found.half < 0:
        return "yes"
    return "**no**" if found.low > 0 else "undecided"


def text(found: Difference | None, digits: int = 3) -> str:
    """Format a difference."""
    if found is None:
        return ""
    return number(found.value, digits, sign=True) + (f" ± {found.half:.{digits}f}" if found.n > 1 else "")


def rescored() -> list[Row]:
    """Choices of release 0.1.0 and what the scores of ``integration.py`` say."""
    rows = results("rescore")["rows"]
    out: list[Row] = [
        ["choice of 0.1", "other value", *(f"Δ {score}" for score in SCORES), "Δ IWAE, nats", "does the choice stand?"]
    ]
    for change, old in OLD.items():
        judged = change_of(rows, change, structure)
        if judged is not None:
            cells = [text(change_of(rows, change, lambda row, s=score: row.get(s))) for score in SCORES]
            iwae = text(change_of(rows, change, lambda row: row["IWAE"]), 2)
            out.append([old, change, *cells, iwae, verdict(judged)])
    return out


# a handed-on embedding has the likelihood of its fit, and an ensemble is judged by its first model
OF_THE_SAME_FIT = ("three fits", "means of unit variance", "means weighted by divergence")
TOTALS = ("scib Total", "scib Bio conservation", "scib Batch correction", "purity")


def by_change(name: str, scores: Sequence[str]) -> list[Row]:
    """Make a table of the changes of the present defaults, one at a time; ``scores[0]`` is one that every row has."""
    rows = results(name)["rows"]
    heads = (score.removeprefix("scib ") for score in scores)
    out: list[Row] = [["change of the defaults", *(f"Δ {head}" for head in heads), "Δ IWAE, nats", "fits"]]
    for change in dict.fromkeys(row["change"] for row in rows if row["change"] != "none"):
        found = [change_of(rows, change, lambda row, s=score: row.get(s)) for score in (*scores, "IWAE")]
        if found[0] is not None:
            iwae = "" if change in OF_THE_SAME_FIT else text(found[-1], 2)
            out.append([change, *map(text, found[:-1]), iwae, str(found[0].n)])
    return out


def searched() -> list[Row]:
    """Changes of the present defaults, by neighbours, clusters and mixing."""
    return by_change("search", SCORES)


def totals() -> list[Row]:
    """Changes of the present defaults, by the totals of scib-metrics."""
    return by_change("search_scib", TOTALS)


if (RESULTS / "search_scib.json").exists():
    table(
        "search-totals",
        ("search_scib", "rows"),
        command="python benchmarks/search.py --scib --out search_scib",
        kinds=["likelihood", "latent"],
    )(totals)
if (RESULTS / "search.json").exists():
    table(
        "search",
        ("search", "rows"),
        command="python benchmarks/search.py --out search",
        kinds=["likelihood", "latent"],
    )(searched)
if (RESULTS / "rescore.json").exists():
    table(
        "rescore",
        ("rescore", "rows"),
        command="python benchmarks/search.py --around 0.1 --out rescore",
        kinds=["likelihood", "latent"],
    )(rescored)
