"""How much of an embedding is left to chance: neighbours and clusters of fits from different seeds, and the cost of several fits.

    python benchmarks/stability.py --threads 1

Five seeds of ``n_fits=3`` per data set, with the defaults and ``preset="likelihood"``; the first model of each is the fit with
``n_fits=1``. Embeddings of other methods are read from the files of ``integration_peers.py`` in the cache folder, if there are
any. Cells and genes are those of ``integration.py`` (2,000 cells, 1,000 genes). Per pair of seeds:

- ``shared``: share of the 30 nearest neighbours of a cell that both embeddings have;
- ``clusters``: adjusted Rand index of leiden clusters of scanpy's graph at resolution 1;

per seed ``purity`` is the share of the 30 nearest neighbours with the cell's type, and ``times`` is the processor time of
``n_fits=3`` in fits with ``n_fits=1`` of the same seed (two seeds, without the denoised layer, which is written once). Means over pairs
have 95 % intervals by the jackknife over seeds (Student's t), because pairs that share a seed are not independent.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scanpy as sc
from _cache import FOLDER
from _integration import N_NEIGHBORS, SETS, load, neighbours
from _speed import save, set_threads
from scipy import stats
from sklearn.metrics import adjusted_rand_score

import vxpress as vx

REPORTED = ("pbmc3k", "kang", "pbmc_3studies")
SETTINGS: dict[str, dict[str, Any]] = {"default": {}, "likelihood": {"preset": "likelihood"}}
OTHERS = ("scvi", "harmony", "pca")
N_FITS, N_TIMED = 3, 2


def fit(name: str, seed: int, setting: str, n_fits: int) -> dict[str, np.ndarray]:
    """Fit vxpress; returns the embeddings of the first model and of all, and the processor time."""
    adata = load(name)[0].copy()
    batch_key = "batch" if SETS[name].batch else None
    start = time.process_time()
    given = SETTINGS[setting]
    vx.tl.fit_vae(adata, batch_key, rng=seed, n_fits=n_fits, denoised=False, device="cpu", progress=False, **given)
    seconds = time.process_time() - start
    out = {"seconds": np.array(seconds), "1": adata.obsm["X_vae"]}
    return out | ({str(n_fits): adata.obsm["X_vae_ensemble"]} if n_fits > 1 else {})


def cached(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Read a file, made first if it does not exist."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **make())
        print(f"made {path.name}", flush=True)
    with np.load(path) as stored:
        return dict(stored)


def clusters(latent: np.ndarray) -> np.ndarray:
    """Return leiden clusters at resolution 1 of scanpy's graph."""
    adata = ad.AnnData(np.zeros((len(latent), 1), np.float32), obsm={"Z": latent})
    sc.pp.neighbors(adata, use_rep="Z", transformer="sklearn")
    sc.tl.leiden(adata, resolution=1.0, flavor="igraph", n_iterations=2, directed=False, random_state=0)
    return adata.obs["leiden"].to_numpy()


def scores(latents: list[np.ndarray], name: str) -> dict[str, Any]:
    """Compute purity of each embedding, and shared neighbours and agreement of clusters of each pair, in order."""
    label = load(name)[0].obs["label"]
    known = label.notna().to_numpy()
    truth = label[known].astype(str).to_numpy()
    near, found = [neighbours(latent) for latent in latents], [clusters(latent) for latent in latents]
    pairs = list(combinations(range(len(latents)), 2))
    of_known = [neighbours(latent[known]) for latent in latents]
    return {
        "purity": [float((truth[rows] == truth[:, None]).mean()) for rows in of_known],
        "shared": [common(near[i], near[j]) for i, j in pairs],
        "clusters": [float(adjusted_rand_score(found[i], found[j])) for i, j in pairs],
        "n_clusters": [len(np.unique(part)) for part in found],
    }


def kept_scores(paths: list[Path], part: str, name: str) -> dict[str, Any]:
    """Compute the scores of stored embeddings, or read them if no embedding has changed since."""
    stored = paths[0].with_suffix(f".{part}.json")
    dates = {path.name: path.stat().st_mtime for path in paths}
    if stored.exists():
        known: dict[str, Any] = json.loads(stored.read_text())
        if known["dates"] == dates:
            return known["scores"]
    latents = []
    for path in paths:
        with np.load(path) as file:
            latents.append(np.asarray(file[part], np.float32))
    # an embedding that does not depend on a seed is compared with itself
    found = scores(latents if len(latents) > 1 else latents * 2, name)
    stored.write_text(json.dumps({"dates": dates, "scores": found}))
    return found


def common(one: np.ndarray, other: np.ndarray) -> float:
    """Compute the mean share of neighbours that two lists per cell have in common."""
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(one, other, strict=True)])) / N_NEIGHBORS


def jackknife(values: list[float], n_seeds: int) -> float:
    """Compute half the width of a 95 % interval of the mean over pairs of seeds, by leaving out one seed at a time."""
    pairs = list(combinations(range(n_seeds), 2))
    without = np.array(
        [np.mean([v for v, pair in zip(values, pairs, strict=True) if k not in pair]) for k in range(n_seeds)]
    )
    error = np.sqrt((n_seeds - 1) / n_seeds * ((without - without.mean()) ** 2).sum())
    return float(stats.t.ppf(0.975, n_seeds - 1) * error)


def gain(several: dict[str, Any], one: dict[str, Any], n_seeds: int) -> dict[str, dict[str, float]]:
    """Return differences of several fits from one, with intervals."""
    out = {}
    for metric in ("shared", "clusters", "purity"):
        difference = [a - b for a, b in zip(several[metric], one[metric], strict=True)]
        half = (
            float(stats.t.ppf(0.975, n_seeds - 1) * stats.sem(difference))
            if metric == "purity"
            else jackknife(difference, n_seeds)
        )
        out[metric] = {"value": float(np.mean(difference)), "half": half}
    return out


def measure(name: str, settings: list[str], seeds: list[int], cache: Path) -> dict[str, Any]:
    """Collect the scores of every method on a data set."""
    out: dict[str, Any] = {"methods": {}, "gain": {}, "times": {}}
    for setting in settings:
        paths = [cache / f"stability-{setting}-{name}-{seed}.npz" for seed in seeds]
        made = [cached(path, partial(fit, name, s, setting, N_FITS)) for s, path in zip(seeds, paths, strict=True)]
        for n in (1, N_FITS):
            out["methods"][f"{setting}, {n}"] = kept_scores(paths, str(n), name)
        one, several = (out["methods"][f"{setting}, {n}"] for n in (1, N_FITS))
        out["gain"][setting] = gain(several, one, len(seeds))
        single = [
            cached(cache / f"stability-{setting}-one-{name}-{seed}.npz", partial(fit, name, seed, setting, 1))
            for seed in seeds[:N_TIMED]
        ]
        for alone, each in zip(single, made, strict=False):
            if not np.array_equal(alone["1"], each["1"]):
                message = f"{name}, {setting}: the first of several models differs from the one with n_fits=1"
                raise RuntimeError(message)
        out["times"][setting] = [
            float(each["seconds"] / alone["seconds"]) for alone, each in zip(single, made, strict=False)
        ]
    for method in OTHERS:
        paths = [cache / f"integration-{method}-{name}-{seed}.npz" for seed in seeds]
        paths = [path for path in paths if path.exists()]
        # without a seed, principal components need one file
        if len(paths) > 1 or (method == "pca" and paths):
            out["methods"][method] = kept_scores(paths, "latent_fit", name)
    return out


def main() -> None:
    """Measure every data set, print the table, and write ``results/stability.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(REPORTED))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=FOLDER)
    parser.add_argument("--no-save", action="store_true", help="print only")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    sc.settings.verbosity = 0
    set_threads(args.threads)
    # compilation does not belong to the processor time of a fit
    vx.tl.fit_vae(vx.datasets.pbmc68k_reduced(), max_epochs=1, progress=False)
    found = {}
    for name in args.sets:
        found[name] = measure(name, args.settings, args.seeds, args.cache)
        for method, each in found[name]["methods"].items():
            shown = "  ".join(f"{m} {np.mean(each[m]):.3f}" for m in ("shared", "clusters", "purity", "n_clusters"))
            print(f"{name:14s} {method:14s} seeds {len(each['purity'])}  {shown}", flush=True)
        for setting in args.settings:
            gains = "  ".join(
                f"{m} {v['value']:+.3f} ± {v['half']:.3f}" for m, v in found[name]["gain"][setting].items()
            )
            print(f"{name:14s} gain of {setting}: {gains}; times {found[name]['times'][setting]}", flush=True)
        if not args.no_save:
            save("stability", {"sets": found, "seeds": args.seeds, "n_fits": N_FITS})


if __name__ == "__main__":
    main()
