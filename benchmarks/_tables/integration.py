"""Latent spaces of vxpress, scvi-tools, Harmony and PCA: totals, labels, stability and targets."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from _paired import MARGIN, Difference, averaged, paired
from _versions import RESULTS, VERSIONS

from _tables.registry import Row, mean, number, ranged, results, table

COMMAND = "python benchmarks/integration.py"
OURS = "vx-defaults"
METHODS = {
    "vx-defaults": "defaults",
    "vx-integration": '`preset="integration"`',
    "vx-likelihood": '`preset="likelihood"`',
    "vx-three fits": "defaults, `n_fits=3`",
    "vx-0.1": "defaults of 0.1",
    "scvi": "scvi-tools, SCVI",
    "drvi": "scvi-tools, DRVI",
    "sysvi": "scvi-tools, SysVI",
    "harmony": "Harmony",
    "pca": "PCA",
}
METRICS = {
    "scib Total": "scib-metrics, total",
    "scib Bio conservation": "scib-metrics, biology",
    "scib Batch correction": "scib-metrics, batches",
    "purity": "purity",
    "ARI best": "ARI, best",
    "ARI matched": "ARI, matched",
    "NMI best": "NMI, best",
    "NMI matched": "NMI, matched",
    "ARI KMeans": "ARI, k-means",
    "scib Isolated labels": "isolated labels",
    "CiLISI": "CiLISI",
    "purity, label x condition": "purity, label x condition",
    "ARI best, label x condition": "ARI, best, label x condition",
    "shared neighbours": "neighbors shared by seeds",
    "ARI of seeds": "ARI of seeds",
    "iwae": "IWAE, test cells",
}
STABLE = ("pbmc3k", "kang", "pbmc_3studies")
FEW = ("pbmc68k_reduced", "pbmc3k_600", "kang_600")


def _parts() -> tuple[tuple[str, str], ...]:
    """Return the sets with results, in the order of the file."""
    known = json.loads(VERSIONS.read_text()).get("integration", {})
    stored = json.loads((RESULTS / "integration.json").read_text())
    return tuple(("integration", part) for part in stored if part in known and "about" in stored[part])


PARTS = _parts()
SETS = tuple(part for _, part in PARTS)
MADE = {"command": COMMAND, "kinds": ("latent", "likelihood")}


def data(name: str) -> dict[str, Any]:
    """Return the results of a set."""
    return results("integration")[name]


def method(name: str, which: str) -> dict[str, Any] | None:
    """Return the results of a method on a set, if any."""
    return data(name)["methods"].get(which) if name in SETS else None


def values(name: str, which: str, metric: str) -> list[float]:
    """Return the values of a metric over seeds, or over pairs of seeds; without batches biology is the total."""
    found = method(name, which)
    if found is None:
        return []
    if metric == "scib Total" and "scib Total" not in found["scores"]:
        metric = "scib Bio conservation"
    of = found["stability"] if metric in found["stability"] else found["scores"]
    return [value for value in of.get(metric, []) if value is not None]


def center(name: str, which: str, metric: str) -> float | None:
    """Return the mean over seeds."""
    found = values(name, which, metric)
    if metric in ("shared neighbours", "ARI of seeds") and which == "pca":
        return 1.0
    if metric == "processor seconds" and found:
        # the first fit of a process compiles
        return statistics.median(found)
    return mean(found) if found else None


def less(name: str, ours: str, other: str, metric: str) -> Difference | None:
    """Return the difference of two methods on a set, paired by seed."""
    a, b = method(name, ours), method(name, other)
    if a is None or b is None:
        return None
    if metric == "scib Total" and "scib Total" not in a["scores"]:
        metric = "scib Bio conservation"
    return paired(a, b, metric)


def average(names: Sequence[str], ours: str, other: str, metric: str) -> Difference | None:
    """Return the mean over sets of the differences, with an interval over the seeds that all sets have."""
    pairs, metrics = [], []
    for name in names:
        a, b = method(name, ours), method(name, other)
        if a is not None and b is not None:
            pairs.append((a, b))
            no_total = metric == "scib Total" and "scib Total" not in a["scores"]
            metrics.append("scib Bio conservation" if no_total else metric)
    return averaged(pairs, metrics)


def cell(found: float | None, digits: int = 3) -> str:
    """Format a number that may be missing."""
    return "" if found is None else number(found, digits)


def signed(found: Difference | None, margin: float | None = None) -> str:
    """Format a difference, in bold if its interval reaches below the margin."""
    if found is None:
        return ""
    text = number(found.value, 3, sign=True)
    if found.n > 1:
        text += f" ± {found.half:.3f}"
    below = margin is not None and (found.low if found.n > 1 else found.value) <= margin
    return f"**{text}**" if below else text


def batched() -> list[str]:
    """Return the reported sets with batches."""
    return [name for name in SETS if data(name)["about"]["batches"]]


def strong() -> list[str]:
    """Return the sets whose labels do not come from clusters of the counts."""
    return [name for name in SETS if data(name)["about"]["strong"]]


def marked(name: str) -> str:
    """Return the name of a set, with a star if its labels are strong."""
    return f"{name} ★" if data(name)["about"]["strong"] else name


@table("integration-sets", *PARTS, **MADE)
def sets() -> list[Row]:
    """Size of the data sets, and where labels come from."""
    rows: list[Row] = [["data set", "cells", "genes", "batches", "types", "labels from", "seeds of SCVI"]]
    for name in SETS:
        of = data(name)["about"]
        share = "" if of["labelled"] > 0.999 else f" ({100 * of['labelled']:.0f} % of the cells)"
        counts = [number(of[key], 0) for key in ("cells", "genes", "batches", "labels")]
        scvi = method(name, "scvi")
        rows.append([marked(name), *counts, of["source"] + share, str(len(scvi["seeds"])) if scvi else "none"])
    return rows


def compared(metrics: Sequence[str], others: Sequence[str]) -> list[Row]:
    """Make a table of the defaults, and their differences from other methods, per set and on average."""
    head = ["data set", "metric", "defaults", *(f"less {METHODS[other]}" for other in others)]
    rows: list[Row] = [head]
    for name in SETS:
        for metric in metrics:
            cells = [signed(less(name, OURS, other, metric), MARGIN) for other in others]
            if any(cells):
                rows.append([marked(name), METRICS[metric], cell(center(name, OURS, metric)), *cells])
    for title, names in (("mean", SETS), ("mean, strong labels ★", strong())):
        for metric in metrics:
            known = [value for name in names if (value := center(name, OURS, metric)) is not None]
            cells = [signed(average(names, OURS, other, metric), 0.0) for other in others]
            if known:
                rows.append([title, METRICS[metric], number(mean(known), 3), *cells])
    return rows


@table("integration-totals", *PARTS, **MADE)
def totals() -> list[Row]:
    """Totals of scib-metrics."""
    return compared(["scib Total"], ["scvi", "harmony", "pca"])


@table("integration-labels", *PARTS, **MADE)
def labels() -> list[Row]:
    """Purity and best ARI."""
    return compared(["purity", "ARI best"], ["scvi", "harmony", "pca"])


@table("integration-methods", *PARTS, **MADE)
def methods() -> list[Row]:
    """Means over the sets that all methods share."""
    needed = (OURS, "scvi", "harmony", "pca")
    shared = [name for name in batched() if name not in FEW and all(method(name, which) for which in needed)]
    complete = [which for which in METHODS if all(method(name, which) for name in shared)]
    rows: list[Row] = [["score", *(METHODS[which] for which in complete)]]
    for metric, title in METRICS.items():
        if metric in ("iwae", "purity, label x condition", "ARI best, label x condition"):
            continue
        names = [name for name in shared if all(center(name, which, metric) is not None for which in complete)]
        if names:
            means = {which: mean(center(name, which, metric) or 0.0 for name in names) for which in complete}
            best = max(means.values())
            cells = [f"**{number(v, 3)}**" if v == best else number(v, 3) for v in means.values()]
            rows.append([f"{title} ({len(names)} sets)", *cells])
    return rows


@table("integration-stability", *(part for part in PARTS if part[1] in STABLE), **MADE)
def stable() -> list[Row]:
    """Neighbours and clusters of two seeds."""
    rows: list[Row] = [
        [
            "method",
            *(f"{name}: {what}" for name in STABLE if name in SETS for what in ("shared / ARI / purity", "time")),
        ]
    ]
    for which, title in METHODS.items():
        cells = []
        for name in (name for name in STABLE if name in SETS):
            found = [center(name, which, metric) for metric in ("shared neighbours", "ARI of seeds", "purity")]
            cells.append("" if None in found else " / ".join(cell(value) for value in found))
            seconds, unit = (center(name, each, "processor seconds") for each in (which, OURS))
            cells.append("" if seconds is None or unit is None else f"{seconds / unit:.1f} x")
        if any(cells[::2]):
            rows.append([title, *cells])
    return rows


def of_set(name: str) -> Callable[[], list[Row]]:
    """Make the table of one set: every score of every method."""

    def make() -> list[Row]:
        known = [which for which in METHODS if method(name, which)]
        rows: list[Row] = [["score", *(METHODS[which] for which in known)]]
        for metric, title in METRICS.items():
            cells = [cell(center(name, which, metric), 1 if metric == "iwae" else 3) for which in known]
            if any(cells):
                rows.append([title, *cells])
        return rows

    return make


for _name in SETS:
    table(f"integration-{_name}", ("integration", _name), **MADE)(of_set(_name))


def met(*, reached: bool, known: bool = True) -> str:
    """Format whether a target was met."""
    return ("met" if reached else "**missed**") if known else "not measured"


def against(metric: str, other: str, names: Sequence[str], *, higher: bool = True) -> tuple[str, bool, bool]:
    """Compare the defaults with a method on sets: text, whether the target is met, whether it was measured."""
    found = {name: less(name, OURS, other, metric) for name in names}
    known = {name: d for name, d in found.items() if d is not None}
    overall = average(names, OURS, other, metric)
    if not known or overall is None:
        return "", False, False
    below = [name for name, d in known.items() if (d.low if d.n > 1 else d.value) <= MARGIN]
    where = f"on average of {len(known)} sets" if len(known) > 1 else f"on {next(iter(known))}"
    text = f"{METHODS[other]}: {signed(overall)} {where}"
    if len(known) > 1:
        text += f"; at or below {MARGIN} on {', '.join(below)}" if below else f"; above {MARGIN} on all"
    return text, not below and (overall.value > 0 or not higher), True


def groups() -> tuple[list[str], list[str], list[str], list[str]]:
    """Return sets of many cells, those of them with and without batches, and sets of few cells."""
    many, few = ([name for name in SETS if (name in FEW) == of_few] for of_few in (False, True))
    with_batches = batched()
    return many, [n for n in many if n in with_batches], [n for n in many if n not in with_batches], few


@table("integration-targets", *PARTS, **MADE)
def targets() -> list[Row]:
    """Targets, what was measured, and whether they were met."""
    rows: list[Row] = [["target", "measured", ""]]

    def add(target: str, parts: Sequence[tuple[str, bool, bool]]) -> None:
        known = [part for part in parts if part[2]]
        text = ". ".join(part[0] for part in known)
        rows.append([target, text, met(reached=all(part[1] for part in known), known=bool(known))])

    many, with_batches, without, few = groups()
    add(
        "total of scib-metrics: higher on average, on no set lower beyond -.01",
        [against("scib Total", "scvi", many), against("scib Total", "harmony", with_batches)],
    )
    for metric in ("purity", "ARI best"):
        add(
            f"{METRICS[metric]}: lower end above -.01 on every set, higher on average",
            [
                against(metric, "scvi", many),
                against(metric, "harmony", with_batches),
                against(metric, "pca", without),
            ],
        )
    add(
        "few cells: purity and best ARI no worse than PCA and Harmony, IWAE no worse than in 0.1",
        [
            *((f"{METRICS[metric]}, {text}", *rest) for metric, (text, *rest) in few_cells(few)),
            likelihood(few, "vx-0.1"),
        ],
    )
    add("IWAE of test cells above that of scvi-tools on every set", [likelihood(many, "scvi")])
    add(
        "`n_fits=3`: neighbors shared by seeds +.15, ARI of seeds at least .85, purity no lower, at most 3 times the time",
        [steadier(name) for name in STABLE if name in SETS],
    )
    add("processor time of a default fit at most 1.1 times that of 0.1", [slower(STABLE)])
    return rows


def few_cells(names: Sequence[str]) -> list[tuple[str, tuple[str, bool, bool]]]:
    """Compare purity and best ARI with those of linear methods."""
    return [
        (metric, against(metric, other, names, higher=False))
        for metric in ("purity", "ARI best")
        for other in ("pca", "harmony")
    ]


def likelihood(names: Sequence[str], other: str) -> tuple[str, bool, bool]:
    """Compare the bound of test cells with that of another method."""
    gains = []
    for name in names:
        found, peer = less(name, OURS, other, "iwae"), center(name, other, "iwae")
        if found is not None and peer is not None:
            gains.append(100 * found.value / abs(peer))
    if not gains:
        return "", False, False
    return f"IWAE {ranged(min(gains), max(gains), 1, sign=True)} % on {len(gains)} sets", min(gains) > 0, True


def slower(names: Sequence[str]) -> tuple[str, bool, bool]:
    """Compare the processor time of a default fit with that of release 0.1.0."""
    pairs = [tuple(center(name, which, "processor seconds") for which in (OURS, "vx-0.1")) for name in names]
    ratios = [new / old for new, old in pairs if new is not None and old is not None]
    if not ratios:
        return "", False, False
    return f"{ranged(min(ratios), max(ratios), 2)} times", max(ratios) <= 1.1, True


def steadier(name: str) -> tuple[str, bool, bool]:
    """Compare three fits with one fit of release 0.1.0."""
    three, one = "vx-three fits", "vx-0.1"
    needed = [
        center(name, which, metric)
        for which in (three, one)
        for metric in ("shared neighbours", "ARI of seeds", "purity")
    ]
    if None in needed:
        return "", False, False
    shared, ari, purity, shared_one, _, purity_one = (value or 0.0 for value in needed)
    seconds = "processor seconds"
    ratio = (center(name, three, seconds) or 0.0) / (center(name, OURS, seconds) or float("nan"))
    text = (
        f"{name}: {number(shared - shared_one, 3, sign=True)}, {ari:.3f}, {number(purity - purity_one, 3, sign=True)},"
        f" {ratio:.1f} times"
    )
    return text, shared - shared_one >= 0.15 and ari >= 0.85 and purity >= purity_one - 5e-4 and ratio <= 3.0, True


def summary() -> list[tuple[tuple[str, str, str], str]]:
    """Return question, result and verdict of the rows on the first page, each with the name of its table."""
    many, with_batches, without, _ = groups()
    rows = []
    for metric, what, page in (
        ("scib Total", "Types and batches in the latent space: total of scib-metrics", "integration-totals"),
        ("purity", "Neighbors of the same cell type", "integration-labels"),
        ("ARI best", "Clusters at the best resolution", "integration-labels"),
    ):
        for other, names in (("scvi", many), ("harmony", with_batches), ("pca", without)):
            text, reached, known = against(metric, other, names)
            if known and not (other == "pca" and metric == "scib Total"):
                question = f"{what}, compared with {METHODS[other].removesuffix(', SCVI')}"
                result = text.split(": ", 1)[1].replace("**", "")
                rows.append(((question, result, met(reached=reached)), page))
    known = [found for name in STABLE if name in SETS and (found := steadier(name))[2]]
    if known:
        result = "; ".join(found[0] for found in known)
        reached = met(reached=all(found[1] for found in known))
        rows.append(
            (
                ("Two seeds with `n_fits=3`: neighbors shared, ARI, purity, time", result, reached),
                "integration-stability",
            )
        )
    return rows
