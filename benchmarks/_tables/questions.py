"""Analyses of a fitted model: denoising, conditions, outliers, queries, neighbors, differential expression."""

from __future__ import annotations

from statistics import median, stdev
from typing import Any

from _versions import RESULTS

from _tables.registry import REPORTED, Row, mean, mean_range, number, one, pick, ranged, results, spread, table

DENOISERS = {
    "raw": "raw",
    "knn": "average of neighbors",
    "diffusion": "diffusion",
    "scvi-tools": "scvi-tools",
    "vxpress, mean over batches": "vxpress, mean over batches (the layer that a fit writes)",
    "vxpress": "vxpress, own batch",
    "vxpress, own counts": "vxpress, own batch and `own_counts=True`",
}


@table(
    "denoising",
    ("denoising", "scores"),
    command="python benchmarks/denoising.py --scvi-epochs 200",
    kinds=["likelihood"],
)
def denoising() -> list[Row]:
    """Prediction of held-out molecules."""
    best = "vxpress, own counts"
    rows: list[Row] = [
        ["data set", "method", "Poisson loss", "above the last row, % (95 %)", "sqrt error", "above, % (95 %)"]
    ]
    for name in REPORTED:
        found = pick(results("denoising")["scores"], set=name)
        for method, shown in DENOISERS.items():
            if not pick(found, method=method):
                continue
            cells = [name, shown]
            for score in ("poisson", "sqrt"):
                row = one(found, method=method, score=score)
                above = f"{number(row['above_%'], 1, sign=True)} ({ranged(row['low_%'], row['high_%'], 1, sign=True)})"
                cells += [number(row["loss"], 4), above if method != best else ""]
            rows.append(cells)
    return rows


@table("small-batches", ("small_batches", ""), command="python benchmarks/small_batches.py", kinds=["latent"])
def small_batches() -> list[Row]:
    """Decoding under a batch of few cells, and under the other batches instead."""
    found = results("small_batches")
    rows: list[Row] = [
        [
            "data set",
            "training cells of the batch",
            "decoded under it, %",
            "under the other batches, %",
            "another seed, %",
        ]
    ]
    for name, n in sorted({(row["set"], row["n_train"]) for row in found}):
        chosen = pick(found, set=name, n_train=n)
        shares = (mean(100 * row[column] for row in chosen) for column in ("own", "others", "floor"))
        rows.append([name, number(n, 0), *(number(share, 1) for share in shares)])
    return rows


@table("counterfactual", ("counterfactual", "effects"), command="python benchmarks/counterfactual.py", kinds=["latent"])
def counterfactual() -> list[Row]:
    """Expression under another condition."""
    found = results("counterfactual")
    names = {"strong": "far apart", "default": "overlapping"}
    rows: list[Row] = [
        [
            "groups",
            "control cells",
            "correlation of log fold changes",
            "distance",
            "distance without change",
            "support below 0.2",
        ]
    ]
    for key, seeds in found["effects"].items():
        effects, cells = key.split(", ")
        columns = dict(zip(found["columns"], zip(*seeds, strict=True), strict=True))
        numbers = [mean_range(columns[column]) for column in ("correlation", "distance")]
        left, below = number(mean(columns["left as is"]), 3), f"{100 * mean(columns['below 0.2']):.1f} %"
        rows.append([names[effects], {"seen": "seen treated"}.get(cells, cells), *numbers, left, below])
    return rows


OUTLIERS = tuple((f"outliers/{path.stem}", "") for path in sorted((RESULTS / "outliers").glob("*.json")))
KINDS = {
    "left-out type": "type left out of the fit",
    "doublet": "doublet",
    "thinned doublet": "doublet, thinned to one cell's depth",
    "ambient 50 %": "50 % ambient molecules",
}


def outlier_rows(name: str, what: str) -> list[dict[str, Any]]:
    """Return all records of a data set."""
    return [row for file, _ in OUTLIERS for row in pick(results(file), set=name, what=what)]


@table("outlier-calibration", *OUTLIERS, command="python benchmarks/outliers.py", kinds=["likelihood"])
def outlier_calibration() -> list[Row]:
    """P-values of cells like those of the fit."""
    rows: list[list[str]] = [
        ["what", *REPORTED, "aim"],
        ["groups of cells whose p-values are uniform at the 5 % level"],
        ["largest KS distance over all cells (bound 0.096)"],
        ["absolute rank correlation of score and log depth, mean (largest) over seeds"],
        ["the same for the plain score"],
    ]
    for name in REPORTED:
        ks = outlier_rows(name, "ks")
        rows[1].append(f"{sum(row['ks'] <= row['bound'] for row in ks)} of {len(ks)}")
        rows[2].append(number(max(row["ks"] for row in ks if row["group"] == "all"), 3))
        for at, group in ((3, "vae_outlier_score"), (4, "plain")):
            rho = [abs(row["rho"]) for row in pick(outlier_rows(name, "rho"), group=group)]
            rows[at].append(f"{number(mean(rho), 3)} ({number(max(rho), 3)})" if at == 3 else number(mean(rho), 3))
    for at, aim in enumerate(("95 %", "0.096", "0.1", "")):
        rows[at + 1].append(aim)
    return list(rows)


@table("outliers", *OUTLIERS, command="python benchmarks/outliers.py", kinds=["likelihood"])
def outliers() -> list[Row]:
    """Detection of unusual cells."""
    rows: list[Row] = [["data set", "unusual cells", "AUROC", "plain", "ratio (sd)", "found", "FDP", "power"]]
    columns = ("auroc", "auroc_plain", "found", "fdp 30%", "power 30%")

    def shares(found: list[dict[str, Any]]) -> list[float]:
        """Average over seeds, then over types."""
        types = dict.fromkeys(row["type"] for row in found)
        return [mean(mean(row[key] for row in pick(found, type=kind)) for kind in types) for key in columns]

    for name in REPORTED:
        for kind, shown in KINDS.items():
            found = pick(outlier_rows(name, "odd"), kind=kind)
            auroc, plain, *rest = shares(found)
            seeds = [shares(pick(found, seed=seed)) for seed in sorted({row["seed"] for row in found})]
            ratios = [(1 - seed[0]) / (1 - seed[1]) for seed in seeds]
            ratio = f"{number((1 - auroc) / (1 - plain))} ({stdev(ratios):.2f})"
            rows.append([name, shown, number(auroc, 3), number(plain, 3), ratio, *(number(value) for value in rest)])
    return rows


@table("left-out-types", *OUTLIERS, command="python benchmarks/outliers.py", kinds=["likelihood"])
def left_out_types() -> list[Row]:
    """AUROC by type."""
    rows: list[Row] = [["data set", "type: AUROC (plain)"]]
    for name in REPORTED:
        found = pick(outlier_rows(name, "odd"), kind="left-out type")
        types = {
            kind: [mean(row[key] for row in pick(found, type=kind)) for key in ("auroc", "auroc_plain")]
            for kind in dict.fromkeys(row["type"] for row in found)
        }
        ordered = sorted(types.items(), key=lambda item: -item[1][0])
        rows.append([name, ", ".join(f"{kind} {a:.2f} ({plain:.2f})" for kind, (a, plain) in ordered)])
    return rows


@table("missing-genes", ("masked_genes", "summary"), command="python benchmarks/masked_genes.py", kinds=["latent"])
def missing_genes() -> list[Row]:
    """Queries with half of their genes."""
    rows: list[Row] = [
        ["data set", "zeros", "filled in", "gain (95 %)", "posterior variance, ratio", "calibration", "library"]
    ]
    for row in results("masked_genes")["summary"]:
        gain = f"{number(row['gain'], 3, sign=True)} ({ranged(row['low'], row['high'], 3)})"
        shares = [number(row["zeros"], 3), number(row["masked"], 3), gain]
        rows.append(
            [row["set"], *shares, number(row["variance"], 1), number(row["calibration"]), number(row["library"], 3)]
        )
    return rows


MAPPINGS = {
    "default, average": "default fit",
    "covariates encoded, fine_tune": "covariates encoded, `fine_tune=True`",
    "scArches": "scArches",
}


@table(
    "label-transfer",
    ("mapping", "summary"),
    command="python benchmarks/mapping_scvi.py && python benchmarks/mapping.py",
    kinds=["latent"],
)
def label_transfer() -> list[Row]:
    """Accuracy and macro-F1 of labels, and the paired differences from scArches."""
    found = results("mapping")["summary"]
    shown = {
        ("default, average", "accuracy"): "accuracy, default minus scArches (95 %)",
        ("covariates encoded, fine_tune", "accuracy"): "accuracy, fine-tuned minus scArches",
        ("default, average", "macro_F1"): "macro-F1, default minus scArches",
        ("covariates encoded, fine_tune", "macro_F1"): "macro-F1, fine-tuned minus scArches",
    }
    rows: list[Row] = [["data set, batch held out", *MAPPINGS.values(), *shown.values()]]
    for name, batch in dict.fromkeys((row["set"], row["held out"]) for row in found):
        scores = [one(found, set=name, way=way, **{"held out": batch}) for way in MAPPINGS]
        cells = [f"{number(s['accuracy'], 3)} / {number(s['macro_F1'], 3)}" for s in scores]
        for way, score in shown:
            ours = scores[list(MAPPINGS).index(way)]
            low, high = (ours[f"{score} {end}"] for end in ("low", "high"))
            difference = number(ours[f"{score} difference"], 3, sign=True)
            cells.append(f"{difference} ({ranged(low, high, 3, sign=True)})")
        rows.append([f"{name}, {batch}", *cells])
    seconds = [[row["seconds"] for row in pick(found, way=way)] for way in MAPPINGS]
    rows.append(["processor seconds of the query", *(reach(s) for s in seconds), *("" for _ in shown)])
    return rows


def reach(values: list[float]) -> str:
    """Format smallest to largest, or one number if they agree."""
    digits = 2 if max(values) < 0.1 else 1 if max(values) < 5 else 0
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"{low}&nbsp;to&nbsp;{high}"


DISTANCES = {
    "means": "means (Euclidean)",
    "expected": "expected squared",
    "noise_units": "noise units",
    "bhattacharyya": "Bhattacharyya",
    "correlation": "correlation of means",
    "likelihood": "likelihood",
}


@table(
    "neighbors",
    *(("neighbors", name) for name in REPORTED),
    command=f"python benchmarks/neighbors.py --distances {' '.join(DISTANCES)}",
    kinds=["latent"],
)
def neighbors() -> list[Row]:
    """Neighbors found from both halves of the molecules, and their types."""
    rows: list[Row] = [["distance", *(f"{name}: shared / purity" for name in REPORTED)]]
    for key, shown in DISTANCES.items():
        cells = [shown]
        for name in REPORTED:
            found = results("neighbors")[name]["distances"][key]
            pairs = [found[score] for score in ("shared", "purity")]
            if key == "means":
                cells.append(" / ".join(number(value, 3) for value, _ in pairs))
            else:
                cells.append(" / ".join(f"{number(value, 3, sign=True)} ± {half:.3f}" for value, half in pairs))
        rows.append(cells)
    return rows


@table(
    "cluster-stability",
    *(("neighbors", name) for name in REPORTED),
    command="python benchmarks/neighbors.py",
    kinds=["latent"],
)
def cluster_stability() -> list[Row]:
    """How well cells that change cluster are identified."""
    names = {"draws": "`vx.tl.cluster_stability`", "one graph": "one graph", "draws - one graph": "difference"}
    rows: list[Row] = [["AUROC of cells that change cluster", *REPORTED]]
    for key, shown in names.items():
        cells = [results("neighbors")[name]["stability"][key] for name in REPORTED]
        signed = key == "draws - one graph"
        rows.append([shown, *(f"{number(value, 3, sign=signed)} ± {half:.3f}" for value, half in cells)])
    return rows


DE = "python benchmarks/differential_expression.py"


@table("de-null", ("differential_expression", "null"), command=f"{DE} null --splits 200", kinds=["likelihood"])
def de_null() -> list[Row]:
    """Random halves, between which nothing differs."""
    rows: list[Row] = [
        ["cells per half", "`delta`", "splits with any call", "share of genes called", "p < 0.05", "p < 0.001"]
    ]
    for row in results("differential_expression")["null"]:
        delta = "0" if row["method"].endswith("delta=0") else "0.1 (default)"
        shares = [number(row["any call"], 3), f"{row['genes called']:.5f}".rstrip("0").rstrip(".")]
        rows.append([number(row["half"], 0), delta, *shares, number(row["p < .05"], 4), number(row["p < .001"], 5)])
    return rows


METHODS = {
    "vxpress": "vxpress",
    "vxpress, delta=0": "vxpress, `delta=0`",
    "wilcoxon": "Wilcoxon",
    "wilcoxon, tie_correct": "Wilcoxon, ties corrected",
    "scvi-tools": "scvi-tools",
}


@table("de-truth", ("differential_expression", "truth"), command=f"{DE} truth", kinds=["likelihood"])
def de_truth() -> list[Row]:
    """False discoveries and power with known truth."""
    found = results("differential_expression")["truth"]
    rows: list[Row] = [["data", "method", "FDP", "power", "power at FDP 0.05"]]
    for truth, size in dict.fromkeys(
        (row["truth"], row["cells"])
        for row in sorted(found, key=lambda r: (r["truth"] != "thinned by half", r["cells"]))
    ):
        name = f"halved, {size:,} cells" if truth == "thinned by half" else truth
        for method, shown in METHODS.items():
            these = pick(found, truth=truth, cells=size, method=method)
            columns = [[row[key] for row in these] for key in ("FDP", "power", "power at FDP .05")]
            rows.append([name, shown, *(f"{number(mean(c), 3)} ({stdev(c):.3f})" for c in columns)])
    return rows


@table("de-speed", ("differential_expression", "speed"), command=f"{DE} speed")
def de_speed() -> list[Row]:
    """Time for ten groups compared with the rest."""
    names = {
        "vxpress": "`vx.tl.rank_genes_groups`",
        "vxpress, use_counts=False": "the same without counts",
        "wilcoxon": "scanpy's Wilcoxon",
        "scvi-tools, vanilla": "scvi-tools, vanilla (its default)",
        "scvi-tools, change": "scvi-tools, change",
    }
    seconds = results("differential_expression")["speed"]["seconds"]
    rows: list[Row] = [["method", "s, median (range)", "over vxpress"]]
    for key, shown in names.items():
        times = {"median": median(seconds[key]), "min": min(seconds[key]), "max": max(seconds[key])}
        rows.append([shown, spread(times), number(times["median"] / median(seconds["vxpress"]), 1)])
    return rows
