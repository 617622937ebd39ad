"""Are shallow cells placed where deep cells of their type are, with and without binomial thinning in training?

    python benchmarks/shallow.py                                          # PCA and vxpress
    python benchmarks/shallow.py --methods scvi "joint embedding" --seeds 0 1  # needs scvi-tools 1.5

Each method is fitted to cells of full depth. The test cells, which no fit has seen, are thinned at random to 100 to 300
molecules of the modelled genes (cells with fewer keep theirs) and placed in the latent space. A nearest-neighbour
classifier (15 neighbours), trained on the fitted cells at full depth, predicts their types: balanced accuracy, for the
thinned cells and for the same cells at full depth. Next to it, purity of the 30 nearest neighbours of the fitted cells and
the held-out bound. Data sets, genes and scores are those of ``_integration.py``. The same seed thins test cells in the
same way for every method, so differences are paired by seed.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import scanpy as sc
from _integration import load, neighbours
from _paired import paired
from _settings import SETTINGS, arguments
from _speed import RESULTS, save, set_threads
from fit_ours import judge_fit
from sklearn.decomposition import PCA
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

import vxpress as vx

REPORTED = ("pbmc3k", "kang", "pbmc_3studies")
MOLECULES = 100, 300
N_NEIGHBORS, N_COMPS = 15, 30
THINNING = 0.9
# test cells whose bound is computed, the same for every fit
JUDGED = 200
# embedding of the fitted cells, a function that places other cells, and further scores
Placed = tuple[np.ndarray, Callable[[ad.AnnData], np.ndarray], dict[str, float]]


def thinned(adata: ad.AnnData, seed: int) -> ad.AnnData:
    """Return cells with a binomial sample of their molecules."""
    rng = np.random.default_rng(seed)
    x = adata.X.tocsr().copy()
    rate = np.minimum(1.0, rng.uniform(*MOLECULES, adata.n_obs) / np.asarray(x.sum(1)).ravel())
    x.data = rng.binomial(x.data.astype(np.int64), np.repeat(rate, np.diff(x.indptr))).astype(np.float32)
    x.eliminate_zeros()
    return ad.AnnData(x, obs=adata.obs.copy(), var=adata.var.copy())


def by_pca(fit: ad.AnnData, test: ad.AnnData, seed: int) -> Placed:
    """Compute principal components of log-normalised counts, onto which other cells are projected."""

    def logged(adata: ad.AnnData) -> np.ndarray:
        copied = adata.copy()
        sc.pp.normalize_total(copied, target_sum=float(np.median(fit.X.sum(1).A1)))
        sc.pp.log1p(copied)
        return copied.X.toarray()

    found = PCA(N_COMPS, random_state=seed).fit(logged(fit))
    return found.transform(logged(fit)), lambda cells: found.transform(logged(cells)), {}


def by_vxpress(thinning: float) -> Callable[[ad.AnnData, ad.AnnData, int], Placed]:
    """Return a function that fits vxpress with its defaults and this share of thinning."""

    def fitted(fit: ad.AnnData, test: ad.AnnData, seed: int) -> Placed:
        given = arguments(SETTINGS["defaults"], {"options": {"thinning": thinning}})
        vx.tl.fit_vae(fit, "batch" if "batch" in fit.obs else None, rng=seed, denoised=False, progress=False, **given)

        def place(cells: ad.AnnData) -> np.ndarray:
            copied = cells.copy()
            vx.tl.encode(copied, fit)
            return copied.obsm["X_vae"]

        return fit.obsm["X_vae"], place, {"iwae": float(judge_fit(fit, test[:JUDGED].copy())[0].iwae_n.mean())}

    return fitted


def by_scvi(joint: bool) -> Callable[[ad.AnnData, ad.AnnData, int], Placed]:
    """Return a function that fits SCVI, or the model of scvi-tools with thinned views, at its defaults."""

    def fitted(fit: ad.AnnData, test: ad.AnnData, seed: int) -> Placed:
        import scvi

        model_class = scvi.external.JointEmbeddingSCVI if joint else scvi.model.SCVI
        scvi.settings.seed = seed
        model_class.setup_anndata(fit, batch_key="batch" if "batch" in fit.obs else None)
        model = model_class(fit)
        model.train(accelerator="cpu", enable_progress_bar=False, logger=False)

        def place(cells: ad.AnnData) -> np.ndarray:
            return np.asarray(model.get_latent_representation(cells.copy()))

        return np.asarray(model.get_latent_representation()), place, {}

    return fitted


METHODS: dict[str, Callable[[ad.AnnData, ad.AnnData, int], Placed]] = {
    "thinning": by_vxpress(THINNING),
    "no thinning": by_vxpress(0.0),
    "PCA": by_pca,
    "scvi": by_scvi(joint=False),
    "joint embedding": by_scvi(joint=True),
}


def scored(name: str, method: str, seed: int) -> dict[str, float]:
    """Fit once and compute the scores."""
    fit, test = (part[part.obs["label"].notna()].copy() for part in load(name))
    shallow = thinned(test, seed)
    latent, place, further = METHODS[method](fit, test, seed)
    label = fit.obs["label"].astype(str).to_numpy()
    classifier = KNeighborsClassifier(N_NEIGHBORS).fit(latent, label)
    truth = test.obs["label"].astype(str)
    accuracy = {
        depth: float(balanced_accuracy_score(truth, classifier.predict(place(cells))))
        for depth, cells in (("shallow", shallow), ("full depth", test))
    }
    return accuracy | {"purity": float((label[neighbours(latent)] == label[:, None]).mean())} | further


def main() -> None:
    """Fit every method, print paired differences and write the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(REPORTED))
    parser.add_argument("--methods", nargs="+", default=["thinning", "no thinning", "PCA"], choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    for n_seeds, seed in enumerate(args.seeds, 1):
        for name in args.sets:
            for method in args.methods:
                set_threads(args.threads)
                row = scored(name, method, seed)
                rows.setdefault(name, {}).setdefault(method, []).append(row)
                print(name, method, seed, {key: round(value, 3) for key, value in row.items()}, flush=True)
        # after each seed, so that an interrupted run leaves complete rounds
        save("shallow", {name: together(name, rows[name], args.seeds[:n_seeds]) for name in args.sets})


def together(name: str, rows: dict[str, list[dict[str, float]]], seeds: list[int]) -> dict[str, Any]:
    """Return the scores of a data set by method; methods that were not run now keep those of the stored results."""
    stored = RESULTS / "shallow.json"
    found: dict[str, Any] = json.loads(stored.read_text()).get(name, {}) if stored.exists() else {}
    for method, each in rows.items():
        scores = {metric: [round(row[metric], 5) for row in each] for metric in each[0]}
        found[method] = {"seeds": seeds, "deterministic": False, "scores": scores}
    for other in [method for method in found if method != "thinning" and "thinning" in found]:
        for metric in found[other]["scores"]:
            print(f"{name}, {metric}: thinning less {other} {paired(found['thinning'], found[other], metric).text()}")
    return found


if __name__ == "__main__":
    main()
