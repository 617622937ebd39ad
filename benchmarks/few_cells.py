"""Few cells: is the latent space of a fit to 300 to 1,000 cells as good as PCA and Harmony?

    python benchmarks/few_cells.py

Whole small data sets, and 300 or 1,000 cells of larger ones, drawn anew for every seed. Purity of the 30 nearest
neighbours, and ARI at the best of the resolutions of ``_integration.py``, for the defaults, for what they were in release
0.1.0, for PCA (30 components of log-normalised counts), and for Harmony on it where there are batches; held-out bounds of
the fits. Differences are paired by seed, with 95 % intervals. Needs harmonypy.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import scanpy as sc
from _integration import agreement, clusterings, load
from _paired import paired
from _settings import SETTINGS, arguments
from _speed import save, set_threads
from fit_ours import judge_fit

import vxpress as vx

N_COMPS = 30
# test cells whose bounds are computed, the same for every fit
JUDGED = 200


@dataclass(frozen=True)
class Few:
    """A data set of ``_integration.py``, and the number of its cells that are fitted, by default all."""

    name: str
    n_cells: int | None = None
    purpose: str = "report"


SETS = {
    "pbmc68k_reduced": Few("pbmc68k_reduced"),
    "pancreas": Few("pancreas"),
    "rnamix": Few("rnamix"),
    "pbmc3k, 300": Few("pbmc3k", 300),
    "pbmc3k, 1,000": Few("pbmc3k", 1_000),
    "pbmc_3studies, 300": Few("pbmc_3studies", 300),
    "pbmc_3studies, 1,000": Few("pbmc_3studies", 1_000),
    "paul15, 300": Few("paul15", 300, "tune"),
    "cite, 300": Few("cite", 300, "tune"),
    "kang_ctrl, 300": Few("kang_ctrl", 300, "tune"),
    "kang_ctrl, 1,000": Few("kang_ctrl", 1_000, "tune"),
}
FITS = "defaults", "0.1"


def cells(which: Few, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Return the cells to fit and the test cells, with the genes that at least three of the former express."""
    fit, test = load(which.name)
    if which.n_cells is not None:
        fit = fit[np.sort(np.random.default_rng(seed).permutation(fit.n_obs)[: which.n_cells])]
    fit = fit.copy()
    sc.pp.filter_genes(fit, min_cells=3)
    sc.pp.filter_cells(fit, min_counts=1)
    test = test[:, fit.var_names].copy()
    sc.pp.filter_cells(test, min_counts=1)
    if "batch" in fit.obs:
        test = test[test.obs["batch"].isin(fit.obs["batch"])].copy()
    return fit, test


def components(fit: ad.AnnData) -> np.ndarray:
    """Return principal components of log-normalised counts."""
    adata = fit.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=min(N_COMPS, min(adata.shape) - 1), random_state=0)
    return np.asarray(adata.obsm["X_pca"])


def corrected(fit: ad.AnnData, latent: np.ndarray, seed: int) -> np.ndarray:
    """Return components corrected by Harmony."""
    import harmonypy

    found = np.asarray(harmonypy.run_harmony(latent, fit.obs, "batch", random_state=seed, verbose=False).Z_corr)
    return found if len(found) == fit.n_obs else found.T


def fitted(fit: ad.AnnData, test: ad.AnnData, setting: str, seed: int) -> tuple[np.ndarray, dict[str, float]]:
    """Fit vxpress; return its latent means and held-out bounds."""
    adata = fit.copy()
    given = arguments(SETTINGS[setting])
    vx.tl.fit_vae(adata, "batch" if "batch" in fit.obs else None, rng=seed, denoised=False, progress=False, **given)
    judged = judge_fit(adata, test[:JUDGED].copy())[0]
    return adata.obsm["X_vae"], {"elbo": float(judged.elbo_n.mean()), "iwae": float(judged.iwae_n.mean())}


def scored(name: str, seed: int, fits: list[str]) -> dict[str, dict[str, float]]:
    """Compute the scores of every method for one draw of cells."""
    fit, test = cells(SETS[name], seed)
    latent = components(fit)
    embeddings: dict[str, tuple[np.ndarray, dict[str, float]]] = {"PCA": (latent, {})}
    if "batch" in fit.obs:
        embeddings["Harmony"] = corrected(fit, latent, seed), {}
    embeddings |= {setting: fitted(fit, test, setting, seed) for setting in fits}
    out = {}
    for method, (z, bounds) in embeddings.items():
        found = agreement(z, clusterings(z), fit.obs["label"])
        out[method] = {metric: found[metric] for metric in ("purity", "ARI best")} | bounds
    return out


def main() -> None:
    """Fit every data set, print paired differences and write the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reported = [name for name, which in SETS.items() if which.purpose == "report"]
    parser.add_argument("--sets", nargs="+", default=reported, choices=list(SETS))
    parser.add_argument("--fits", nargs="+", default=list(FITS), choices=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in args.sets}
    for n_seeds, seed in enumerate(args.seeds, 1):
        for name in args.sets:
            set_threads(args.threads)
            rows[name].append(scored(name, seed, args.fits))
            print(
                name, seed, {m: {k: round(v, 3) for k, v in s.items()} for m, s in rows[name][-1].items()}, flush=True
            )
        # after each seed, so that an interrupted run leaves complete rounds
        save("few_cells", {name: together(rows[name], args.seeds[:n_seeds]) for name in args.sets})
    for name in args.sets:
        found = together(rows[name], args.seeds)
        for other in [method for method in found if method != args.fits[0]]:
            for metric in found[other]["scores"]:
                difference = paired(found[args.fits[0]], found[other], metric)
                print(f"{name}, {metric}: {args.fits[0]} less {other} {difference.text() if difference else ''}")


def together(rows: list[dict[str, dict[str, float]]], seeds: list[int]) -> dict[str, Any]:
    """Return the scores of a data set by method."""
    return {
        method: {
            "seeds": seeds,
            "deterministic": False,
            "scores": {metric: [round(row[method][metric], 5) for row in rows] for metric in rows[0][method]},
        }
        for method in rows[0]
    }


if __name__ == "__main__":
    main()
