"""Collapse and its cure, learned priors, new cells."""

from __future__ import annotations

from collections import Counter

from _versions import RESULTS

from _tables.registry import REPORTED, Row, mean, number, pick, ranged, results, table

COLLAPSE = "collapse_pbmc3k_kang_pbmc_3studies"
REGIMES = {
    "default": "defaults",
    "latent64": "`n_latent=64`",
    "nowarmup": "no warm-up",
    "beta20": "`beta=20`",
    "beta50": "`beta=50`",
    "beta100": "`beta=100`",
    "n500": "500 cells",
    "wide": "1,024 units, labels as covariate",
}


@table("collapse", (COLLAPSE, "fits"), command="python benchmarks/collapse.py", kinds=["likelihood", "latent"])
def collapse() -> list[Row]:
    """Verdicts by regime."""
    fits = pick(results(COLLAPSE)["fits"], cured=False)
    rows: list[Row] = [
        ["regime", "data set", "fits", "IWAE, %", "$I_q$, share", "unsound", "missed", "false alarms", "verdicts"]
    ]
    for regime, shown in REGIMES.items():
        for name in REPORTED:
            found = pick(fits, regime=regime, set=name)
            ill, flagged = pick(found, ill=True), pick(found, flagged=True)
            counts = [len(ill), sum(not row["flagged"] for row in ill), sum(not row["ill"] for row in flagged)]
            verdicts = Counter(row["verdict"] for row in found).most_common()
            means = [number(mean(row[key] for row in found)) for key in ("iwae", "information")]
            listed = ", ".join(f"{verdict} {n}" for verdict, n in verdicts)
            rows.append([shown, name, str(len(found)), *means, *(str(n) for n in counts), listed])
    return rows


@table("cures", (COLLAPSE, "cures"), command="python benchmarks/collapse.py", kinds=["likelihood", "latent"])
def cures() -> list[Row]:
    """Results of ``cure=True``."""
    rows: list[Row] = [
        ["regime", "data set", "IWAE, %, before to after", "$I_q$", "active units", "fits that reach the aim"]
    ]
    for regime, shown in REGIMES.items():
        for name in REPORTED:
            found = pick(results(COLLAPSE)["cures"], regime=regime, set=name)
            if found:
                changes = [
                    "&nbsp;to&nbsp;".join(number(mean(row[key] for row in found)) for key in (f"{score}_before", score))
                    for score in ("iwae", "information", "active")
                ]
                rows.append([shown, name, *changes, f"{100 * mean(row['reached'] for row in found):.0f} %"])
    return rows


PRIORS = {
    "mixture": "mixture",
    "vamp": "VampPrior",
    "flow": "flow",
    "diffusion": "diffusion",
    "flow_matching": "flow matching",
}


@table(
    "priors",
    ("priors", "quality pbmc3k kang pbmc_3studies"),
    command="python benchmarks/priors.py --only quality --threads 1 --cells 200",
    kinds=["likelihood"],
)
def priors() -> list[Row]:
    """Learned priors compared with the standard normal."""
    gains = results("priors")["quality pbmc3k kang pbmc_3studies"]["gain"]
    rows: list[Row] = [["prior", *REPORTED, "mean %"]]
    for when, words in (("after", "afterwards"), ("joint", "together")):
        for key, shown in PRIORS.items():
            found = gains[f"{when}-{key}"]
            cells = [found["sets"][name] for name in REPORTED]
            text = [
                f"{number(c['gain'], sign=True)} ± {c['half']:.2f} ({number(c['percent'], sign=True)})" for c in cells
            ]
            rows.append([f"{shown}, {words}", *text, number(found["mean_percent"], sign=True)])
    return rows


@table("prior-times", ("priors", "timing"), command="python benchmarks/priors.py --only timing --threads 1")
def prior_times() -> list[Row]:
    """Seconds for 10,000 latent vectors of ten dimensions."""
    rows: list[Row] = [["prior", "fit, s", "10,000 draws, s", "1,000 densities, s"]]
    for key, found in results("priors")["timing"].items():
        draws = [number(found[what]) for what in ("draw_10000", "density_1000")]
        rows.append([PRIORS[key], number(found["fit"], 1), *draws])
    return rows


GENERATION = tuple((f"generation/{path.stem}", "rows") for path in sorted((RESULTS / "generation").glob("*.json")))
CELLS = {
    "real against real": "real against real",
    "independent genes": "independent genes",
    "posterior resampling": "posterior resampling",
    "default, N(0,I)": "default, N(0, I)",
    "default, mixture": "default, mixture",
    "narrow, N(0,I)": "narrow, N(0, I)",
    "narrow, mixture": "narrow, mixture",
    "narrow, mixture | type": "narrow, mixture by type",
    "type as covariate, N(0,I)": "type as covariate, N(0, I)",
}


@table(
    "generation",
    *GENERATION,
    command="python benchmarks/generation.py --sets pbmc3k kang pbmc_3studies --seeds 0 1 2 3 4",
    kinds=["likelihood", "latent", "genes"],
)
def generation() -> list[Row]:
    """New cells compared with held-out ones."""
    columns = {
        "auroc_counts": "AUROC, counts",
        "auroc_normalized": "normalised",
        "type_auroc_counts": "within types, counts",
        "type_auroc_normalized": "normalised",
        "lisi": "LISI",
        "slope": "slope",
        "energy": "energy",
    }
    rows: list[Row] = [["data set", "cells from", *columns.values(), "memorised, upper 95 %"]]
    for name in REPORTED:
        for key, shown in CELLS.items():
            found = results("generation")["summary"][name][key]
            cells = [
                f"{number(found[c]['mean'])} ± {found[c]['half_width']:.2f}" if c in found else "" for c in columns
            ]
            rows.append([name, shown, *cells, number(found["memorized_upper"]["mean"], 3)])
    return rows


@table(
    "generation-times",
    ("generation_timing", "seconds"),
    command="python benchmarks/generation.py --timing --threads 2",
)
def generation_times() -> list[Row]:
    """Seconds for 10,000 new cells."""
    seconds = results("generation_timing")["seconds"]
    low, high = min(seconds.values()), max(seconds.values())
    names = {"normal": "N(0, I)"} | PRIORS
    head = ["10,000 cells x 2,000 genes", *(names[key] for key in seconds), "aim"]
    aim = f"10 s: {'met' if high <= 10 else '**missed**'} ({ranged(low, high, 1)})"
    return [head, ["s", *(number(value, 1) for value in seconds.values()), aim]]
