"""Cells, genes and given labels of the annotation benchmark, the same for every method, and the scores of predictions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from _sets import DATA
from scipy import sparse
from sklearn.metrics import accuracy_score, f1_score

import vxpress as vx

# file, batches and labels
SETS = {
    "pbmc3k": ("pbmc3k_raw", None, "cell_type"),
    "kang": ("kang_ifnb", "batch", "cell_type_coarse"),
    "pbmc_3studies": ("pbmc_3studies_v1", "batch", "cell_type"),
    "pancreas": ("pancreas_human_mouse_baron350", "batch", "cell_type"),
    "onek1k": ("onek1k_donors", "batch", "cell_type"),
    # for tuning
    "paul15": ("paul15", None, "cell_type"),
    "cite": ("pbmc_cite_10k_5k", "batch", "cell_type"),
    "kang_ctrl": ("kang_ctrl_8donors", "batch", "cell_type"),
    "worm": ("worm_l2_neurons", "batch", "cell_type"),
}
REPORTED = ("pbmc3k", "kang", "pbmc_3studies", "pancreas", "onek1k")
MAX_CELLS, N_GENES = 2_500, 1_000
# shares of cells with a label, and half of the batches labelled
SCENARIOS = ("10 %", "30 %", "batches")
NO_LABEL = "Unknown"
# labels with fewer cells to predict say too little about coverage
FEWEST = 30


@cache
def load(name: str) -> ad.AnnData:
    """Read the labelled cells, with labels in ``obs["type"]`` and batches, if there are any, in ``obs["batch"]``."""
    file, batch, labels = SETS[name]
    adata = ad.read_h5ad(DATA / f"{file}.h5ad")
    known = adata.obs[labels].notna() & (adata.obs[labels].astype(str) != "nan")
    columns = {"type": adata.obs[labels].astype(str)} | (
        {} if batch is None else {"batch": adata.obs[batch].astype(str)}
    )
    obs = pd.DataFrame(columns)[known.to_numpy()].astype("category")
    adata = ad.AnnData(sparse.csr_matrix(adata[known.to_numpy()].X), obs=obs, var=adata.var[[]])
    if adata.n_obs > MAX_CELLS:
        adata = adata[np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:MAX_CELLS])].copy()
    sc.pp.filter_genes(adata, min_cells=3)
    if adata.n_vars > N_GENES:
        sc.experimental.pp.highly_variable_genes(
            adata,
            flavor="pearson_residuals",
            n_top_genes=N_GENES,
            batch_key=None if batch is None else "batch",
            check_values=False,
        )
        adata = adata[:, adata.var["highly_variable"]].copy()
    sc.pp.filter_cells(adata, min_counts=5)
    adata.uns, adata.obsm = {}, {}
    adata.var = adata.var[[]]
    return adata


def given(name: str, scenario: str, seed: int) -> np.ndarray | None:
    """Return which cells have a label; None if the scenario does not apply. Every label keeps two cells, as far as it has more."""
    adata, rng = load(name), np.random.default_rng([seed, SCENARIOS.index(scenario)])
    if scenario == "batches":
        if "batch" not in adata.obs:
            return None
        batch_n = adata.obs["batch"].astype(str).to_numpy()
        batches = np.unique(batch_n)
        return np.isin(batch_n, rng.permutation(batches)[: len(batches) // 2])
    given_n = rng.random(adata.n_obs) < float(scenario.split(maxsplit=1)[0]) / 100
    for label in adata.obs["type"].cat.categories:
        rows = np.flatnonzero(adata.obs["type"] == label)
        least = min(2, len(rows) - 1)
        if given_n[rows].sum() < least:
            given_n[rng.choice(rows, least, replace=False)] = True
    return given_n


def tasks(names: list[str], seeds: list[int]) -> Iterator[tuple[str, str, int, np.ndarray]]:
    """Yield data set, scenario, seed and the cells with a label."""
    for seed in seeds:
        for name in names:
            for scenario in SCENARIOS:
                given_n = given(name, scenario, seed)
                if given_n is not None:
                    yield name, scenario, seed, given_n


def log_normalised(adata: ad.AnnData) -> np.ndarray:
    """Return log1p of counts scaled to 10,000 per cell, dense."""
    x = adata.X.toarray()
    return np.log1p(1e4 * x / x.sum(1, keepdims=True)).astype(np.float32)


def scores(prob_nc: np.ndarray, names: list[str], truth_n: np.ndarray) -> dict[str, float]:
    """Score probabilities; a label that was given to no cell can only be missed."""
    code_n = pd.Index(names).get_indexer(truth_n)
    best_n = np.array(names, dtype=object)[prob_nc.argmax(1)]
    return {
        "accuracy": float(accuracy_score(truth_n, best_n)),
        "macro_f1": float(f1_score(truth_n, best_n, average="macro", zero_division=0)),
        "calibration_error": vx.metrics.expected_calibration_error(prob_nc, code_n),
    }
