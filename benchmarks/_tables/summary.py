"""The first page of the benchmarks: one table, one figure, and what has changed since."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from _versions import CHANGES, oldest, since

from _tables import (
    annotation,
    combinations,
    dial,
    evaluation,
    integration,
    kills,
    modalities,
    null_batches,
    on_disk,
    perturbation,
    ranks,
    stability,
)
from _tables.covariates import found as found_covariates
from _tables.latent import COLLAPSE
from _tables.questions import outlier_rows
from _tables.registry import REPORTED, TABLES, Row, line, mean, one, pick, ranged, results
from _tables.speed import most_seconds

FIGURE = "benchmarks.png"


def gains() -> list[dict[str, float]]:
    """Return the gain of the IWAE bound over scvi-tools by data set."""
    return pick(results("compare")["likelihood: vx-default"], score="iwae")


def clusters() -> dict[str, list[float]]:
    """Return the difference of the best ARI from scvi-tools, and its interval, by data set."""
    found = {name: integration.less(name, integration.OURS, "scvi", "ARI best") for name in REPORTED}
    return {name: [d.value, d.low, d.value + d.half] for name, d in found.items() if d is not None}


def times() -> dict[str, list[float]]:
    """Return how many times faster the final ELBO of scvi-tools is reached, by data set."""
    return {name: [row["a"] for row in pick(results("time_to_elbo")["rows"], set=name)] for name in REPORTED}


def losses() -> dict[str, list[float]]:
    """Return the Poisson loss relative to vxpress with own counts in percent, by method and data set."""
    methods = {"scvi-tools": "scvi-tools", "diffusion": "diffusion", "vxpress": "vxpress"}
    found = pick(results("denoising")["scores"], score="poisson")
    return {
        shown: [one(found, set=name, method=method)["above_%"] for name in REPORTED]
        for method, shown in methods.items()
    }


def many(values: list[bool]) -> str:
    """Format ``met``, or on how many of the data sets the aim was missed."""
    missed = sum(not value for value in values)
    if not missed:
        return "met"
    return "**missed**" if missed == len(values) else f"**missed** on {missed} of {len(values)}"


def lines() -> list[tuple[str, str, str, str, str]]:
    """Return question, result, verdict, page, and source table of each row."""
    compare, speed = results("compare"), results("training_speed")["rows"]
    gain = [row["gain_%"] for row in gains()]
    parity = [row["gain_%"] for row in compare["parity: preset='scvi'"]]
    ratios = [ratio for found in times().values() for ratio in found]
    rates = {row["likelihood"]: row["times scvi-tools"]["median"] for row in speed if row["run"] == "ours, 512"}
    first = results("latency")["fits"]["first"]["processor"]["median"]
    compiling = max(found["median"] for found in results("latency")["compilation"].values())
    null = [row["any call"] for row in results("differential_expression")["null"]]
    de = results("differential_expression")["speed"]["seconds"]
    de_ratio = sorted(de["scvi-tools, vanilla"])[1] / sorted(de["vxpress"])[1]
    genes = results("masked_genes")["summary"]
    nothing, effects = results("covariates")["null"]["summary"], found_covariates()
    transfer, tuned = (
        [row["accuracy difference"] for row in pick(results("mapping")["summary"], way=way)]
        for way in ("default, average", "covariates encoded, fine_tune")
    )
    fits = pick(results(COLLAPSE)["fits"], cured=False)
    ill = pick(fits, ill=True)
    prior = [row["mean_percent"] for row in results("priors")["quality pbmc3k kang pbmc_3studies"]["gain"].values()]
    cells = results("generation")["summary"]
    new = [cells[name]["narrow, mixture"]["auroc_counts"]["mean"] for name in REPORTED]
    real = [cells[name]["real against real"]["auroc_counts"]["mean"] for name in REPORTED]
    identity = max(
        abs(run["left"]) / run["left_se"] for name in REPORTED for run in results("identities")[name]["runs"]
    )
    whole = results("scaling")["whole"]
    ratio = []
    for name in REPORTED:
        found = pick(outlier_rows(name, "odd"), kind="left-out type")
        ratio.append((1 - mean(row["auroc"] for row in found)) / (1 - mean(row["auroc_plain"] for row in found)))
    diffusion = losses()["diffusion"]
    seeds = stability.sets().values()
    shared = [found["gain"]["default"]["shared"]["value"] for found in seeds]
    same = [mean(found["methods"]["default, 3"]["clusters"]) for found in seeds]
    return [
        (
            "Held-out likelihood of the defaults, compared with scvi-tools",
            f"IWAE better by {ranged(min(gain), max(gain), 1)} %",
            many([value >= 1 for value in gain]),
            "likelihood",
            "held-out-likelihood",
        ),
        (
            'The same model (`preset="scvi"`), compared with scvi-tools',
            f"ELBO and IWAE {ranged(min(parity), max(parity), 2, sign=True)} %",
            many([value >= -0.5 for value in parity]),
            "likelihood",
            "parity",
        ),
        *((*row, "integration", table) for row, table in integration.summary()),
        *((question, result, many(met), "dial", "dial") for question, result, met in dial.summary()),
        (
            "Neighbours that fits from two seeds share, `n_fits=3` compared with one fit",
            f"{ranged(min(shared), max(shared), 3, sign=True)}; ARI of their clusters {ranged(min(same), max(same))}",
            many([a >= 0.15 and b >= 0.85 for a, b in zip(shared, same, strict=True)]),
            "stability",
            "stability-gain",
        ),
        (
            "Fits with random batches, compared with those without",
            null_batches.summary(),
            many([*null_batches.within(), null_batches.mixing_kept()]),
            "null_batches",
            "null-batches",
        ),
        *(
            (question, result, "met" if all(met) else "**missed**", "perturbation", "perturbation-types")
            for question, result, met in perturbation.summary()
        ),
        (
            "Verdicts on predicted perturbations: on fresh cells, and on shuffled labels",
            evaluation.summary(),
            many(evaluation.met()),
            "evaluation",
            "evaluation-fresh",
        ),
        (
            "Held-out combinations of perturbations, compared with the sum of the single changes",
            combinations.summary(),
            many([combinations.met()]),
            "combinations",
            "combinations",
        ),
        (
            "Proteins hidden for a batch, compared with totalVI",
            modalities.summary(),
            many(list(modalities.met().values())),
            "modalities",
            "modalities-cite",
        ),
        (
            "Simulated RNA and ATAC, a third of the cells lacking either",
            modalities.summary_atac(),
            many(modalities.met_atac()),
            "modalities",
            "modalities-atac",
        ),
        *annotation.summary_rows(),
        (
            "Time to the quality of scvi-tools",
            f"{ranged(min(ratios), max(ratios), 0)} times faster",
            many([value >= 50 for value in ratios]),
            "speed",
            "time-to-elbo",
        ),
        (
            "Training throughput, compared with scvi-tools",
            f"{rates['nb']:.1f} times (NB), {rates['zinb']:.1f} times (ZINB)",
            many([rates["nb"] >= 16, rates["zinb"] >= 12]),
            "speed",
            "throughput",
        ),
        (
            "A million cells at the defaults",
            f"{whole['seconds']:.0f} s",
            many([whole["seconds"] <= most_seconds(whole)]),
            "speed",
            "memory",
        ),
        *on_disk.summary(),
        (
            "Two processes of one thread, compared with one of two threads",
            f"throughput {ranks.ratio():.2f} times; held-out ELBO within the noise of seeds on {sum(ranks.within_noise())} of {len(REPORTED)}",
            many([ranks.ratio() >= 0.9, *ranks.within_noise()]),
            "processes",
            "ranks-throughput",
        ),
        (*kills.summary(), "kills", "kills"),
        (
            "First call ever: processor time with imports; compilation for larger data",
            f"{first:.1f} s; {compiling:.1f} s",
            many([first <= 5, compiling <= 10]),
            "speed",
            "first-call",
        ),
        (
            "Denoising with `own_counts=True`",
            f"the next best method has a Poisson loss {ranged(min(diffusion), max(diffusion), 1)} % higher",
            many([value > 0 for value in diffusion]),
            "denoising",
            "denoising",
        ),
        (
            "Differential expression between random halves",
            f"any gene called in {100 * min(null):.1f} to {100 * max(null):.1f} % of splits",
            many([value <= 0.08 for value in null]),
            "differential_expression",
            "de-null",
        ),
        (
            "Differential expression, time compared with scvi-tools",
            f"{de_ratio:.0f} times faster",
            many([de_ratio >= 20]),
            "differential_expression",
            "de-speed",
        ),
        (
            "Cells of a type that was left out of the fit",
            f"1 - AUROC is {ranged(min(ratio), max(ratio))} times that of the reconstruction error",
            "",
            "outliers",
            "outliers",
        ),
        (
            "Queries that lack half of the genes",
            (
                f"{ranged(min(row['masked'] for row in genes), max(row['masked'] for row in genes))} of the neighbors found"
                f" again, {ranged(min(row['zeros'] for row in genes), max(row['zeros'] for row in genes))} when zeros are filled in"
            ),
            many([row["low"] > 0 for row in genes]),
            "queries",
            "missing-genes",
        ),
        (
            "Label transfer by default fits, compared with scArches",
            f"accuracy {ranged(min(transfer), max(transfer), 3, sign=True)}",
            many([value >= 0 for value in transfer]),
            "queries",
            "label-transfer",
        ),
        (
            "Label transfer with the covariates encoded and `fine_tune=True`, compared with scArches",
            f"accuracy {ranged(min(tuned), max(tuned), 3, sign=True)}",
            many([value >= 0 for value in tuned]),
            "queries",
            "label-transfer",
        ),
        (
            "Columns that mean nothing, judged as covariates",
            f"p < .05 in {100 * nothing['below']:.1f} % of {nothing['n']} draws",
            many([0.03 <= nothing["below"] <= 0.07]),
            "covariates",
            "covariates-null",
        ),
        (
            "True effects of batches and conditions, judged as covariates",
            f"{effects[0]} of {effects[1]} found",
            many([effects[0] == effects[1]]),
            "covariates",
            "covariates-true",
        ),
        (
            "Collapsed or overfitted fits detected",
            (
                f"{sum(row['flagged'] for row in ill)} of {len(ill)};"
                f" {sum(row['flagged'] and not row['ill'] for row in fits)} false alarms"
            ),
            many([all(row["flagged"] for row in ill)]),
            "collapse",
            "collapse",
        ),
        (
            "Learned priors, compared with N(0, I)",
            f"IWAE {ranged(min(prior), max(prior), 2, sign=True)} % on average",
            many([value > 0 for value in prior]),
            "generation",
            "priors",
        ),
        (
            "New cells distinguished from held-out ones",
            f"AUROC {ranged(min(new), max(new))} (real cells: {ranged(min(real), max(real))})",
            many([a - b <= 0.1 for a, b in zip(new, real, strict=True)]),
            "generation",
            "generation",
        ),
        (
            "Identities of the bound",
            f"largest difference {identity:.1f} standard errors",
            many([identity <= 3]),
            "numerics",
            "identities",
        ),
    ]


def summary() -> str:
    """Make the table of the first page."""
    rows: list[Row] = [["question", "result", "aim", "page", "measured"], ["---"] * 5]
    for question, result, verdict, page, name in lines():
        found = TABLES[name]
        version = oldest(found.sources)
        old = bool(since(version, found.kinds) or found.note)
        badge = "{bdg-warning-line}`older`" if old else "{bdg-success-line}`current`"
        link = f"[{page.replace('_', ' ')}](benchmarks/{page}.md)"
        rows.append([question, result, verdict, link, f"{version.date[:10]} {badge}"])
    return "\n".join(line(row) for row in rows)


def changes() -> str:
    """List changes that affect numbers, newest first."""
    rows: list[Row] = [["date", "change", "effect on numbers"], ["---"] * 3]
    for change in sorted(CHANGES, key=lambda c: c.date, reverse=True):
        rows.append([change.date[:10].replace("-", "&#8209;"), change.what, change.effect])
    return "\n".join(line(row) for row in rows)


def plotted() -> dict[str, Any]:
    """Return everything that the figure shows."""
    return {
        "gain": [[row["gain_%"], row["low_%"], row["high_%"]] for row in gains()],
        "ARI": clusters(),
        "times": times(),
        "losses": losses(),
    }


def digest() -> str:
    """Compute a checksum of what the figure shows."""
    return hashlib.sha256(json.dumps(plotted(), sort_keys=True).encode()).hexdigest()


def digest_of(path: Path) -> str | None:
    """Read the checksum stored in a figure."""
    from PIL import Image

    if not path.exists():
        return None
    with Image.open(path) as picture:
        return picture.info.get("Description")


def draw(path: Path) -> None:
    """Draw the figure of the first page."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    data = plotted()
    blue, orange, green, gray = "#0072B2", "#E69F00", "#009E73", "#888888"
    places = list(range(len(REPORTED)))
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained")
        panels = (
            ("gain", "held-out likelihood", "gain over scvi-tools, %", 0.0),
            ("ARI", "clusters", "best ARI less that of scvi-tools", integration.MARGIN),
        )
        for ax, (key, title, label, aim) in zip(axes, panels, strict=False):
            shown = (
                data[key] if isinstance(data[key], list) else [data[key].get(name, [math.nan] * 3) for name in REPORTED]
            )
            for place, (value, low, high) in zip(places, shown, strict=True):
                ax.errorbar(place, value, [[value - low], [high - value]], fmt="o", color=blue, capsize=3)
            ax.axhline(0, color=gray, linewidth=0.8)
            if aim:
                ax.axhline(aim, color=orange, linestyle="--", linewidth=1)
                ax.annotate("aim", (-0.45, aim), ha="left", va="top", color="#8a5f00", fontsize=8)
            ax.set_title(title)
            ax.set_ylabel(label)
        for place, values in zip(places, data["times"].values(), strict=True):
            axes[2].plot([place] * len(values), values, "o", color=blue)
        axes[2].axhline(50, color=orange, linestyle="--", linewidth=1)
        axes[2].annotate("aim", (2.4, 50), ha="right", va="top", color="#8a5f00", fontsize=8)
        axes[2].set(yscale="log", ylim=(10, 1000), ylabel="times faster to its final ELBO")
        axes[2].set_title("speed, against scvi-tools")
        styles = {"scvi-tools": (orange, "s"), "diffusion": (gray, "^"), "vxpress": (blue, "o")}
        for offset, (method, values) in zip((-0.15, 0, 0.15), data["losses"].items(), strict=True):
            color, marker = styles[method]
            label = "vxpress, own batch" if method == "vxpress" else method
            axes[3].plot([p + offset for p in places], values, marker, color=color, label=label)
        axes[3].axhline(0, color=green, linewidth=1)
        axes[3].annotate(
            "vxpress, own_counts=True",
            (2.4, 0),
            ha="right",
            va="top",
            color=green,
            fontsize=8,
            xytext=(0, -2),
            textcoords="offset points",
        )
        axes[3].set(ylim=(-6, 52), ylabel="Poisson loss above, %")
        axes[3].set_title("denoising")
        axes[3].legend(frameon=False, fontsize=8, loc="upper right")
        for ax in axes:
            ax.set_xticks(places, [name.replace("_", "\n") for name in REPORTED])
            ax.set_xlim(-0.5, 2.5)
        figure.savefig(path, dpi=150, metadata={"Description": digest()})
        plt.close(figure)
