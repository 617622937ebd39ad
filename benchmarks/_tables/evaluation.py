"""Verdicts of the evaluation of predicted perturbations: on fresh cells, and on shuffled labels."""

from __future__ import annotations

from typing import Any

from _tables.registry import Row, number, results, table

NAME = "evaluation"
COMMAND = "python benchmarks/evaluation.py"
SETS = {
    "glioblastoma": "glioblastoma, 5 patients",
    "kang": "kang, 5 cell types",
    "papalexi": "papalexi, 24 targets",
    "norman": "norman, 60 targets in 4 lines",
}
MEASURES = {
    ("weighted_r2_change", "all"): "weighted R2 of the change",
    ("pearson_change", "all"): "correlation of the change",
    ("r2_change", "all"): "R2 of the change",
    ("r2_change", "top50"): "R2 of the change, 50 genes",
    ("energy_distance", "all"): "energy distance",
}
SHUFFLES = ("shuffled", "shuffled after learning")


def records(part: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Return name of the set, name of the measure, and counts, of one part of every measured set."""
    found = results(NAME)
    return [
        (SETS[name], MEASURES[row["measure"], row["genes"]], row)
        for name in SETS
        if name in found
        for row in found[name][part]
    ]


def share(some: int, all_: int) -> str:
    """Format a share with its counts."""
    return f"{number(100 * some / all_, 1)} % of {all_:,}" if all_ else "none"


@table("evaluation-fresh", *((NAME, name) for name in SETS), command=COMMAND)
def fresh() -> list[Row]:
    """How often a prediction found better than the best floor is better on fresh cells."""
    rows: list[Row] = [
        ["data set", "compared by", "groups found better: better on fresh cells", "the same, means over groups"]
    ]
    for name, measure, row in records("fresh"):
        cells = [
            share(row[f"{level} better, better on fresh cells"], row[f"{level} better"]) for level in ("units", "mean")
        ]
        rows.append([name, measure, *cells])
    return rows


@table("evaluation-verdicts", *((NAME, name) for name in SETS), command=COMMAND)
def verdicts() -> list[Row]:
    """What happens on fresh cells to each verdict on groups, by the default measure."""
    rows: list[Row] = [["data set", *(f"{word}: better on fresh cells" for word in ("better", "undecided", "worse"))]]
    for name, measure, row in records("fresh"):
        if measure == MEASURES["weighted_r2_change", "all"]:
            cells = [
                share(row[f"units {word}, better on fresh cells"], row[f"units {word}"])
                for word in ("better", "undecided", "worse")
            ]
            rows.append([name, *cells])
    return rows


@table("evaluation-shuffled", *((NAME, name) for name in SETS), command=COMMAND)
def shuffled() -> list[Row]:
    """How often a prediction is found better than the best floor on shuffled labels."""
    head = ["data set", "compared by", "groups", "means over groups", "groups, predictions of true labels"]
    rows: list[Row] = [head]
    for (name, measure, row), (_, _, other) in zip(*(records(part) for part in SHUFFLES), strict=True):
        rows.append(
            [
                name,
                measure,
                share(row["units better"], row["units judged"]),
                share(row["mean better"], row["mean judged"]),
                share(other["units better"], other["units judged"]),
            ]
        )
    return rows


@table("evaluation-cost", (NAME, "cost"), command=f"{COMMAND} --sets --cost", kinds=["time"])
def cost() -> list[Row]:
    """Time and memory of one call."""
    row = results(NAME)["cost"]
    head = ["treated cells", "control cells", "genes", "time on one core", "memory in addition to the cells"]
    cells = [number(row["cells"], 0), number(row["cells"], 0), number(row["genes"], 0)]
    return [head, [*cells, f"{number(row['cpu seconds'], 1)} s", f"{number(row['added MiB'], 0)} MiB"]]


def _sum(part: str, name: str) -> int:
    main = MEASURES["weighted_r2_change", "all"]
    return sum(row[name] for _, measure, row in records(part) if measure == main)


def summary() -> str:
    """Return the lowest share of a set that is better on fresh cells, and the share found better on shuffled labels."""
    main = MEASURES["weighted_r2_change", "all"]
    kept = {
        name.split(",")[0]: 100 * row["units better, better on fresh cells"] / row["units better"]
        for name, measure, row in records("fresh")
        if measure == main
    }
    lowest = min(kept, key=lambda name: kept[name])
    wrong = 100 * _sum("shuffled", "units better") / _sum("shuffled", "units judged")
    return (
        f"groups found better that are so on fresh cells: {number(kept[lowest], 1)} % on {lowest}, "
        f"{number(min(value for name, value in kept.items() if name != lowest), 1)} % or more on {len(kept) - 1} others; "
        f"found better on shuffled labels: {number(wrong, 1)} %"
    )


def met() -> list[bool]:
    """Whether at least 95 % are better on fresh cells, and at most 5 % are found better on shuffled labels, in every set."""
    main = MEASURES["weighted_r2_change", "all"]
    kept = [
        row[f"{level} better, better on fresh cells"] >= 0.95 * row[f"{level} better"]
        for _, measure, row in records("fresh")
        for level in ("units", "mean")
        if measure == main
    ]
    wrong = [
        row[f"{level} better"] <= 0.05 * row[f"{level} judged"]
        for part in SHUFFLES
        for _, measure, row in records(part)
        for level in ("units", "mean")
        if measure == main
    ]
    return [*kept, *wrong]
