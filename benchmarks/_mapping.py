"""Reference and query of the mapping benchmarks. A whole batch is held out, and genes are chosen without it."""

from __future__ import annotations

import anndata as ad
import numpy as np
import scanpy as sc
from _sets import DATA, SETS
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

MAX_REFERENCE, MAX_QUERY, N_GENES = 2_000, 1_000, 2_000
N_NEIGHBORS = 15
# data set -> number of batches that are held out, one at a time, largest first
HELD_OUT: dict[str, int] = {"pbmc_3studies": 3, "kang_ctrl": 1, "cite": 1}


def read(name: str) -> ad.AnnData:
    """Read all labelled cells of a data set, with ``batch`` and ``label`` as strings."""
    which = SETS[name]
    adata = ad.read_h5ad(DATA / f"{which.file}.h5ad")
    adata = adata[adata.obs[which.labels].notna()].copy()
    adata.obs = adata.obs[[which.batch, which.labels]].astype(str).set_axis(["batch", "label"], axis=1)
    adata.uns, adata.obsm, adata.varm = {}, {}, {}
    return adata


def tasks(sets: list[str]) -> list[tuple[str, str]]:
    """List pairs of data set and held-out batch: the largest batches of each data set."""
    return [(name, batch) for name in sets for batch in read(name).obs["batch"].value_counts().index[: HELD_OUT[name]]]


def load_task(name: str, held_out: str) -> tuple[ad.AnnData, ad.AnnData]:
    """Return the reference without the batch ``held_out`` and the cells of that batch, on genes chosen on the reference."""
    adata = read(name)
    rng = np.random.default_rng(0)
    is_query = (adata.obs["batch"] == held_out).to_numpy()
    parts = []
    for rows, most in ((np.flatnonzero(~is_query), MAX_REFERENCE), (np.flatnonzero(is_query), MAX_QUERY)):
        parts.append(adata[np.sort(rng.permutation(rows)[:most])].copy())
    reference, query = parts
    sc.pp.filter_genes(reference, min_cells=3)
    if reference.n_vars > N_GENES:
        sc.experimental.pp.highly_variable_genes(
            reference, flavor="pearson_residuals", n_top_genes=N_GENES, batch_key="batch", check_values=False
        )
        reference = reference[:, reference.var["highly_variable"]].copy()
    query = query[:, reference.var_names].copy()
    for part in (reference, query):
        sc.pp.filter_cells(part, min_counts=5)
        part.obs["batch"] = part.obs["batch"].astype("category")
        part.uns, part.var = {}, part.var[[]]
    return reference, query


def transfer(reference_nd: np.ndarray, labels: np.ndarray, query_nd: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Compute accuracy and macro-F1 of query labels by majority of the 15 nearest reference cells."""
    found = KNeighborsClassifier(N_NEIGHBORS).fit(reference_nd, labels).predict(query_nd)
    return {
        "accuracy": float((found == truth).mean()),
        "macro_F1": float(f1_score(truth, found, average="macro", zero_division=0)),
    }
