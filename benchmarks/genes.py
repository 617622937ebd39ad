"""Evaluate in how many cells a gene must be variable (``min_cells``).

    python benchmarks/genes.py --sets paul15 cite kang_ctrl worm      # for choosing the default
    python benchmarks/genes.py --sets pbmc3k kang pbmc_3studies
    python benchmarks/genes.py --sets pbmc3k --deal 8 --out genes_dealt       # a rare type spread over batches

2,000 genes of at most 4,000 cells by ``vx.pp.highly_variable_genes(min_cells=...)``, a default fit on them, and agreement of
its neighbours and clusters with the labels (``_integration.py``). A gene is *lone* if one cell has ten molecules or more and all others less than a fifth of
that. *rare* is the chosen share of the markers of types with 3 to 30 cells. Markers are genes that half of the cells of the
type express and at most a fifth of that share of other cells; of these, the 20 that are rarest in other cells.
"""

from __future__ import annotations

import warnings
from argparse import ArgumentParser, Namespace

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from _integration import structure
from _paired import of_values
from _sets import SETS, labelled
from _speed import mean_scores, save
from scipy import sparse

import vxpress as vx

MAX_CELLS, N_GENES = 4_000, 2_000


def cells_of(name: str, seed: int, deal: int = 0, max_cells: int = MAX_CELLS) -> ad.AnnData:
    """Read labelled cells and all genes seen in three or more of them; ``deal`` assigns the cells to so many batches."""
    adata = labelled(name)
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    adata = adata[np.sort(order[:max_cells])].copy()
    if deal:
        adata.obs["batch"] = pd.Categorical(np.random.default_rng(seed).integers(deal, size=adata.n_obs).astype(str))
    sc.pp.filter_genes(adata, min_cells=3)
    return adata


def n_lone(x: sparse.csr_matrix) -> int:
    """Find genes with ten molecules or more in one cell and less than a fifth of that in every other cell."""
    second, first = np.partition(x.toarray(), -2, axis=0)[-2:]
    return int(((first >= 10) & (first > 5 * np.maximum(second, 1))).sum())


def rare_markers(adata: ad.AnnData) -> np.ndarray:
    """Find the markers of types with few cells."""
    seen = sparse.csr_matrix(adata.X > 0, dtype=np.float64)
    found: set[str] = set()
    for name, n in adata.obs["type"].value_counts().items():
        if 3 <= n <= 30:
            of_type = (adata.obs["type"] == name).to_numpy()
            share, elsewhere = (np.asarray(seen[rows].mean(axis=0)).ravel() for rows in (of_type, ~of_type))
            genes = np.flatnonzero((share >= 0.5) & (elsewhere < 0.2 * share))
            best = genes[np.argsort(elsewhere[genes] / share[genes], kind="stable")[:20]]
            found |= set(adata.var_names[best])
    return np.array(sorted(found), dtype=object)


def run(name: str, seed: int, min_cells: int, args: Namespace) -> dict[str, float]:
    """Choose genes, fit once and score the fit."""
    adata = cells_of(name, seed, args.deal, args.max_cells)
    batch = "batch" if "batch" in adata.obs else None
    markers = rare_markers(adata)
    vx.pp.highly_variable_genes(
        adata, n_top_genes=min(args.n_genes, adata.n_vars), batch_key=batch, min_cells=min_cells, subset=True
    )
    adata = adata[np.asarray(adata.X.sum(1)).ravel() >= 5].copy()
    vx.tl.fit_vae(adata, batch, rng=seed, denoised=False)
    found = structure(adata.obsm["X_vae"], adata.obs["type"], adata.obs["batch"] if batch else None)
    rare = float(np.isin(markers, adata.var_names).mean()) if len(markers) else float("nan")
    return {"lone": n_lone(adata.X), "rare": rare, **found}


def main(args: Namespace) -> None:
    """Print a row per data set and number of cells with the difference from the first number; write the rows as JSON."""
    warnings.filterwarnings("ignore")
    rows = []
    for name in args.sets:
        of_set = []
        for min_cells in args.min_cells:
            scores = mean_scores(lambda seed, n=name, m=min_cells: run(n, seed, m, args), args.seeds, args.threads)
            of_set.append({"set": name, "min_cells": min_cells, "seeds": len(args.seeds)} | scores)
            print(of_set[-1], flush=True)
        for row in of_set[1:]:
            for metric in ("purity", "ARI best"):
                change = of_values(np.subtract(row["each"][metric], of_set[0]["each"][metric]))
                print(f"{metric} less that of the first: {change.text()}")
        rows += of_set
    print(pd.DataFrame(rows).drop(columns="each").to_string(index=False, float_format="{:.3f}".format))
    print(save(args.out, {"rows": rows}))


if __name__ == "__main__":
    options = ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sets", nargs="+", default=[k for k, v in SETS.items() if v.labels])
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--min-cells", nargs="+", type=int, default=[1, 2, 3, 5, 10])
    options.add_argument("--deal", type=int, default=0, help="assign the cells to this many batches at random")
    options.add_argument("--max-cells", type=int, default=MAX_CELLS)
    options.add_argument("--n-genes", type=int, default=N_GENES)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", default="genes")
    main(options.parse_args())
