"""Real data sets of the benchmarks, prepared in one place so that every model sees the same cells and genes.

A data set is a raw count matrix on disk. Test cells are drawn once per data set; no fit sees them. Genes are chosen
on the other cells by Pearson residuals, independently of all models. The library size of a cell is the sum over
these genes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse

from vxpress.core.split import split_cells

DATA = Path(os.environ.get("VXPRESS_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
TEST_FRACTION = 0.2


@dataclass(frozen=True)
class DataSet:
    """File of a data set, columns of its batches and labels, and its purpose."""

    file: str
    batch: str | None
    labels: str | None
    purpose: str
    max_cells: int = 4_000
    n_genes: int = 2_000


SETS = {
    "pbmc3k": DataSet("pbmc3k_raw", None, "cell_type", "report"),
    "kang": DataSet("kang_ifnb", "batch", "cell_type_coarse", "report"),
    "pbmc_3studies": DataSet("pbmc_3studies_v1", "batch", "cell_type", "report"),
    "paul15": DataSet("paul15", None, "cell_type", "tune"),
    "cite": DataSet("pbmc_cite_10k_5k", "batch", "cell_type", "tune"),
    "glioblastoma": DataSet("glioblastoma_panobinostat", "batch", None, "tune"),
    "kang_ctrl": DataSet("kang_ctrl_8donors", "batch", "cell_type", "tune"),
    "worm": DataSet("worm_l2_neurons", "batch", "cell_type", "tune"),
}


def split(name: str, adata: ad.AnnData, fraction: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw training and validation rows of the cells to fit, as ``vx.tl.fit_vae(split_rng=seed)`` does."""
    codes = None
    if SETS[name].batch is not None:
        codes = adata.obs["batch"].cat.codes.to_numpy().astype(np.int64)[:, None]
    return split_cells(adata.n_obs, fraction, np.random.default_rng(seed), codes)


def labelled(name: str) -> ad.AnnData:
    """Read the labelled cells of a data set, all genes; labels in ``obs["type"]`` and batches, if any, in ``obs["batch"]``."""
    which = SETS[name]
    adata = ad.read_h5ad(DATA / f"{which.file}.h5ad")
    label = adata.obs[which.labels]
    adata = adata[label.notna() & (label.astype(str) != "nan")]
    columns = {"type": adata.obs[which.labels].astype(str)}
    if which.batch is not None:
        columns["batch"] = adata.obs[which.batch].astype(str)
    return ad.AnnData(sparse.csr_matrix(adata.X), obs=pd.DataFrame(columns).astype("category"), var=adata.var[[]])


def load(name: str) -> tuple[ad.AnnData, ad.AnnData]:
    """Return the cells to fit and the test cells of a data set, on the same genes."""
    which = SETS[name]
    adata = ad.read_h5ad(DATA / f"{which.file}.h5ad")
    rng = np.random.default_rng(0)
    if adata.n_obs > which.max_cells:
        adata = adata[np.sort(rng.permutation(adata.n_obs)[: which.max_cells])].copy()
    order = rng.permutation(adata.n_obs)
    n_test = round(TEST_FRACTION * adata.n_obs)
    test = adata[np.sort(order[:n_test])].copy()
    fit = adata[np.sort(order[n_test:])].copy()
    sc.pp.filter_genes(fit, min_cells=3)
    if fit.n_vars > which.n_genes:
        sc.experimental.pp.highly_variable_genes(
            fit, flavor="pearson_residuals", n_top_genes=which.n_genes, batch_key=which.batch, check_values=False
        )
        fit = fit[:, fit.var["highly_variable"]].copy()
    test = test[:, fit.var_names].copy()
    # cells with very few molecules are uninformative, and scvi-tools has no log library size for empty ones
    for part in (fit, test):
        sc.pp.filter_cells(part, min_counts=5)
        part.uns, part.obsm = {}, {}
        if which.batch is not None:
            part.obs["batch"] = part.obs[which.batch].astype(str).astype("category")
    return fit, test
