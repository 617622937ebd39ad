"""Predicted responses of held-out groups, compared with floors, scGen and a repetition of the experiment."""

from __future__ import annotations

from typing import Any

from _tables.registry import Row, mean, number, results, student, table

NAME = "perturbation"
OURS = "shift"
METHODS = {
    "shift": "`shift` (default)",
    "shift [as decoded]": "`shift`, as decoded (`anchor=0, check=False`)",
    "shift [anchor alone]": "log fold changes of other groups (`anchor=1`)",
    "counterfactual": "`counterfactual`",
    "scGen": "scGen (pertpy 1.4.0)",
    "ridge": "`ridge`",
    "mean_shift": "`mean_shift`",
}
# measure, set of genes, header
MEANS = (
    ("pearson_change", "all", "r, all"),
    ("r2_change", "all", "R2, all"),
    ("weighted_r2_change", "all", "weighted R2"),
    ("slope_change", "all", "slope, all"),
    ("pearson_change", "top100", "r, top 100"),
    ("r2_change", "top100", "R2, top 100"),
    ("slope_change", "top100", "slope, top 100"),
)
AIMS = (("pearson_change", "all"), ("r2_change", "all"), ("pearson_change", "top100"), ("r2_change", "top100"))
# of the notebook of scvi-tools (full Kang data, CD4 T cells held out)
NOTEBOOK = {"mean_shift": 0.960, "ridge": 0.973, "scVI": 0.979, "scGen": 0.982}


def runs(name: str, group: str) -> list[dict[str, Any]]:
    """Return the results of a held-out group, one per seed."""
    return list(results(NAME)[name][group].values())


def groups(name: str) -> list[str]:
    """Return the held-out groups of a set."""
    return list(results(NAME)[name])


def values(name: str, group: str, method: str, measure: str, genes: str) -> list[float]:
    """Return the scores of a method in a held-out group, one per seed."""
    key = f"{measure} {genes}"
    return [run["scores"][method][key]["score"] for run in runs(name, group) if method in run["scores"]]


def average(name: str, method: str, measure: str, genes: str) -> float:
    """Return the mean over groups of the mean over seeds."""
    return mean(mean(values(name, group, method, measure, genes)) for group in groups(name))


def complete(name: str, method: str) -> bool:
    """Return whether a method was scored in every group."""
    return all(values(name, group, method, "pearson_change", "all") for group in groups(name))


def _means(name: str) -> list[Row]:
    rows: list[Row] = [["method", *(header for _, _, header in MEANS)]]
    for method, shown in METHODS.items():
        if complete(name, method):
            found = [number(average(name, method, measure, genes), 3) for measure, genes, _ in MEANS]
            rows.append([f"**{shown}**" if method == OURS else shown, *found])
    ceilings = []
    for measure, genes, _ in MEANS:
        key = f"{measure} {genes}"
        of_groups = [mean(run["scores"][OURS][key]["ceiling"] for run in runs(name, group)) for group in groups(name)]
        ceilings.append(mean(of_groups))
    rows.append(["a repetition of the experiment", *(number(ceiling, 3) for ceiling in ceilings)])
    ours = [average(name, OURS, measure, genes) for measure, genes, _ in MEANS]
    shares = [f"{100 * value / ceiling:.0f} %" for value, ceiling in zip(ours, ceilings, strict=True)]
    rows.append(
        [
            "share of it that `shift` reaches",
            *(share if value > 0 else "" for share, value in zip(shares, ours, strict=True)),
        ]
    )
    return rows


@table("perturbation-kang", (NAME, "kang"), command="python benchmarks/perturbation.py", kinds=["latent"])
def kang() -> list[Row]:
    """Mean scores over held-out cell types."""
    return _means("kang")


@table(
    "perturbation-glioblastoma", (NAME, "glioblastoma"), command="python benchmarks/perturbation.py", kinds=["latent"]
)
def glioblastoma() -> list[Row]:
    """Mean scores over held-out patients."""
    return _means("glioblastoma")


def against(name: str, group: str, other: str, measure: str, genes: str) -> tuple[float, float]:
    """Return the mean over seeds of the difference from another method, and half of its 95 % interval over seeds."""
    key = f"{measure} {genes}"
    pairs = [run["scores"] for run in runs(name, group) if other in run["scores"]]
    found = [scores[OURS][key]["score"] - scores[other][key]["score"] for scores in pairs]
    return mean(found), student(found) if len(found) > 1 else float("nan")


def floor_difference(name: str, group: str, measure: str, genes: str) -> tuple[float, float, float]:
    """Return the difference from the best floor with its interval over cells, means over seeds."""
    key = f"{measure} {genes}"
    rows = [run["scores"][OURS][key] for run in runs(name, group)]
    low, value, high = (mean(row[part] for row in rows) for part in ("difference_low", "difference", "difference_high"))
    return low, value, high


def _differences(name: str) -> list[Row]:
    headers = [f"{'r' if 'pearson' in measure else 'R2'}, {genes.replace('top', 'top ')}" for measure, genes in AIMS]
    rows: list[Row] = [["held out", "compared with", *headers]]
    for group in groups(name):
        cells = []
        for measure, genes in AIMS:
            low, value, high = floor_difference(name, group, measure, genes)
            text = (
                f"{number(value, 3, sign=True)} ({number(low, 3, sign=True)}&nbsp;to&nbsp;{number(high, 3, sign=True)})"
            )
            cells.append(f"{text} **worse**" if high < 0 else text)
        rows.append([group, "best floor", *cells])
        n_seeds = sum("scGen" in run["scores"] for run in runs(name, group))
        if complete(name, "scGen"):
            cells = []
            for measure, genes in AIMS:
                value, half = against(name, group, "scGen", measure, genes)
                cells.append(f"{number(value, 3, sign=True)} ± {number(half, 3)}")
            rows.append([group, f"scGen, {n_seeds} seeds", *cells])
    return rows


@table("perturbation-types", (NAME, "kang"), command="python benchmarks/perturbation.py", kinds=["latent"])
def types() -> list[Row]:
    """Differences of the default from the best floor and from scGen, for each held-out type."""
    return _differences("kang")


@table("perturbation-patients", (NAME, "glioblastoma"), command="python benchmarks/perturbation.py", kinds=["latent"])
def patients() -> list[Row]:
    """Differences of the default from the best floor, for each held-out patient."""
    return _differences("glioblastoma")


@table(
    "perturbation-cd4",
    (NAME, "kang_cd4"),
    command="python benchmarks/perturbation.py --sets kang_cd4",
    kinds=["latent"],
)
def cd4() -> list[Row]:
    """Correlation of the change of CD4 T cells, next to that of the notebook of scvi-tools."""
    rows: list[Row] = [["method", "correlation of the change, this set", "notebook, full data"]]
    (group,) = groups("kang_cd4")
    found = [run["plain correlation"] for run in runs("kang_cd4", group)]
    for method, shown in METHODS.items() | {"scVI": "scVI, `transform_batch`"}.items():
        of_seeds = [each[method] for each in found if method in each]
        if of_seeds:
            theirs = f"{NOTEBOOK[method]:.3f}" if method in NOTEBOOK else ""
            rows.append([shown, number(mean(of_seeds), 3), theirs])
    return [rows[0], *sorted(rows[1:], key=lambda row: -float(row[1]))]


@table("perturbation-cells", (NAME, "kang"), command="python benchmarks/perturbation.py", kinds=["latent"])
def cells() -> list[Row]:
    """Agreement of the distributions of drawn cells."""
    headers = {"r2_sd": "R2 of standard deviations", "energy_distance": "energy distance", "mmd": "MMD"}
    rows: list[Row] = [["cells", *headers.values()]]
    shown = {
        "shift, drawn": "`shift`, counts in `X`",
        "shift": "control cells plus the predicted change",
        "scGen": "scGen",
        "mean_shift": "control cells plus `mean_shift`",
        "ridge": "control cells plus `ridge`",
        "control": "control cells",
    }
    for method, text in shown.items():
        if complete_in("kang", method):
            rows.append([text, *(number(average("kang", method, measure, "all"), 3) for measure in headers)])
    return rows


def complete_in(name: str, method: str) -> bool:
    """Return whether a method has distributions of cells in every group."""
    return all(values(name, group, method, "energy_distance", "all") for group in groups(name))


@table("perturbation-time", (NAME, "kang"), command="python benchmarks/perturbation.py", kinds=["time"])
def seconds() -> list[Row]:
    """Seconds of a fit and of a prediction with its check."""
    rows: list[Row] = [["step", "seconds, median"]]
    every = [run for group in groups("kang") for run in runs("kang", group)]
    for fit in ("plain", "condition"):
        rows.append(
            [
                f"`fit_vae`{', condition as covariate' if fit == 'condition' else ''}",
                _median(run["fit seconds"][fit] for run in every),
            ]
        )
    for method in ("shift", "counterfactual"):
        rows.append([f"`predict_perturbation`, `{method}`", _median(run["seconds"][method] for run in every)])
    return rows


def _median(found: Any) -> str:
    from statistics import median

    return number(median(found), 1)


# for the summary


def summary() -> list[tuple[str, str, list[bool]]]:
    """Return question, result, and whether each part of the aim was met."""
    others = [other for other in ("scGen", "mean_shift", "ridge") if complete("kang", other)]
    above = [
        average("kang", OURS, measure, genes) > average("kang", other, measure, genes)
        for other in others
        for measure, genes in AIMS
    ]
    below = [
        group
        for group in groups("kang")
        if any(floor_difference("kang", group, measure, genes)[2] < 0 for measure, genes in AIMS)
    ]
    r2 = {method: average("kang", method, "r2_change", "all") for method in (OURS, *others)}
    text = ", ".join(f"{method} {number(value)}" for method, value in r2.items())
    text = f"R2 of the change: {text}" + (
        f"; below a floor by one of four measures on {', '.join(below)}" if below else ""
    )
    return [
        ("Response to interferon of held-out cell types, compared with scGen and floors", text, [*above, not below])
    ]


COST = "perturbation_cost"


@table("perturbation-cost", (COST, "methods"), command="python benchmarks/perturbation_cost.py", kinds=["time"])
def cost_of_methods() -> list[Row]:
    """Seconds of a prediction of 10,000 cells with each method."""
    rows: list[Row] = [["method", "seconds"]]
    for method, found in results(COST)["methods"]["methods"].items():
        rows.append([f"`{method}`", number(found["seconds"], 1)])
    return rows


@table("perturbation-scgen", (COST, "scgen"), command="python benchmarks/perturbation_cost.py --peer", kinds=["time"])
def next_to_scgen() -> list[Row]:
    """Seconds of fit and prediction of one held-out cell type."""
    found = results(COST)["scgen"]["seconds"]
    rows: list[Row] = [["package", "seconds", "times vxpress"]]
    for package, seconds in found.items():
        rows.append([package, number(seconds, 0), number(seconds / found["vxpress"], 1)])
    return rows
