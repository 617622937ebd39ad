"""Held-out combinations of perturbations: additive predictions and sums of mean changes."""

from __future__ import annotations

from typing import Any

from _tables.registry import Row, mean, number, results, student, table

NAME = "combinations"
COMMAND = "python benchmarks/combinations.py"
METHODS = {
    "additive": '`method="additive"`',
    "decoded": "the same, `anchor=0`",
    "least squares": "the same, `anchor=1`",
    "additive_mean": "floor `additive_mean`",
}
FLOOR, MEASURE = "additive_mean", "weighted_r2_change"


def found(part: str, which: str, measure: str = MEASURE) -> list[dict[str, Any]]:
    """Return the scores of a data set, each double left out alone (``one``) or all together (``all``)."""
    return [row for row in results(NAME)[part][which] if row["measure"] == measure]


def differences(part: str, which: str, method: str, by: str) -> list[float]:
    """Return mean differences from the floor by ``seed`` or by ``target``."""
    rows = found(part, which)
    floor = {(row["seed"], row["target"]): row["score"] for row in rows if row["method"] == FLOOR}
    values: dict[Any, list[float]] = {}
    for row in rows:
        if row["method"] == method:
            values.setdefault(row[by], []).append(row["score"] - floor[row["seed"], row["target"]])
    return [mean(part) for part in values.values()]


def by_double(which: str) -> list[Row]:
    """Return the scores of each double, means over seeds."""
    rows = found("norman", which)
    out: list[Row] = [["held-out double", *METHODS.values(), "a repetition of the experiment"]]
    for target in dict.fromkeys(row["target"] for row in rows):
        here = [row for row in rows if row["target"] == target]
        scores = [mean(row["score"] for row in here if row["method"] == method) for method in METHODS]
        out.append([target, *(number(score, 3) for score in scores), number(mean(row["ceiling"] for row in here), 3)])
    means = [mean(row["score"] for row in rows if row["method"] == method) for method in METHODS]
    out.append(["mean", *(number(score, 3) for score in means), number(mean(row["ceiling"] for row in rows), 3)])
    return out


@table("combinations", (NAME, "norman"), command=COMMAND, kinds=["likelihood"])
def one() -> list[Row]:
    """Weighted R2 of the change, each double left out alone."""
    return by_double("one")


@table("combinations-all", (NAME, "norman"), command=COMMAND, kinds=["likelihood"])
def together() -> list[Row]:
    """Weighted R2 of the change, all doubles left out at once."""
    return by_double("all")


@table("combinations-difference", (NAME, "norman"), command=COMMAND, kinds=["likelihood"])
def difference() -> list[Row]:
    """Differences from the floor, with intervals over seeds and over doubles."""
    out: list[Row] = [
        ["method", "left out", "weighted R2 less that of the floor", "over seeds", "over doubles", "better on"]
    ]
    for which, shown in (("one", "each double alone"), ("all", "all at once")):
        for method, name in METHODS.items():
            if method == FLOOR:
                continue
            seeds, doubles = (differences("norman", which, method, by) for by in ("seed", "target"))
            out.append(
                [
                    name,
                    shown,
                    number(mean(doubles), 3, sign=True),
                    f"± {student(seeds):.3f}",
                    f"± {student(doubles):.3f}",
                    f"{sum(value > 0 for value in doubles)} of {len(doubles)}",
                ]
            )
    return out


@table("combinations-measures", (NAME, "norman"), command=COMMAND, kinds=["likelihood"])
def measures() -> list[Row]:
    """Other scores of the change, means over doubles and seeds, each double left out alone."""
    shown = {
        MEASURE: "weighted R2",
        "r2_change": "R2",
        "pearson_change": "correlation",
        "slope_change": "slope",
    }
    out: list[Row] = [["score of the change", *METHODS.values()]]
    for measure, name in shown.items():
        rows = found("norman", "one", measure)
        scores = [mean(row["score"] for row in rows if row["method"] == method) for method in METHODS]
        out.append([name, *(number(score, 3) for score in scores)])
    return out


@table("combinations-time", (NAME, "seconds"), command=COMMAND, kinds=["time"])
def seconds() -> list[Row]:
    """Seconds of a fit with and without perturbations."""
    taken = results(NAME)["seconds"]
    shown = {"plain": "without perturbations", "perturbations": "with `perturbation_key=`"}
    out: list[Row] = [["fit", "seconds, least of three"]]
    return out + [[name, number(min(taken[which]), 1)] for which, name in shown.items()]


def met() -> bool:
    """Whether the additive method is above the floor beyond the interval over seeds, each double left out alone."""
    seeds = differences("norman", "one", "additive", "seed")
    return mean(seeds) - student(seeds) > 0


def summary() -> str:
    """Return the difference from the floor, with both intervals."""
    seeds, doubles = (differences("norman", "one", "additive", by) for by in ("seed", "target"))
    return (
        f"weighted R2 of the change {number(mean(seeds), 3, sign=True)} ± {student(seeds):.3f} over seeds (± {student(doubles):.3f} over "
        f"doubles), better on {sum(value > 0 for value in doubles)} of {len(doubles)}"
    )
