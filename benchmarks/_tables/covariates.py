"""What covariates are worth: null columns, true batches, and confounding with a condition."""

from __future__ import annotations

from typing import Any

from _tables.registry import Row, mean, number, pick, ranged, results, table

NAME = "covariates"
PARTS = {"null": "alone", "adjusted": "next to a true batch"}


def _share(rows: list[dict[str, Any]]) -> str:
    found = [row["p"] for row in rows if row["p"] == row["p"]]
    return f"{100 * mean(p < 0.05 for p in found):.1f} % of {len(found)}" if found else "not judged"


@table(
    "covariates-null",
    (NAME, "null"),
    (NAME, "adjusted"),
    command="python benchmarks/covariates.py --only null adjusted",
    kinds=["likelihood", "latent"],
)
def null_columns() -> list[Row]:
    """Share of null columns with p below .05."""
    rows: list[Row] = [["random column", *PARTS.values()]]
    found = {part: results(NAME)[part] for part in PARTS}
    for n, first in dict.fromkeys((row["kind"], row["first"]) for row in found["null"]["rows"]):
        of_kind = [_share(pick(found[part]["rows"], kind=n, first=first)) for part in PARTS]
        rows.append([f"{n} categories, {'90:10' if first else 'balanced'}", *of_kind])
    totals = [found[part]["summary"] for part in PARTS]
    rows.append(["**all**", *(_share(found[part]["rows"]) for part in PARTS)])
    rows.append(["95 % interval", *(f"{ranged(100 * t['low'], 100 * t['high'], 1)} %" for t in totals)])
    rows.append(["p of a test of uniformity", *(number(t["uniform_p"]) for t in totals)])
    rows.append(["mean worth, nats per cell", *(number(t["mean_worth"], sign=True) for t in totals)])
    rows.append(["intervals that include 0", *(f"{100 * t['covered']:.1f} %" for t in totals)])
    return rows


@table(
    "covariates-true",
    (NAME, "true"),
    command="python benchmarks/covariates.py --only true",
    kinds=["likelihood", "latent"],
)
def true_effects() -> list[Row]:
    """Worth of the batches and conditions of real data."""
    rows: list[Row] = [
        [
            "data set",
            "covariate",
            "categories",
            "worth, nats per cell",
            "95 % interval",
            "p",
            "held-out cells",
            "share of the time",
        ]
    ]
    for row in results(NAME)["true"]["rows"]:
        p = f"{row['p']:.3f}"
        rows.append(
            [
                row["set"],
                f"`{row['covariate']}`",
                str(row["n_categories"]),
                number(row["worth"], sign=True),
                ranged(row["low"], row["high"], sign=True),
                p if row["p"] < 0.05 else f"{p} **missed**",
                str(row["n_compared"]),
                f"{100 * row['seconds_worth'] / row['seconds']:.1f} %",
            ]
        )
    return rows


@table(
    "covariates-confounded",
    (NAME, "confounded"),
    command="python benchmarks/covariates.py --only confounded",
    kinds=["latent"],
)
def confounding() -> list[Row]:
    """Association of batch and condition, and what is left of the condition in the latent space."""
    rows: list[Row] = [["cells of a batch with its condition", "association", "neighbors with the same condition"]]
    for row in results(NAME)["confounded"]["rows"]:
        if row["share"] is None:
            rows.append(["no correction", "", number(row["same"], 3)])
        else:
            rows.append([f"{100 * row['share']:g} %", number(row["association"]), number(row["same"], 3)])
    return rows


def found() -> tuple[int, int]:
    """Return how many of the true effects were found, and how many there are."""
    rows = results(NAME)["true"]["rows"]
    return sum(row["p"] < 0.05 for row in rows), len(rows)
