"""Annotation: accuracy against other methods, confidence, sets of labels, and types that are absent from the reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from _tables.registry import Row, mean, number, pick, ranged, results, student, table

NAME = "annotation"
COMMAND = "python benchmarks/annotation.py"
SETS = ("pbmc3k", "kang", "pbmc_3studies", "pancreas", "onek1k")
SCENARIOS = ("10 %", "30 %", "batches")
OTHERS = {"regression": "logistic regression", "neighbors": "neighbors on PCA", "scanvi": "SCANVI"}
METRICS = {"accuracy": "accuracy", "macro_f1": "macro F1"}
NOMINAL, MARGIN, MOST_ERROR, LEAST_AUROC = 0.95, 0.02, 0.05, 0.85


def found(method: str, name: str, scenario: str) -> dict[int, dict[str, Any]]:
    """Return the results of a method by seed."""
    return {row["seed"]: row for row in pick(results(NAME).get(method, []), set=name, scenario=scenario)}


def cases() -> list[tuple[str, str]]:
    """Return data sets and scenarios with results."""
    return [(name, scenario) for name in SETS for scenario in SCENARIOS if found("vxpress", name, scenario)]


def differences(method: str, name: str, scenario: str, metric: str) -> list[float]:
    """Return the differences from another method, one per common seed."""
    ours, other = found("vxpress", name, scenario), found(method, name, scenario)
    return [ours[seed][metric] - other[seed][metric] for seed in sorted(set(ours) & set(other))]


def signed(values: list[float]) -> str:
    """Format the mean with its interval."""
    if not values:
        return "–"
    return (
        f"{number(mean(values), 3, sign=True)} ± {student(values):.3f}"
        if len(values) > 1
        else number(values[0], 3, sign=True)
    )


def over_seeds(method: str, name: str, scenario: str, metric: str) -> float:
    """Return the mean of a metric over seeds."""
    return mean(row[metric] for row in found(method, name, scenario).values())


def covered(name: str, scenario: str) -> dict[str, float]:
    """Return the share of cells of each label whose set holds it, over all seeds."""
    rows = found("vxpress", name, scenario).values()
    labels = sorted({label for row in rows for label in row["coverage_of_labels"]})
    out = {}
    for label in labels:
        parts = [
            (row["n_of_labels"][label], row["coverage_of_labels"][label]) for row in rows if label in row["n_of_labels"]
        ]
        out[label] = sum(n * share for n, share in parts) / sum(n for n, _ in parts)
    return out


@table("annotation-accuracy", *((NAME, part) for part in ("vxpress", *OTHERS)), command=COMMAND, kinds=["latent"])
def accuracy() -> list[Row]:
    """Accuracy and macro F1, and the differences from other methods."""
    head = ["data set", "labels", "accuracy", *(f"less {shown}" for shown in OTHERS.values())]
    rows: list[Row] = [[*head, "macro F1", *(f"less {shown}" for shown in OTHERS.values())]]
    for name, scenario in cases():
        cells = []
        for metric in METRICS:
            cells.append(number(over_seeds("vxpress", name, scenario, metric), 3))
            cells += [signed(differences(method, name, scenario, metric)) for method in OTHERS]
        rows.append([name, scenario, *cells])
    return rows


@table("annotation-confidence", *((NAME, part) for part in ("vxpress", *OTHERS)), command=COMMAND, kinds=["latent"])
def confidence() -> list[Row]:
    """Calibration errors, and coverage of sets."""
    rows: list[Row] = [
        [
            "data set",
            "labels",
            "calibration error",
            *OTHERS.values(),
            "coverage",
            "of labels",
            "labels in a set",
            "called unknown",
        ]
    ]
    for name, scenario in cases():
        shares = list(covered(name, scenario).values())
        others = [
            number(over_seeds(method, name, scenario, "calibration_error"), 3) if found(method, name, scenario) else "–"
            for method in OTHERS
        ]
        rows.append(
            [
                name,
                scenario,
                number(over_seeds("vxpress", name, scenario, "calibration_error"), 3),
                *others,
                number(over_seeds("vxpress", name, scenario, "coverage"), 3),
                ranged(min(shares), max(shares), 2),
                number(over_seeds("vxpress", name, scenario, "set_size"), 2),
                number(over_seeds("vxpress", name, scenario, "unknown"), 3),
            ]
        )
    return rows


@table("annotation-absent", (NAME, "absent"), command=COMMAND, kinds=["latent"])
def absent() -> list[Row]:
    """Types without any labelled cell."""
    rows: list[Row] = [
        [
            "data set",
            "type left out",
            "AUROC in the fit",
            "found",
            "false",
            "AUROC in a query",
            "found",
            "false",
            "1 - confidence of regression",
        ]
    ]
    for name in SETS:
        for label in dict.fromkeys(row["type"] for row in pick(results(NAME)["absent"], set=name)):
            seeds = pick(results(NAME)["absent"], set=name, type=label)
            cells = [
                number(mean(row[where][part] for row in seeds), 2)
                for where in ("in the fit", "query")
                for part in ("auroc", "found", "false")
            ]
            rows.append([name, label, *cells, number(mean(row["regression"] for row in seeds), 2)])
    return rows


@table("annotation-time", (NAME, "vxpress"), (NAME, "scanvi"), command=COMMAND, kinds=["time"])
def time() -> list[Row]:
    """Time of a fit with labels, of one without, and of SCANVI."""
    rows: list[Row] = [["data set", "fit with labels / without", "annotate", "SCANVI / vxpress"]]
    for name in SETS:
        timed = [row["seconds"] for row in pick(results(NAME)["vxpress"], set=name) if "plain" in row["seconds"]]
        peers = [row["seconds"] for row in pick(results(NAME)["scanvi"], set=name) if row["seconds"]["vxpress"]]
        ratios = [each["labels"] / each["plain"] for each in timed]
        rows.append(
            [
                name,
                ranged(min(ratios), max(ratios), 2),
                f"{max(each['annotate'] for each in timed):.1f} s",
                number(float(np.median([each["scanvi"] / each["vxpress"] for each in peers])), 1) if peers else "–",
            ]
        )
    return rows


def compared(method: str, metric: str) -> list[float]:
    """Return the mean difference from a method for each data set and scenario."""
    return [mean(values) for case in cases() if (values := differences(method, *case, metric))]


def summary_rows() -> list[tuple[str, str, str, str, str]]:
    """Return the rows of the first page: question, result, verdict, page and table."""
    rows = []
    for method, shown in OTHERS.items():
        parts = {metric: compared(method, metric) for metric in METRICS}
        n_worse = sum(min(pair) < -0.0005 for pair in zip(*parts.values(), strict=True))
        text = "; ".join(
            f"{METRICS[metric]} {ranged(min(each), max(each), 3, sign=True)}" for metric, each in parts.items()
        )
        verdict = "met" if not n_worse else f"**missed** on {n_worse} of {len(cases())}"
        rows.append((f"Cells annotated, compared with {shown}", text, verdict, NAME, "annotation-accuracy"))
    errors = [over_seeds("vxpress", *case, "calibration_error") for case in cases()]
    shares = [over_seeds("vxpress", *case, "coverage") for case in cases()]
    n_wrong = sum(value > MOST_ERROR for value in errors)
    n_off = sum(abs(value - NOMINAL) > MARGIN for value in shares)
    rows.append(
        (
            "Confidence of labels: expected calibration error",
            ranged(min(errors), max(errors), 3),
            "met" if not n_wrong else f"**missed** on {n_wrong} of {len(errors)}",
            NAME,
            "annotation-confidence",
        )
    )
    rows.append(
        (
            "Sets of labels with a nominal coverage of 0.95",
            f"coverage {ranged(min(shares), max(shares), 3)}",
            "met" if not n_off else f"**missed** on {n_off} of {len(shares)}",
            NAME,
            "annotation-confidence",
        )
    )
    left_out = absent()[1:]
    found_in = [float(row[2]) for row in left_out]
    in_query = [float(row[5]) for row in left_out]
    n_missed = sum(min(pair) < LEAST_AUROC for pair in zip(found_in, in_query, strict=True))
    rows.append(
        (
            "Types without labels, found as unknown",
            f"AUROC {ranged(min(found_in), max(found_in))} in a fit, {ranged(min(in_query), max(in_query))} in a query",
            "met" if not n_missed else f"**missed** on {n_missed} of {len(left_out)}",
            NAME,
            "annotation-absent",
        )
    )
    return rows
