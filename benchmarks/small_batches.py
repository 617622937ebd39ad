"""Evaluate how many cells a batch needs: decoding under it compared with leaving it out.

    python benchmarks/small_batches.py

A batch of a real data set is reduced to a few cells, the others are unchanged, and the model is fitted at its defaults with
all of them. All cells are then decoded under that batch. The truth is the decoding of a fit of the whole data set under the
whole batch, averaged over three seeds. The error is the share of the molecules that are on another gene (half the sum of
absolute differences of shares, averaged over cells). Three cases are compared:

* ``own``: decoding under the small batch itself;
* ``others``: the average over the other batches of the same fit, which equals leaving the small batch out;
* ``floor``: the whole batch, fitted with another seed.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import scanpy as sc
from _sets import load
from _versions import stamp
from anndata import AnnData

import vxpress as vx

HERE = Path(__file__).parent
SIZES = (1, 3, 5, 10, 20, 30, 100)
N_GENES = 1_000


def decoded(adata: AnnData, cells: AnnData, under: list[str]) -> np.ndarray:
    """Decode the shares of every gene in some cells under these batches with the fit in ``adata``."""
    query = cells.copy()
    vx.tl.encode(query, adata)
    vx.tl.denoise(query, transform_batch=under, target_sum=1.0)
    return np.asarray(query.layers["vae_normalized"], dtype=np.float64)


def error(shares: np.ndarray, truth: np.ndarray) -> float:
    """Compute the share of molecules on another gene, averaged over cells."""
    return float(np.abs(shares - truth).sum(1).mean() / 2)


def fitted(adata: AnnData, seed: int) -> AnnData:
    """Fit at the defaults."""
    adata = adata.copy()
    vx.tl.fit_vae(adata, "batch", rng=seed, denoised=False)
    return adata


def measure(name: str, n_batches: int, seeds: list[int]) -> list[dict[str, object]]:
    """Compute the errors of one data set, a record per batch, size and seed."""
    whole, cells = load(name)
    dense = np.asarray(whole.X.sum(0)).ravel()
    genes = np.sort(np.argsort(-dense)[:N_GENES])
    whole, cells = whole[:, genes].copy(), cells[:, genes].copy()
    sizes = whole.obs["batch"].value_counts()
    chosen = list(sizes.index[:n_batches])
    references = [fitted(whole, seed) for seed in (100, 101, 102)]
    other = fitted(whole, 103)
    rows = []
    for batch in chosen:
        truth = np.mean([decoded(reference, cells, [batch]) for reference in references], axis=0)
        floor = error(decoded(other, cells, [batch]), truth)
        own = np.flatnonzero((whole.obs["batch"] == batch).to_numpy())
        for seed in seeds:
            order = np.random.default_rng(seed).permutation(own)
            for size in SIZES:
                kept = np.ones(whole.n_obs, dtype=bool)
                kept[order[size:]] = False
                small = fitted(whole[kept], seed)
                n_train = int(((small.obs["batch"] == batch) & (small.obs["vae_split"] == "train")).sum())
                rows.append(
                    {
                        "set": name,
                        "batch": batch,
                        "seed": seed,
                        "n_train": n_train,
                        "own": error(decoded(small, cells, [batch]), truth),
                        "others": error(decoded(small, cells, [b for b in sizes.index if b != batch]), truth),
                        "floor": floor,
                    }
                )
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Print the records and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["pbmc_3studies", "kang_ctrl"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--batches", type=int, default=2, help="number of batches to reduce, largest first")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    sc.settings.verbosity = 0
    rows = [row for name in args.sets for row in measure(name, args.batches, args.seeds)]
    (HERE / "results" / "small_batches.json").write_text(json.dumps(rows, indent=1) + "\n")
    stamp("small_batches")


if __name__ == "__main__":
    main()
