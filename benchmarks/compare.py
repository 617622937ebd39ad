"""Compare fits of vxpress and scvi-tools: parity of ``preset="scvi"``, likelihood, clustering and mixing.

    python benchmarks/fit_scvi.py && python benchmarks/fit_ours.py && python benchmarks/compare.py

Reads the files of the other two scripts, prints tables and writes ``benchmarks/results/compare.json``. Likelihoods are in
nats per test cell, which no fit has seen; higher is better. Intervals of likelihoods are over cells (the difference of
each cell averaged over seeds), those of clustering and mixing scores over seeds (Student's t on paired differences).
"""

from __future__ import annotations

import argparse
import json
import warnings
from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from _sets import SETS, load
from _versions import stamp
from scipy import stats
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

RESOLUTIONS = (0.3, 0.6, 1.0)
HERE = Path(__file__).parent


@cache
def result(folder: Path, model: str, name: str, seed: int) -> dict[str, np.ndarray]:
    """Read a cached fit."""
    with np.load(folder / f"{model}-{name}-{seed}.npz") as file:
        return {key: file[key] for key in file.files}


def likelihood(folder: Path, ours: str, name: str, seeds: list[int], score: str) -> dict[str, float]:
    """Compute the mean scores of both, and the gain in percent of scvi-tools with a paired 95 % interval over cells."""
    mine = np.mean([result(folder, ours, name, s)[score] for s in seeds], axis=0)
    peer = np.mean([result(folder, "scvi-zinb", name, s)[score] for s in seeds], axis=0)
    difference = mine - peer
    unit = 100 / abs(peer.mean())
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference)) * unit
    gain = difference.mean() * unit
    return {"ours": mine.mean(), "peer": peer.mean(), "gain_%": gain, "low_%": gain - half, "high_%": gain + half}


def structure(latent: np.ndarray, labels: pd.Series, batch: pd.Series | None) -> dict[str, float]:
    """Compute the agreement of leiden clusters with labels, averaged over resolutions and two seeds, and iLISI of batches."""
    adata = ad.AnnData(np.zeros((len(latent), 1), dtype=np.float32), obsm={"Z": latent})
    sc.pp.neighbors(adata, use_rep="Z")
    known = labels.notna().to_numpy()
    truth = labels[known].astype(str)
    scores = []
    for resolution in RESOLUTIONS:
        for seed in (0, 1):
            sc.tl.leiden(adata, resolution=resolution, flavor="igraph", n_iterations=2, random_state=seed)
            found = adata.obs["leiden"].to_numpy()[known]
            scores.append((adjusted_rand_score(truth, found), normalized_mutual_info_score(truth, found)))
    ari, nmi = np.mean(scores, axis=0)
    out = {"ARI": float(ari), "NMI": float(nmi)}
    if batch is not None:
        import scib_metrics
        from scib_metrics.nearest_neighbors import pynndescent

        near = pynndescent(latent, n_neighbors=90, random_state=0)
        out["iLISI"] = float(scib_metrics.ilisi_knn(near, batch.cat.codes.to_numpy()))
    return out


def paired(ours: list[float], peer: list[float]) -> dict[str, float]:
    """Compute the means of both and the paired 95 % interval of the difference over seeds."""
    difference = np.array(ours) - np.array(peer)
    half = stats.t.ppf(0.975, len(difference) - 1) * stats.sem(difference)
    mean = difference.mean()
    return {"ours": np.mean(ours), "peer": np.mean(peer), "difference": mean, "low": mean - half, "high": mean + half}


def likelihood_table(folder: Path, ours: str, sets: list[str], seeds: list[int]) -> pd.DataFrame:
    """Compare ELBO and IWAE on every data set."""
    rows = []
    for name in sets:
        ess = [float(np.median(result(folder, ours, name, s)["ess"])) for s in seeds]
        ess_peer = [float(np.median(result(folder, "scvi-zinb", name, s)["ess"])) for s in seeds]
        for score in ("elbo", "iwae"):
            row = {"set": name, "score": score} | likelihood(folder, ours, name, seeds, score)
            rows.append(row | {"ESS": np.mean(ess), "ESS peer": np.mean(ess_peer)})
    return pd.DataFrame(rows)


def structure_table(folder: Path, ours: list[str], sets: list[str], seeds: list[int]) -> pd.DataFrame:
    """Compare clustering and mixing on every data set, each setting of vxpress with scvi-tools."""
    rows = []
    for name in sets:
        fit, _ = load(name)
        labels, batch = fit.obs[SETS[name].labels], fit.obs["batch"] if SETS[name].batch else None
        scores = {
            model: [structure(result(folder, model, name, s)["latent_fit"], labels, batch) for s in seeds]
            for model in [*ours, "scvi-zinb"]
        }
        for model in ours:
            for metric in scores[model][0]:
                pair = paired([s[metric] for s in scores[model]], [s[metric] for s in scores["scvi-zinb"]])
                rows.append({"set": name, "model": model, "metric": metric} | pair)
    return pd.DataFrame(rows)


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=[k for k, v in SETS.items() if v.purpose == "report"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--parity-seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", default=["vx-default", "vx-likelihood"])
    parser.add_argument("--skip", nargs="*", default=[], choices=["parity", "likelihood", "structure"])
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    tables: dict[str, pd.DataFrame] = {}
    if "parity" not in args.skip:
        tables["parity: preset='scvi'"] = likelihood_table(args.cache, "vx-scvi", args.sets, args.parity_seeds)
    if "likelihood" not in args.skip:
        for model in args.models:
            tables[f"likelihood: {model}"] = likelihood_table(args.cache, model, args.sets, args.seeds)
    if "structure" not in args.skip:
        tables["clustering and mixing"] = structure_table(args.cache, args.models, args.sets, args.seeds)
    for title, table in tables.items():
        print(f"\n{title}\n{table.to_string(index=False, float_format='{:.3f}'.format)}")
    out = HERE / "results" / "compare.json"
    out.parent.mkdir(exist_ok=True)
    known = json.loads(out.read_text()) if out.exists() else {}
    out.write_text(json.dumps(known | {k: t.to_dict("records") for k, t in tables.items()}, indent=1) + "\n")
    stamp("compare", tables)


if __name__ == "__main__":
    main()
