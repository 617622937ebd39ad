"""Fits of several modalities: proteins that are hidden for a batch, next to totalVI; simulated RNA with ATAC."""

from __future__ import annotations

from typing import Any

from _tables.registry import Row, mean, mean_range, number, results, table

CITE, ATAC = "cite", "multiome"
COMMANDS = {
    CITE: "python benchmarks/cite_totalvi.py; python benchmarks/cite.py",
    ATAC: "python benchmarks/multiome.py",
}
METHODS = ("vxpress", "totalVI")
# names in the results, and on the page
CORRELATIONS = {
    "log of the mean": "log1p counts with the log1p of expected counts",
    "mean of the log": "log1p counts with expected log1p counts",
    "counts": "counts with expected counts",
    "ranks": "ranks (Spearman)",
}
CELLS = {"cells with proteins": "cells with proteins", "all cells": "all cells"}
AGREEMENT = {"nmi": "NMI", "ari": "ARI", "neighbors": "neighbors of the same type", "silhouette": "silhouette"}


def seeds(name: str) -> list[dict[str, Any]]:
    """Return the results of each seed."""
    return [found for key, found in results(name).items() if key.isdigit()]


def of(method: str, *path: str) -> list[float]:
    """Return a number of each seed of the CITE-seq benchmark."""
    out = []
    for found in seeds(CITE):
        value: Any = found.get(method)
        for key in path if value is not None else ():
            value = value[key]
        if value is not None:
            out.append(value)
    return out


def shown(values: list[float], digits: int = 3) -> str:
    """Format the mean over seeds, with the range if there are several."""
    return mean_range(values, digits) if len(values) > 1 else number(values[0], digits)


def of_antibodies(method: str, name: str) -> list[float]:
    """Return the mean correlation of each seed over the proteins, without isotype controls."""
    real = [j for j, protein in enumerate(results(CITE)["proteins"]) if not protein.startswith("Ig")]
    rows: Any = of(method, "correlation per protein", name)
    return [mean(row[j] for j in real) for row in rows]


def no_lower(name: str) -> tuple[int, int]:
    """Return for how many of the proteins the correlation is no lower than that of totalVI, and their number."""
    ours, theirs = (
        [mean(values) for values in zip(*of(method, "correlation per protein", name), strict=True)]  # type: ignore[arg-type]
        for method in METHODS
    )
    return sum(a >= b for a, b in zip(ours, theirs, strict=True)), len(ours)


def ratio() -> float:
    """Return how many times the processor time of vxpress totalVI takes."""
    key = "seconds of the processor"
    return mean(of("totalVI", key)) / mean(of("vxpress", key))


@table("modalities-cite", (CITE, ""), command=COMMANDS[CITE], kinds=["likelihood", "latent", "time"])
def cite() -> list[Row]:
    """Correlations, intervals, latent space and time."""
    out: list[Row] = [["", *METHODS]]
    for name, text in CORRELATIONS.items():
        out.append(
            [f"correlation per protein, {text}", *(shown(of(method, "correlation", name)) for method in METHODS)]
        )
        out.append(["the same, without isotype controls", *(shown(of_antibodies(method, name)) for method in METHODS)])
    n_higher, n = no_lower("mean of the log")
    out.append(
        [f"of {n} proteins, correlated no less than the other, expected log1p counts", str(n_higher), str(n - n_higher)]
    )
    out.append(["counts in the 90 % intervals", *(shown(of(method, "coverage")) for method in METHODS)])
    out.append(["width of the intervals, log1p", *(shown(of(method, "width"), 2) for method in METHODS)])
    for cells, who in CELLS.items():
        for name, text in AGREEMENT.items():
            out.append([f"{text}, {who}", *(shown(of(method, "agreement", cells, name)) for method in METHODS)])
    out.append(["seconds", *(shown(of(method, "seconds"), 0) for method in METHODS)])
    out.append(["seconds of the processor", *(shown(of(method, "seconds of the processor"), 0) for method in METHODS)])
    return out


@table("modalities-proteins", (CITE, ""), command=COMMANDS[CITE], kinds=["likelihood"])
def proteins() -> list[Row]:
    """Correlations and coverage of each protein."""
    out: list[Row] = [
        [
            "protein",
            *(f"correlation, {method}" for method in METHODS),
            *(f"in the interval, {method}" for method in METHODS),
        ]
    ]
    for j, name in enumerate(results(CITE)["proteins"]):
        correlation = [
            mean(row[j] for row in of(method, "correlation per protein", "mean of the log"))  # type: ignore[index]
            for method in METHODS
        ]
        coverage = [mean(row[j] for row in of(method, "coverage per protein")) for method in METHODS]  # type: ignore[index]
        out.append([name, *(number(value, 3) for value in (*correlation, *coverage))])
    return out


@table("modalities-atac", (ATAC, ""), command=COMMANDS[ATAC], kinds=["likelihood", "latent"])
def atac() -> list[Row]:
    """Agreement of the joint latent space and of either alone, for cells with both modalities."""
    fits = {"joint": "RNA and ATAC", "rna": "RNA alone", "atac": "ATAC alone"}
    out: list[Row] = [["fit", *AGREEMENT.values()]]
    for fit, text in fits.items():
        values = [[found["agreement"][fit][name] for found in seeds(ATAC)] for name in AGREEMENT]
        out.append([text, *(shown(value) for value in values)])
    return out


@table("modalities-imputed", (ATAC, ""), command=COMMANDS[ATAC], kinds=["likelihood"])
def imputed() -> list[Row]:
    """Squared errors of imputed log shares and of the batch mean."""
    keys = ("squared error", "squared error of the batch mean", "explained", "correlation within batches")
    out: list[Row] = [
        ["imputed", "squared error", "of the batch mean", "share explained", "correlation within batches"]
    ]
    for name, text in (("imputed rna", "RNA"), ("imputed atac", "ATAC")):
        out.append([text, *(shown([found[name][key] for found in seeds(ATAC)]) for key in keys)])
    return out


def met() -> dict[str, bool]:
    """Return whether each aim is met: no lower than totalVI, a tenth of its time, and intervals that hold what they should."""
    aims = {name: ("correlation", name) for name in CORRELATIONS}
    antibodies = {
        f"{name}, without controls": mean(of_antibodies("vxpress", name)) >= mean(of_antibodies("totalVI", name))
        for name in CORRELATIONS
    }
    aims |= {f"NMI, {cells}": ("agreement", cells, "nmi") for cells in CELLS}
    better = {name: mean(of("vxpress", *path)) >= mean(of("totalVI", *path)) for name, path in aims.items()}
    return {
        **better,
        **antibodies,
        "time": ratio() >= 10,
        "coverage": all(0.87 <= value <= 0.93 for value in of("vxpress", "coverage")),
    }


def summary() -> str:
    """Return the result for the first page."""
    antibodies = " and ".join(number(mean(of_antibodies(method, "mean of the log")), 3) for method in METHODS)
    correlation, types, all_types = (
        " and ".join(number(mean(of(method, *path)), 3) for method in METHODS)
        for path in (
            ("correlation", "mean of the log"),
            ("agreement", "cells with proteins", "nmi"),
            ("agreement", "all cells", "nmi"),
        )
    )
    return (
        f"correlation per protein {correlation}, without isotype controls {antibodies}; NMI with proteins {types}, of all cells {all_types}; {ratio():.0f} times faster; "
        f"90&nbsp;% intervals hold {100 * mean(of('vxpress', 'coverage')):.1f}&nbsp;%"
    )


def met_atac() -> list[bool]:
    """Return for each seed whether the joint space is better than either alone, and both modalities are imputed above the floor."""
    out = []
    for found in seeds(ATAC):
        joint, *alone = (found["agreement"][fit] for fit in ("joint", "rna", "atac"))
        better = all(joint[name] > one[name] for one in alone for name in ("nmi", "neighbors"))
        out.append(better and all(found[f"imputed {name}"]["explained"] > 0 for name in ("rna", "atac")))
    return out


def summary_atac() -> str:
    """Return the result for the first page."""
    nmi = [mean(found["agreement"][fit]["nmi"] for found in seeds(ATAC)) for fit in ("joint", "rna", "atac")]
    explained = [mean(found[f"imputed {name}"]["explained"] for found in seeds(ATAC)) for name in ("rna", "atac")]
    return "NMI {:.2f}, RNA alone {:.2f}, ATAC alone {:.2f}; imputed RNA explains {:.0%} and ATAC {:.0%} of the variance beyond the batch mean".format(
        *nmi, *explained
    ).replace("%", "&nbsp;%")
