"""Are cells annotated correctly, is the confidence right, and are types found that are absent from the reference?

    python benchmarks/annotation.py                  # five seeds, about an hour on one core
    python benchmarks/annotation.py --peers FOLDER   # adds the predictions that annotation_peers.py stored

Labels are given to 10 % or 30 % of the cells, or to all cells of half of the batches; the others are predicted. All methods
have the same cells, genes and labels: ``vx.tl.annotate`` of a fit to all cells, logistic regression on log-normalised counts
(scikit-learn's defaults, C = 1), and the 15 nearest neighbours on 50 principal components. Each type with 40 cells or more, up
to four per data set, is then left out in turn: its cells have no label in a fit that holds them, or are part of a query to a
fit without them. 30 % of the other cells have labels.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import scanpy as sc
from _annotation import FEWEST, NO_LABEL, REPORTED, given, load, log_normalised, scores, tasks
from _versions import RESULTS, stamp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

import vxpress as vx

NAME = "annotation"
ALPHA = 0.05
SECONDS = {"scanvi": "seconds", "vxpress": "seconds_vxpress"}
# types left out: their least and largest number
LEAST_CELLS, MAX_TYPES = 40, 4


def labelled(name: str, given_n: np.ndarray) -> Any:
    """Return the cells with the given labels."""
    adata = load(name).copy()
    adata.obs["label"] = np.where(given_n, adata.obs["type"].astype(str), NO_LABEL)
    return adata


def fit(adata: Any, seed: int, **labels: str) -> float:
    """Fit and return the seconds."""
    start = time.perf_counter()
    vx.tl.fit_vae(adata, "batch" if "batch" in adata.obs else None, rng=seed, denoised=False, progress=False, **labels)
    return time.perf_counter() - start


def by_vxpress(name: str, given_n: np.ndarray, seed: int) -> dict[str, Any]:
    """Annotate by a fit; with the first seed, a fit without labels is timed before and after it."""
    adata = labelled(name, given_n)
    plain = [fit(load(name).copy(), seed)] if seed == 0 else []
    seconds = {"labels": fit(adata, seed, labels_key="label", unlabeled_category=NO_LABEL)}
    plain += [fit(load(name).copy(), seed)] if seed == 0 else []
    if plain:
        seconds["plain"] = float(np.mean(plain))
    start = time.perf_counter()
    vx.tl.annotate(adata, alpha=ALPHA, progress=False)
    seconds["annotate"] = time.perf_counter() - start
    names, hidden_n = list(adata.uns["vae_label"]["labels"]), ~given_n
    truth_n = adata.obs["type"].astype(str).to_numpy()[hidden_n]
    inside_n = np.zeros(len(truth_n), dtype=bool)
    sets_nc = adata.obsm["vae_label_set"][hidden_n]
    known_n = np.isin(truth_n, names)
    inside_n[known_n] = sets_nc[known_n, [names.index(label) for label in truth_n[known_n]]]
    covered = {label: float(inside_n[truth_n == label].mean()) for label in names if (truth_n == label).sum() >= FEWEST}
    return {
        **scores(adata.obsm["vae_label_prob"][hidden_n], names, truth_n),
        "seconds": seconds,
        "coverage": float(inside_n[known_n].mean()),
        "coverage_of_labels": covered,
        "n_of_labels": {label: int((truth_n == label).sum()) for label in covered},
        "set_size": float(sets_nc.sum(1).mean()),
        "unknown": float((adata.obs["vae_label"] == NO_LABEL).to_numpy()[hidden_n][known_n].mean()),
    }


def by_regression(name: str, given_n: np.ndarray) -> dict[str, Any]:
    """Annotate by logistic regression."""
    x, truth = log_normalised(load(name)), load(name).obs["type"].astype(str).to_numpy()
    start = time.perf_counter()
    found = LogisticRegression(max_iter=1_000).fit(x[given_n], truth[given_n])
    prob = found.predict_proba(x[~given_n])
    return {**scores(prob, list(found.classes_), truth[~given_n]), "seconds": time.perf_counter() - start}


def by_neighbors(name: str, given_n: np.ndarray) -> dict[str, Any]:
    """Annotate by the nearest labelled cells on principal components."""
    x, truth = log_normalised(load(name)), load(name).obs["type"].astype(str).to_numpy()
    start = time.perf_counter()
    pc = sc.pp.pca(x, n_comps=min(50, min(x.shape) - 1), random_state=0)
    found = KNeighborsClassifier(min(15, int(given_n.sum()) // 2)).fit(pc[given_n], truth[given_n])
    prob = found.predict_proba(pc[~given_n])
    return {**scores(prob, list(found.classes_), truth[~given_n]), "seconds": time.perf_counter() - start}


def absent(name: str, seed: int) -> list[dict[str, Any]]:
    """Leave each of the largest types out, from the labels and from the fit, and find its cells."""
    adata = load(name)
    truth = adata.obs["type"].astype(str).to_numpy()
    sizes = adata.obs["type"].value_counts()
    chosen = [str(label) for label in sizes.index if sizes[label] >= LEAST_CELLS][:MAX_TYPES]
    rng, out = np.random.default_rng(seed), []
    for label in chosen:
        new_n = truth == label
        given_n = (rng.random(adata.n_obs) < 0.3) & ~new_n
        inside = labelled(name, given_n)
        fit(inside, seed, labels_key="label", unlabeled_category=NO_LABEL)
        vx.tl.annotate(inside, alpha=ALPHA, progress=False)
        reference = given_n | ((rng.random(adata.n_obs) < 0.5) & ~new_n)
        of_fit, query = labelled(name, given_n)[reference].copy(), adata[~reference].copy()
        fit(of_fit, seed, labels_key="label", unlabeled_category=NO_LABEL)
        vx.tl.annotate(query, model=of_fit, alpha=ALPHA, progress=False)
        x = log_normalised(adata)
        plain = LogisticRegression(max_iter=1_000).fit(x[given_n], truth[given_n])
        unsure_n = 1.0 - plain.predict_proba(x[~given_n]).max(1)
        row: dict[str, Any] = {"type": label, "n": int(new_n.sum()), "regression": auroc(unsure_n, new_n[~given_n])}
        for where, cells, new in (
            ("in the fit", inside[~given_n], new_n[~given_n]),
            ("query", query, new_n[~reference]),
        ):
            unknown_n = (cells.obs["vae_label"] == NO_LABEL).to_numpy()
            row[where] = {
                "auroc": auroc(cells.obs["vae_label_novelty"].to_numpy(), new),
                "found": float(unknown_n[new].mean()),
                "false": float(unknown_n[~new].mean()),
            }
        out.append(row)
        print(name, seed, label, json.dumps(row), flush=True)
    return out


def auroc(score_n: np.ndarray, new_n: np.ndarray) -> float:
    """Return the area under the curve of a score for new cells, among the cells that have one."""
    known_n = np.isfinite(score_n)
    return float(roc_auc_score(new_n[known_n], score_n[known_n]))


def peers(folder: Path) -> list[dict[str, Any]]:
    """Score the predictions that the other script stored."""
    rows = []
    for path in sorted(folder.glob("annotation-*.npz")):
        stored = np.load(path, allow_pickle=False)
        name, scenario, seed = str(stored["set"]), str(stored["scenario"]), int(stored["seed"])
        given_n = given(name, scenario, seed)
        assert given_n is not None
        truth = load(name).obs["type"].astype(str).to_numpy()[~given_n]
        found = scores(stored["prob"], [str(label) for label in stored["names"]], truth)
        # None without a pair, as for predictions from another machine
        seconds = {part: float(stored[key]) if np.isfinite(stored[key]) else None for part, key in SECONDS.items()}
        rows.append({"set": name, "scenario": scenario, "seed": seed, "method": "scanvi", **found, "seconds": seconds})
    return rows


def main() -> None:
    """Run all methods, and write the results after each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(REPORTED))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--absent-seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--peers", type=Path, help="folder with the files of annotation_peers.py; nothing else is run")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{NAME}.json")
    args = parser.parse_args()
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    sc.settings.verbosity = 0
    if args.peers is not None:
        save(args.out, found | {"scanvi": peers(args.peers)}, "scanvi")
        return
    kinds = {
        "vxpress": by_vxpress,
        "regression": lambda name, given_n, _: by_regression(name, given_n),
        "neighbors": lambda name, given_n, _: by_neighbors(name, given_n),
    }
    fit(load(args.sets[0])[:300].copy(), 0)  # compiles the loops before anything is timed
    rows: dict[str, list[dict[str, Any]]] = {method: found.get(method, []) for method in kinds}
    for name, scenario, seed, given_n in tasks(args.sets, args.seeds):
        task = {"set": name, "scenario": scenario, "seed": seed}
        for method, run in kinds.items():
            rows[method] = [row for row in rows[method] if {key: row[key] for key in task} != task]
            rows[method].append({**task, **run(name, given_n, seed)})
            print(method, json.dumps(rows[method][-1]), flush=True)
        found |= rows
        save(args.out, found, *kinds)
    for seed in args.absent_seeds:
        for name in args.sets:
            kept = [row for row in found.get("absent", []) if (row["set"], row["seed"]) != (name, seed)]
            found["absent"] = kept + [{"set": name, "seed": seed, **row} for row in absent(name, seed)]
            save(args.out, found, "absent")


def save(path: Path, found: dict[str, Any], *parts: str) -> None:
    """Write the results, and stamp the parts that are new."""
    path.write_text(json.dumps(found, indent=1) + "\n")
    if path.parent == RESULTS:
        stamp(NAME, parts)


if __name__ == "__main__":
    main()
