"""One fit with an optional covariate: is the effect of a condition gone in one view, and there in the other? What does it cost?

    python benchmarks/dial.py --threads 1

Kang et al.: blood cells of eight donors, half of them stimulated with interferon beta. Three fits for each seed, without and
with the donor as batch: the condition optional (``optional_covariate_keys=["condition"]``, two views of one fit), as a covariate
(its effect removed), and left out (kept). The last two are what one would fit instead. For every view, on the cells to fit:
``same condition``, the share of the 30 nearest other cells that have the condition of the cell, by the posterior means (one
half if conditions are mixed), and ``purity``, the share that have its type. On test cells: the ELBO, and the
importance-weighted bound with 50 samples, nats per cell. ``--set cite`` is a set for tuning, with the batch as condition.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from typing import Any

import anndata as ad
import numpy as np
import scanpy as sc
from _integration import load, neighbours
from _speed import RESULTS, save, set_threads

import vxpress as vx

N_SAMPLES = 50
# which column is the condition
CONDITION = {"kang": "condition", "cite": "batch", "kang_ctrl": "batch"}
FITS = ("optional", "covariate", "left out")


def arguments(fit: str, column: str, batch: str | None) -> dict[str, Any]:
    """Return the arguments of one of the fits."""
    if fit == "optional":
        return {"batch_key": batch, "optional_covariate_keys": [column]}
    if fit == "covariate":
        return {"batch_key": batch, "categorical_covariate_keys": [column]} if batch else {"batch_key": column}
    return {"batch_key": batch}


def measured(fitted: ad.AnnData, test: ad.AnnData, column: str, *, keep: bool) -> dict[str, float]:
    """Return the scores of one view of a fit."""
    near = neighbours(fitted.obsm["X_vae_kept" if keep else "X_vae"])
    codes = {name: fitted.obs[name].cat.codes.to_numpy() for name in (column, "label")}
    same = {name: (code[near] == code[:, None]).mean(1) for name, code in codes.items()}
    vx.tl.log_likelihood(test, fitted, keep=keep, n_samples=N_SAMPLES, key_added="test", progress=False)
    bound = test.uns["test_log_likelihood"]["summary"].loc["all"]
    return {
        "same condition": float(same[column].mean()),
        "purity": float(same["label"][codes["label"] >= 0].mean()),
        "elbo": float(bound["elbo"]),
        "iwae": float(bound["log_likelihood"]),
    }


def rows_of(name: str, seed: int, *, donor: bool) -> list[dict[str, Any]]:
    """Fit with one seed, and return the scores of every view."""
    cells, test = load(name)
    column, found = CONDITION[name], []
    for fit in FITS:
        adata, start = cells.copy(), time.perf_counter()
        given = arguments(fit, column, "batch" if donor else None)
        vx.tl.fit_vae(adata, **given, rng=seed, denoised=False, progress=False)
        seconds = time.perf_counter() - start
        views = {"optional": ("removed", "kept"), "covariate": ("removed",), "left out": ("kept",)}[fit]
        for view in views:
            keep = fit == "optional" and view == "kept"
            scores = measured(adata, test.copy(), column, keep=keep)
            found.append({"donor": donor, "fit": fit, "view": view, "seed": seed, "seconds": seconds} | scores)
            print(found[-1], flush=True)
    return found


def main() -> None:
    """Measure seed by seed, and store the results after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", default="kang", choices=list(CONDITION))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="dial")
    options = parser.parse_args()
    set_threads(options.threads)
    warnings.simplefilter("ignore")
    sc.settings.verbosity = 0
    path = RESULTS / f"{options.out}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    rows = known.get(options.set, [])
    for donor in (False, True) if options.set == "kang" else (False,):
        for seed in options.seeds:
            rows = [row for row in rows if (row["donor"], row["seed"]) != (donor, seed)]
            rows += rows_of(options.set, seed, donor=donor)
            save(options.out, {options.set: rows})
    for donor, fit, view in dict.fromkeys((row["donor"], row["fit"], row["view"]) for row in rows):
        part = [row for row in rows if (row["donor"], row["fit"], row["view"]) == (donor, fit, view)]
        means = {
            key: round(float(np.mean([row[key] for row in part])), 3)
            for key in ("same condition", "purity", "elbo", "iwae")
        }
        print(donor, fit, view, means, flush=True)


if __name__ == "__main__":
    main()
