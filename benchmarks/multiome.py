"""RNA and ATAC of simulated cells, a third of which lacks RNA and another third ATAC: is the joint latent space better than either alone?

    python benchmarks/multiome.py --seeds 0 1 2

Cell types are combinations of a program that RNA shows well and one that ATAC shows well; each also shows the other one, faintly.
So neither modality tells all types apart. The batches differ in both. Questions: agreement of the latent space with the types, for the
cells that have both modalities, next to that of a fit of either alone; and how well the missing modality is imputed, next to
the mean of the batch. Imputed values are compared with the true rates that the simulation knows, and with the counts. Writes
``results/multiome.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import _versions
import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scanpy as sc
from _latent_scores import agreement
from scipy import sparse

import vxpress as vx

RESULTS = Path(__file__).parent / "results" / "multiome.json"
N_CELLS, N_GENES, N_PEAKS = 3_000, 800, 1_500
PROGRAMS = 4
# molecules and fragments of a cell, and how strongly a modality shows its own program and the other one
DEPTH, STRENGTH = {"rna": 500.0, "atac": 300.0}, (0.8, 0.3)


def simulate(seed: int) -> tuple[md.MuData, dict[str, np.ndarray]]:
    """Return cells of both modalities, and the true shares of genes and peaks of each cell."""
    rng = np.random.default_rng(seed)
    program = rng.integers(PROGRAMS, size=(N_CELLS, 2))
    place, batch = rng.normal(size=(N_CELLS, 2)), rng.integers(2, size=N_CELLS)
    parts, truth = {}, {}
    for name, own, other, n_features in (("rna", 0, 1, N_GENES), ("atac", 1, 0, N_PEAKS)):
        effect = rng.normal(size=(2, PROGRAMS, n_features)) * (rng.random(n_features) < 0.3)
        eta = STRENGTH[0] * effect[0, program[:, own]] + STRENGTH[1] * effect[1, program[:, other]]
        eta += 0.3 * place @ (rng.normal(size=(2, n_features)) * (rng.random(n_features) < 0.2))
        eta += rng.normal(0, 1.0, n_features) + 0.3 * rng.normal(size=(2, n_features))[batch]
        share = np.exp(eta)
        share /= share.sum(1, keepdims=True)
        rate = DEPTH[name] * rng.lognormal(0.0, 0.4, size=(N_CELLS, 1)) * share
        if name == "rna":
            rate = rng.gamma(3.0, rate / 3.0)
        parts[name] = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
        parts[name].var_names = [f"{name}_{i}" for i in range(n_features)]
        truth[name] = share
    types = pd.Categorical([f"{a}{b}" for a, b in program])
    third = rng.permutation(np.arange(N_CELLS) % 3)
    names = np.array([f"cell{i}" for i in range(N_CELLS)])
    for name, lacking in (("rna", 1), ("atac", 2)):
        parts[name].obs_names = names
        parts[name].obs["batch"] = pd.Categorical(batch.astype(str))
        parts[name] = parts[name][third != lacking].copy()
    mdata = md.MuData(parts)
    order = mdata.obs_names.str.removeprefix("cell").astype(int).to_numpy()
    mdata.obs["type"], mdata.obs["batch"] = types[order], pd.Categorical(batch[order].astype(str))
    mdata.obs["lacks"] = pd.Categorical(np.array(["", "rna", "atac"])[third[order]])
    return mdata, {name: share[order] for name, share in truth.items()}


def run(seed: int) -> dict[str, object]:
    """Fit the cells together and each modality alone, and score them."""
    mdata, truth = simulate(seed)
    parts = {name: part.copy() for name, part in mdata.mod.items()}
    start = time.perf_counter()
    vx.tl.fit_vae(mdata, modalities={"rna": "nb", "atac": "bernoulli"}, batch_key="batch", rng=seed, denoised=False)
    seconds = time.perf_counter() - start
    both, types = (mdata.obs["lacks"] == "").to_numpy(), mdata.obs["type"].astype(str).to_numpy()
    latents = {"joint": mdata.obsm["X_vae"][both]}
    for name, likelihood in (("rna", "nb"), ("atac", "bernoulli")):
        alone = parts[name]
        vx.tl.fit_vae(alone, likelihood=likelihood, batch_key="batch", rng=seed, denoised=False)
        latents[name] = alone[mdata.obs_names[both]].obsm["X_vae"]
    found: dict[str, object] = {
        "seconds": seconds,
        "agreement": {name: agreement(z, types[both]) for name, z in latents.items()},
        "all cells": agreement(mdata.obsm["X_vae"], types),
    }
    for name in ("rna", "atac"):
        found[f"imputed {name}"] = imputed(mdata, truth, name)
    return found


def imputed(mdata: md.MuData, truth: dict[str, np.ndarray], name: str) -> dict[str, float]:
    """Score imputed values of the cells that lack a modality against the true log shares, next to the mean of their batch."""
    vx.tl.impute(mdata, name)
    value = mdata.obsm[f"vae_{name}"].to_numpy()
    if name == "atac":  # from the probability of a detection to the rate
        value = -np.log1p(-value.clip(0, 1 - 1e-6))
    lacks, batch = (mdata.obs["lacks"] == name).to_numpy(), mdata.obs["batch"].to_numpy()
    part, floor = mdata.mod[name], np.empty_like(value)
    for code in np.unique(batch):
        floor[batch == code] = np.asarray(part[(part.obs["batch"] == code).to_numpy()].X.sum(0)) + 0.5
    wanted, errors = np.log(truth[name][lacks]), {}
    for what, guess in (("imputed", value[lacks]), ("batch mean", floor[lacks])):
        error = wanted - np.log(guess.clip(1e-9))
        # on the scale of the shares of a cell
        errors[what] = error - error.mean(1, keepdims=True)
    mean, of_floor = (float((error**2).mean()) for error in errors.values())
    within = []
    for code in np.unique(batch):
        rows = batch[lacks] == code
        guess = np.log(value[lacks][rows].clip(1e-9))
        within += [np.corrcoef(guess[:, j], wanted[rows][:, j])[0, 1] for j in range(value.shape[1])]
    return {
        "squared error": mean,
        "squared error of the batch mean": of_floor,
        "explained": 1.0 - mean / of_floor,
        "correlation within batches": float(np.mean(within)),
    }


def main() -> None:
    """Run all seeds and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    sc.settings.verbosity = 1
    found = {str(seed): run(seed) for seed in args.seeds}
    print(json.dumps(found, indent=1))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    _versions.stamp("multiome")


if __name__ == "__main__":
    main()
