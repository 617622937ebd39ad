"""How many cells must stand out for a gene to be highly variable.

    python benchmarks/genes.py --sets paul15 cite kang_ctrl worm      # where the default was set
    python benchmarks/genes.py --sets pbmc3k kang pbmc_3studies
    python benchmarks/genes.py --sets pbmc3k --deal 8 --out genes_dealt       # a rare type spread over batches

2,000 genes of at most 4,000 cells by ``vx.pp.highly_variable_genes(min_cells=...)``, a default fit on them, and leiden's
agreement with the labels.  A gene is *lone* if one cell has ten molecules or more and all others less than a fifth of that.
*rare* is the share that is chosen of the markers of types with 3 to 30 cells, wherever these lie: of the genes that half of
the type's cells have, and at most a fifth of that share elsewhere, the 20 that are rarest elsewhere.
"""

from __future__ import annotations

import warnings
from argparse import ArgumentParser, Namespace

import anndata as ad
import numpy as np
import pandas as pd
from _sets import DATA, SETS
from _speed import machine, save, set_threads
from compare import structure
from scipy import sparse

import vxpress as vx

MAX_CELLS, N_GENES = 4_000, 2_000


def cells_of(name: str, seed: int, deal: int = 0) -> ad.AnnData:
    """Labelled cells of a set, all genes that are seen in three of them or more; ``deal`` makes that many batches of them."""
    which = SETS[name]
    adata = ad.read_h5ad(DATA / f"{which.file}.h5ad")
    known = np.flatnonzero(adata.obs[which.labels].notna().to_numpy())
    adata = adata[np.sort(np.random.default_rng(seed).permutation(known)[:MAX_CELLS])]
    obs = pd.DataFrame({"type": adata.obs[which.labels].astype(str)}, index=adata.obs_names)
    if which.batch is not None:
        obs["batch"] = adata.obs[which.batch].astype(str).astype("category")
    if deal:
        obs["batch"] = pd.Categorical(np.random.default_rng(seed).integers(deal, size=len(obs)).astype(str))
    x = sparse.csr_matrix(adata.X)
    genes = x.getnnz(axis=0) >= 3
    return ad.AnnData(x[:, genes], obs=obs, var=adata.var.loc[genes, []])


def n_lone(x: sparse.csr_matrix) -> int:
    """Genes that one cell has ten molecules of or more, and every other less than a fifth as many."""
    second, first = np.partition(x.toarray(), -2, axis=0)[-2:]
    return int(((first >= 10) & (first > 5 * np.maximum(second, 1))).sum())


def rare_markers(adata: ad.AnnData) -> np.ndarray:
    """Names of the markers of types with few cells."""
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


def run(name: str, seed: int, min_cells: int, deal: int) -> dict[str, float]:
    """One choice of genes, one fit and its scores."""
    adata = cells_of(name, seed, deal)
    batch = "batch" if "batch" in adata.obs else None
    markers = rare_markers(adata)
    vx.pp.highly_variable_genes(
        adata, n_top_genes=min(N_GENES, adata.n_vars), batch_key=batch, min_cells=min_cells, subset=True
    )
    adata = adata[np.asarray(adata.X.sum(1)).ravel() >= 5].copy()
    vx.tl.fit_vae(adata, batch, rng=seed, denoised=False)
    found = structure(adata.obsm["X_vae"], adata.obs["type"], adata.obs["batch"] if batch else None)
    rare = float(np.isin(markers, adata.var_names).mean()) if len(markers) else float("nan")
    return {"lone": n_lone(adata.X), "rare": rare, **found}


def main(args: Namespace) -> None:
    """Print a row per set and number of cells, and write them as JSON."""
    warnings.filterwarnings("ignore")
    rows = []
    for name in args.sets:
        for min_cells in args.min_cells:
            runs = []
            for seed in args.seeds:
                # numba raises torch's count as it builds the neighbour graph
                set_threads(args.threads)
                runs.append(run(name, seed, min_cells, args.deal))
            mean = {key: float(np.mean([r[key] for r in runs])) for key in runs[0]}
            rows.append({"set": name, "min_cells": min_cells, **mean, "each_ARI": [round(r["ARI"], 3) for r in runs]})
            print(rows[-1], flush=True)
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format))
    print(save(args.out, {"machine": machine(), "rows": rows}))


if __name__ == "__main__":
    options = ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sets", nargs="+", default=[k for k, v in SETS.items() if v.labels])
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--min-cells", nargs="+", type=int, default=[1, 2, 3, 5, 10])
    options.add_argument("--deal", type=int, default=0, help="deal the cells into so many batches at random")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", default="genes")
    main(options.parse_args())
