"""Likelihood, clusters, defaults, comparing models, identities."""

from __future__ import annotations

from _tables.registry import REPORTED, Row, mean, mean_range, number, one, pick, ranged, results, student, table

COMPARE = "python benchmarks/compare.py"
SCORES = (("elbo", "ELBO"), ("iwae", "IWAE"))


def interval(row: dict[str, float], digits: int = 2) -> str:
    """Format the gain in percent with its interval."""
    gain = number(row["gain_%"], digits, sign=True)
    return f"{gain} ({ranged(row['low_%'], row['high_%'], digits, sign=True)})"


@table("parity", ("compare", "parity: preset='scvi'"), command=COMPARE, kinds=["likelihood"])
def parity() -> list[Row]:
    """``preset="scvi"`` against scvi-tools."""
    rows: list[Row] = [
        ["data set", "score", "vxpress", "scvi-tools", "difference % (95 %)", "ESS, vxpress / scvi-tools"]
    ]
    for row in results("compare")["parity: preset='scvi'"]:
        rows.append(
            [
                row["set"],
                dict(SCORES)[row["score"]],
                number(row["ours"], 1),
                number(row["peer"], 1),
                interval(row),
                f"{row['ESS']:.1f} / {row['ESS peer']:.1f}",
            ]
        )
    return rows


@table("held-out-likelihood", ("compare", "likelihood: vx-default"), command=COMPARE, kinds=["likelihood"])
def held_out() -> list[Row]:
    """The defaults against scvi-tools."""
    rows: list[Row] = [["data set", "score", "scvi-tools", "vxpress", "gain % (95 %)", "ESS, scvi-tools / vxpress"]]
    for row in results("compare")["likelihood: vx-default"]:
        score, ess = dict(SCORES)[row["score"]], f"{row['ESS peer']:.1f} / {row['ESS']:.1f}"
        rows.append([row["set"], score, number(row["peer"], 1), number(row["ours"], 1), interval(row), ess])
    return rows


@table("held-out-likelihood-preset", ("compare", "likelihood: vx-likelihood"), command=COMPARE, kinds=["likelihood"])
def held_out_preset() -> list[Row]:
    """``preset="likelihood"`` against scvi-tools."""
    rows: list[Row] = [["data set", "score", "scvi-tools", '`preset="likelihood"`', "gain % (95 %)"]]
    for row in results("compare")["likelihood: vx-likelihood"]:
        score = dict(SCORES)[row["score"]]
        rows.append([row["set"], score, number(row["peer"], 1), number(row["ours"], 1), interval(row)])
    return rows


@table(
    "dispersions",
    ("dispersions", ""),
    command='python benchmarks/search.py --sets cite kang_ctrl paul15 worm --seeds 0 1 --changes none "dispersions as trained" '
    '"weight decay 0.3" "weight decay 1" --threads 1',
    kinds=["likelihood", "latent"],
)
def dispersions() -> list[Row]:
    """Dispersions as trained and after the refit. ARI at fixed resolutions: ``rescore`` has the scores that replace it."""
    names = {
        "dispersions as trained": "dispersions as trained",
        "defaults": "refitted (**the defaults**)",
        "weight decay 0.3": "the same, weight decay 0.3",
        "weight decay 1": "the same, weight decay 1",
    }
    sets = ("cite", "kang_ctrl", "paul15", "worm")
    rows: list[Row] = [["fit", *sets]]
    for change, shown in names.items():
        cells = [one(results("dispersions"), change=change, set=name) for name in sets]
        rows.append([shown, *(f"{number(cell['IWAE'], 1)} / {cell['ARI']:.3f}" for cell in cells)])
    return rows


@table(
    "genes",
    *((name, "rows") for name in ("genes_tune", "genes", "genes_3studies", "genes_dealt")),
    command="python benchmarks/genes.py",
    kinds=["latent", "genes"],
)
def genes() -> list[Row]:
    """In how many cells a gene must be variable."""
    rows: list[Row] = [
        ["data set", "seeds", "`min_cells`", "lone genes", "markers of rare types chosen", "ARI, fixed resolutions"]
    ]
    for file in ("genes_tune", "genes", "genes_3studies", "genes_dealt"):
        for row in results(file)["rows"]:
            name = row["set"] + {"genes_tune": " (tuning)", "genes_dealt": ", cells dealt into 8 batches"}.get(file, "")
            rare = number(row["rare"]) if row.get("rare") is not None else ""
            lone = f"{row['lone']:.1f}".removesuffix(".0")
            rows.append([name, str(row["seeds"]), str(row["min_cells"]), lone, rare, number(row["ARI"], 3)])
    return rows


@table(
    "readout",
    ("readout", ""),
    command="python benchmarks/readout.py",
    kinds=["likelihood"],
    note="minibatches hold 512 cells instead of 256, and training is compiled",
)
def readout() -> list[Row]:
    """Genes that are read out from the decoder compared with genes that are modelled."""
    rows: list[Row] = [
        ["data set", "mean of the batch", "read out", "modelled", "read out - modelled (95 %)", "gap closed"]
    ]
    for row in results("readout"):
        difference = f"{number(row['readout - modelled'], 4, sign=True)} ± {row['+-']:.4f}"
        scores = [number(row[key], 4) for key in ("batch mean", "readout", "modelled")]
        rows.append([row["set"], *scores, difference, f"{row['gap closed %']:.0f} %"])
    return rows


@table("objectives", ("objectives", "sets"), command="python benchmarks/objectives.py", kinds=["likelihood", "time"])
def objectives() -> list[Row]:
    """Objectives, floors and decoders compared with the plain fit."""
    sets = results("objectives")["sets"]
    rows: list[Row] = [
        [
            "fit",
            "IWAE minus that of the plain fit, nats (95 %)",
            "active of 10",
            "information, nats",
            "processor time, s",
        ]
    ]
    base = [run["iwae"] for name in sets for run in sets[name]["elbo"]]
    for label in next(iter(sets.values())):
        runs = [run for name in sets for run in sets[name][label]]
        difference = [run["iwae"] - plain for run, plain in zip(runs, base, strict=True)]
        gain = f"{number(mean(difference), 2, sign=True)} ± {student(difference):.2f}" if label != "elbo" else "0"
        digits = {"active": 1, "information": 2, "seconds": 1}
        rows.append([label, gain, *(number(mean(run[key] for run in runs), d) for key, d in digits.items())])
    return rows


MODELS = {
    "d2": "`n_latent=2`",
    "d20": "`n_latent=20`",
    "default": "default (NB, `n_latent=10`)",
    "zinb": '`likelihood="zinb"`',
}


@table(
    "choosing",
    ("choosing_real", "pbmc3k"),
    ("choosing_real", "kang"),
    command="python benchmarks/choosing.py real --sets pbmc3k kang --cells 250",
    kinds=["likelihood"],
)
def choosing() -> list[Row]:
    """Verdicts on validation cells and on test cells."""
    rows: list[Row] = [["data set", "setting", "cells", "bound (ESS)", "difference (95 %)", "gap", "verdict"]]
    for name, found in results("choosing_real").items():
        if name == "machine":
            continue
        for row in found["validation"]:
            for part in ("validation", "test"):
                each = one(found[part], model=row["model"])
                low, high = number(each["ci_low"], 1, sign=True), number(each["ci_high"], 1, sign=True)
                difference = (
                    f"{number(each['difference'], 1, sign=True)} ({low} to {high})" if each["rank"] > 1 else "0"
                )
                bound = f"{number(each['log_likelihood'], 1)} ({each['ess_median']:.1f})"
                gap, setting = number(each["gap"], 1), MODELS[row["model"]]
                rows.append([name, setting, part, bound, difference, gap, each["verdict"]])
    return rows


@table(
    "equal-models",
    ("choosing_real", "pbmc3k"),
    ("choosing_real", "kang"),
    command="python benchmarks/choosing.py real --sets pbmc3k kang --cells 250",
    kinds=["likelihood"],
)
def equal_models() -> list[Row]:
    """How often the test finds a difference between equal models."""
    rows: list[Row] = [
        ["data set", "fits per model", "pairs", "largest difference", "interval without 0", "called worse"]
    ]
    for name, found in results("choosing_real").items():
        if name != "machine":
            for kind, null in found["null"].items():
                counts = [str(null[key]) for key in ("interval_without_0", "decided")]
                rows.append([name, kind.split()[0], str(null["pairs"]), number(null["largest"], 1), *counts])
    return rows


@table(
    "nb-or-zinb",
    ("choosing_likelihood", "runs"),
    command="python benchmarks/choosing.py likelihood --zeros 0 0.05 0.3",
    kinds=["likelihood"],
)
def nb_or_zinb() -> list[Row]:
    """Choices of ``likelihood="auto"`` on data of known distribution."""
    runs = results("choosing_likelihood")["runs"]
    rows: list[Row] = [
        ["counts set to zero", "chosen, by seed", "ZINB - NB, nats per cell", "interval of the first seed", "gap"]
    ]
    for zeros in dict.fromkeys(run["zeros"] for run in runs):
        these = pick(runs, zeros=zeros)
        gaps = [run["gap"] for run in these]
        chosen, differences = (
            " ".join(r["likelihood"] for r in these),
            [number(r["difference"], 2, sign=True) for r in these],
        )
        first = ranged(these[0]["ci_low"], these[0]["ci_high"], sign=True)
        rows.append([f"{100 * zeros:.0f} %", chosen, ", ".join(differences), first, ranged(min(gaps), max(gaps))])
    return rows


IDENTITIES = {
    "command": "python benchmarks/identities.py --sets pbmc3k kang pbmc_3studies",
    "kinds": ["likelihood", "latent"],
}


@table("identities", *(("identities", name) for name in REPORTED), **IDENTITIES)
def identities() -> list[Row]:
    """The rate compared with the sum of information and gap to the prior."""
    rows: list[Row] = [["data set", "seed", "rate", "from draws", "$I_q$", "gap to the prior", "rate - $I_q$ - gap"]]
    for name in REPORTED:
        for seed, run in enumerate(results("identities")[name]["runs"]):
            pairs = (("rate_sampled", "rate_sampled_se"), ("information", "information_se"), ("gap", "gap_se"))
            cells = [f"{run[value]:.3f} ± {run[error]:.3f}" for value, error in pairs]
            left = f"{number(run['left'], 4, sign=True)} ± {run['left_se']:.4f}"
            rows.append([name, str(seed), number(run["rate"], 3), *cells, left])
    return rows


@table("bounds", *(("identities", name) for name in REPORTED), **IDENTITIES)
def bounds() -> list[Row]:
    """Bounds by number of samples."""
    shown = results("identities")[REPORTED[0]]["samples"]
    rows: list[Row] = [["data set", "seed", "ELBO", *(f"K = {k:,}" for k in shown)]]
    for name in REPORTED:
        for seed, run in enumerate(results("identities")[name]["runs"]):
            rows.append([name, str(seed), number(run["elbo"]), *(number(value) for value in run["bound"])])
    return rows


@table(
    "calibration", ("predictive_check", "sets"), command="python benchmarks/predictive_check.py", kinds=["likelihood"]
)
def calibration() -> list[Row]:
    """Coverage of predictive intervals, and moments."""
    head = ["data, likelihood of the fit", "50 % interval", "90 % interval"]
    rows: list[Row] = [[*head, "predicted / observed gene variance (median)", "zeros, predicted - observed"]]
    for name, runs in results("predictive_check")["sets"].items():
        half, nine, variance, zeros = zip(*runs, strict=True)
        data, likelihood = name.split(", ")
        data = "simulated NB" if data == "simulated" else data
        numbers = [mean_range(half), mean_range(nine), number(mean(variance), 3), number(mean(zeros), 4, sign=True)]
        rows.append([f"{data}, `{likelihood}`", *numbers])
    return rows
