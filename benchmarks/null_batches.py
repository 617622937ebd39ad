"""Does a batch that means nothing change the embedding, and is a batch with an effect still corrected?

    python benchmarks/null_batches.py --methods default kept split harmony --screened
    python benchmarks/null_batches.py --methods scvi --seeds 0 1 --groups 2 8 40 --balanced-only

Cells get random labels as their batch: 2, 8 or 40, equally common or the first with 90 % of the cells. Cells and genes are
those of ``integration.py`` (2,000 cells, 1,000 genes). Per seed, the embedding with random batches is compared with that
of the same seed without batches, and the latter with that of the next seed: ``shared`` is the share of the 30 nearest
neighbours of a cell that both have, ``clusters`` the adjusted Rand index of their leiden clusters (resolution 1).

``default`` are the defaults of vxpress, ``kept`` those with ``screen_covariates=False``, ``split`` fits without batches
that hold out other cells, ``harmony`` PCA with Harmony (compared with PCA), and ``scvi`` SCVI of scvi-tools at its
defaults (needs scvi-tools 1.5 and Python 3.12 or later). Methods are added to the results that are there.

``screened`` counts how often 100 random labels of each kind are left out, and lists which true batches are. Fits of batches
that are kept have to be the same with ``screen_covariates=False``, bit for bit, so that nothing of their mixing is lost. For
others, the mixing of both fits is compared (``iLISI``, by scib-metrics).
"""

from __future__ import annotations

import argparse
import json
import warnings
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scanpy as sc
from _cache import FOLDER
from _integration import SETS, load, neighbours, pca
from _speed import set_threads
from _versions import RESULTS, stamp
from scipy import sparse
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors
from stability import cached, clusters, common

import vxpress as vx
from vxpress.core.data import Counts
from vxpress.core.screening import differing
from vxpress.core.split import split_cells

GROUPS, SHARE = (2, 8, 40), 0.9
N_DRAWS = 100
TRUE = ("kang", "pbmc_3studies", "cite", "kang_ctrl", "glioblastoma", "onek1k", "worm", "rnamix")
METHODS = ("default", "kept", "split", "harmony", "scvi")
KEPT = vx.tl.FitOptions(screen_covariates=False)


def labels(n: int, groups: int, seed: int, *, balanced: bool) -> np.ndarray:
    """Draw random labels, equally common or the first with 90 % of the cells."""
    rng = np.random.default_rng([seed, groups, balanced])
    if balanced:
        return rng.permutation(np.arange(n) % groups)
    share = np.full(groups, (1 - SHARE) / (groups - 1))
    share[0] = SHARE
    return rng.choice(groups, n, p=share)


def with_labels(name: str, label_n: np.ndarray | None) -> ad.AnnData:
    """Return the cells to fit, without their batches, and with random ones if given."""
    adata = load(name)[0].copy()
    if label_n is None:
        return adata
    adata.obs["random"] = np.char.add("r", label_n.astype(str))
    adata.obs["random"] = adata.obs["random"].astype("category")
    return adata


def by_vxpress(name: str, seed: int, label_n: np.ndarray | None, **arguments: Any) -> dict[str, np.ndarray]:
    """Fit vxpress."""
    adata = with_labels(name, label_n)
    batch_key = None if label_n is None else "random"
    given = {"rng": seed, "split_rng": 0, "denoised": False, "device": "cpu", "progress": False} | arguments
    vx.tl.fit_vae(adata, batch_key, **given)
    n_left_out = len(adata.uns["vae"]["params"]["model"].get("left_out", ()))
    return {"latent": adata.obsm["X_vae"], "left_out": np.array(n_left_out)}


def by_harmony(name: str, seed: int, label_n: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return principal components, corrected by Harmony if there are batches."""
    if label_n is None:
        return {"latent": pca(name)}
    import harmonypy

    obs = with_labels(name, label_n).obs
    found = np.asarray(harmonypy.run_harmony(pca(name), obs, "random", random_state=seed, verbose=False).Z_corr)
    return {"latent": found if len(found) == len(obs) else found.T}


def by_scvi(name: str, seed: int, label_n: np.ndarray | None) -> dict[str, np.ndarray]:
    """Fit SCVI at its defaults; all fits hold out the same cells."""
    import scvi

    adata = with_labels(name, label_n)
    train, validation = split_cells(adata.n_obs, 0.1, np.random.default_rng(0))
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata, batch_key=None if label_n is None else "random")
    model = scvi.model.SCVI(adata)
    held_out = {"external_indexing": [train, validation, np.array([], dtype=int)]}
    model.train(accelerator="cpu", enable_progress_bar=False, datasplitter_kwargs=held_out, logger=False)
    return {"latent": model.get_latent_representation()}


FITS = {
    "default": by_vxpress,
    "kept": partial(by_vxpress, options=KEPT),
    "split": partial(by_vxpress, split_rng=1),
    "harmony": by_harmony,
    "scvi": by_scvi,
}
# fits without batches do not depend on how batches are treated
PLAIN = {"kept": "default", "split": "default"}


def pair(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Compute shared neighbours and agreement of clusters of two embeddings."""
    return {
        "shared": common(neighbours(one), neighbours(other)),
        "clusters": float(adjusted_rand_score(clusters(one), clusters(other))),
    }


def measure(name: str, method: str, seeds: list[int], kinds: list[tuple[int, bool]], cache: Path) -> dict[str, Any]:
    """Compare the embeddings of a method with random batches with those without."""
    plain_of = PLAIN.get(method, method)

    def plain(seed: int) -> np.ndarray:
        path = cache / f"null-{plain_of}-{name}-{seed}.npz"
        return cached(path, partial(FITS[plain_of], name, seed, None))["latent"]

    following = {seed: seeds[(i + 1) % len(seeds)] for i, seed in enumerate(seeds)}
    out: dict[str, Any] = {"seeds": seeds, "between seeds": [pair(plain(s), plain(following[s])) for s in seeds]}
    if method == "split":
        paths = [cache / f"null-split-{name}-{seed}.npz" for seed in seeds]
        fits = [cached(path, partial(FITS[method], name, s, None)) for s, path in zip(seeds, paths, strict=True)]
        out["other split"] = [pair(fit["latent"], plain(s)) for s, fit in zip(seeds, fits, strict=True)]
        return out
    out["random"] = []
    n = load(name)[0].n_obs
    for groups, balanced in kinds:
        rows = []
        for seed in seeds:
            path = cache / f"null-{method}-{name}-{groups}-{balanced}-{seed}.npz"
            fit = cached(path, partial(FITS[method], name, seed, labels(n, groups, seed, balanced=balanced)))
            left_out = bool(fit.get("left_out", False))
            rows.append(pair(fit["latent"], plain(seed)) | {"left out": left_out})
        out["random"].append({"groups": groups, "balanced": balanced, "fits": rows})
        print(name, method, groups, balanced, {key: round(np.mean([r[key] for r in rows]), 3) for key in rows[0]})
    return out


def screened(name: str) -> dict[str, Any]:
    """Count how often random labels are left out, and list which true batches are."""

    def passed(adata: ad.AnnData, code_nk: np.ndarray) -> np.ndarray:
        x = sparse.csr_matrix(adata.X)
        x.sort_indices()
        return differing(Counts.from_scipy(x), np.asarray(x.sum(1)).reshape(-1), code_nk)

    cells, found = load(name)[0], []
    for groups, balanced in product(GROUPS, (True, False)):
        drawn = [labels(cells.n_obs, groups, 1_000 + i, balanced=balanced) for i in range(N_DRAWS)]
        n_left_out = N_DRAWS - int(passed(cells, np.stack(drawn, axis=1)).sum())
        found.append({"groups": groups, "balanced": balanced, "draws": N_DRAWS, "left out": n_left_out})
    true = {}
    for other in TRUE:
        if other not in SETS:
            continue
        adata = load(other)[0]
        codes = adata.obs["batch"].astype("category").cat.codes.to_numpy().astype(np.int64)[:, None]
        true[other] = {"cells": adata.n_obs, "left out": not passed(adata, codes)[0], "same fit": same_fit(adata)}
        print(other, true[other])
        if true[other]["left out"]:
            true[other]["iLISI"] = both_mixed(adata)
            print(true[other]["iLISI"])
    return {"random": found, "true": true}


def both_mixed(adata: ad.AnnData) -> dict[str, list[float]]:
    """Compute how well the batches mix in fits without and with them, over five seeds."""
    found: dict[str, list[float]] = {"left out": [], "kept": []}
    for seed, (name, options) in product(range(5), (("left out", None), ("kept", KEPT))):
        fitted = adata.copy()
        vx.tl.fit_vae(fitted, "batch", rng=seed, split_rng=0, options=options, denoised=False, progress=False)
        found[name].append(mixed(fitted.obsm["X_vae"], adata.obs["batch"].to_numpy()))
    return found


def mixed(latent: np.ndarray, batch_n: np.ndarray) -> float:
    """Compute iLISI with 90 neighbours, the cell among them as in scib-metrics."""
    from scib_metrics import ilisi_knn
    from scib_metrics.nearest_neighbors import NeighborsResults

    distances, indices = NearestNeighbors(n_neighbors=90).fit(latent).kneighbors(latent)
    return float(ilisi_knn(NeighborsResults(indices=indices, distances=distances), batch_n))


def same_fit(adata: ad.AnnData) -> bool:
    """Whether fits of two epochs with and without the screen have the same bits."""
    found = []
    for options in (None, KEPT):
        fitted = adata.copy()
        vx.tl.fit_vae(
            fitted, "batch", max_epochs=2, rng=0, split_rng=0, options=options, denoised=False, progress=False
        )
        found.append(fitted.obsm["X_vae"])
    return bool(np.array_equal(*found))


def main() -> None:
    """Measure the methods and add them to ``results/null_batches.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", default="pbmc3k")
    parser.add_argument("--methods", nargs="+", default=["default", "kept", "split", "harmony"], choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--groups", nargs="+", type=int, default=list(GROUPS))
    parser.add_argument("--screened", action="store_true", help="also test random labels and true batches")
    parser.add_argument("--balanced-only", action="store_true", help="leave out the labels of which one is common")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=FOLDER)
    parser.add_argument("--no-save", action="store_true", help="print only")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    sc.settings.verbosity = 0
    set_threads(args.threads)
    kinds = list(product(args.groups, (True,) if args.balanced_only else (True, False)))
    path = RESULTS / "null_batches.json"

    def keep(part: str, found: dict[str, Any]) -> None:
        if not args.no_save:
            known = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(known | {part: found | {"set": args.set}}, indent=1, sort_keys=True) + "\n")
            stamp("null_batches", [part])

    for method in args.methods:
        keep(method, measure(args.set, method, args.seeds, kinds, args.cache))
    if args.screened:
        keep("screened", screened(args.set))


if __name__ == "__main__":
    main()
