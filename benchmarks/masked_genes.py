"""Hide half of the genes in test cells: ``vx.tl.encode`` without them compared with zeros instead.

    python benchmarks/masked_genes.py

The 30 nearest fitted cells of a cell are found from its latent mean with all genes. The table gives the share of these that
is found again without the hidden genes. Every seed makes a new fit and hides other genes; intervals are of the mean gain
over seeds (Student's t). ``variance`` is the posterior variance divided by that with all genes, ``calibration`` the squared
distance between the two means divided by the variance added (1 if it is neither too wide nor too narrow), ``library`` the
median ratio of the estimated to the true library. Seconds are processor time. Writes
``benchmarks/results/masked_genes.json``.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _sets import SETS, load
from _versions import stamp
from scipy import sparse, stats
from sklearn.neighbors import NearestNeighbors

import vxpress as vx

N_NEIGHBORS = 30


def recovered(reference_nd: np.ndarray, true_nd: np.ndarray, found_nd: np.ndarray) -> float:
    """Compute the share of neighbours by the first latent space that are neighbours by the second."""
    near = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(reference_nd)
    pairs = zip(*(near.kneighbors(z, return_distance=False) for z in (true_nd, found_nd)), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in pairs]) / N_NEIGHBORS)


def run(name: str, seed: int, hidden: float) -> dict[str, object]:
    """Make one fit and hide one set of genes."""
    reference, query = load(name)
    vx.tl.fit_vae(reference, "batch" if SETS[name].batch else None, denoised=False, rng=seed)
    order = np.random.default_rng(seed).permutation(query.n_vars)
    is_hidden = np.isin(np.arange(query.n_vars), order[: round(hidden * query.n_vars)])
    zeros = query.copy()
    zeros.X = sparse.csr_matrix(query.X.multiply(~is_hidden))
    masked = query[:, ~is_hidden].copy()
    vx.tl.encode(query, reference)
    vx.tl.encode(zeros, reference)
    start = time.process_time()
    vx.tl.encode(masked, reference)
    seconds = time.process_time() - start
    z_ref, z_full, z_masked = (part.obsm["X_vae"] for part in (reference, query, masked))
    v_full, v_masked = query.obsm["X_vae_var"], masked.obsm["X_vae_var"]
    # dimensions without information do not count
    used = v_full.mean(0) < 0.9
    moved = np.square(z_masked - z_full)[:, used].mean(0) / (v_masked - v_full)[:, used].mean(0)
    return {
        "set": name,
        "seed": seed,
        "zeros": recovered(z_ref, z_full, zeros.obsm["X_vae"]),
        "masked": recovered(z_ref, z_full, z_masked),
        "variance": float(v_masked.mean() / v_full.mean()),
        "calibration": float(moved.mean()),
        "library": float(np.median(masked.obs["vae_library"] / query.obs["vae_library"])),
        "seconds": seconds,
    }


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Compute means over seeds, and the interval of the gain."""
    rows = []
    for name, part in runs.groupby("set", sort=False):
        gain = (part["masked"] - part["zeros"]).to_numpy()
        row = {"set": name, "seeds": len(part)} | part.drop(columns=["set", "seed"]).mean().to_dict()
        half = stats.t.ppf(0.975, len(gain) - 1) * stats.sem(gain) if len(gain) > 1 else np.nan
        rows.append(row | {"gain": gain.mean(), "low": gain.mean() - half, "high": gain.mean() + half})
    return pd.DataFrame(rows)


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=[k for k, v in SETS.items() if v.purpose == "report"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--hidden", type=float, default=0.5)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    runs = [run(name, seed, args.hidden) for name in args.sets for seed in args.seeds]
    table = summary(pd.DataFrame(runs))
    print(table.to_string(index=False, float_format="{:.3f}".format))
    out = Path(__file__).parent / "results" / "masked_genes.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"runs": runs, "summary": table.to_dict("records")}, indent=1) + "\n")
    stamp("masked_genes", ("runs", "summary"))


if __name__ == "__main__":
    main()
