"""CITE-seq cells of the benchmark of proteins: which cells choose the design, which are reported, which proteins are hidden.

One data set has raw proteins, so its cells are divided: one random half of the batch with proteins is for tuning. The other half
and the batch without proteins are for the report; no design was chosen on them. In either part, the proteins of a random
share of the cells are hidden; these cells are a batch of their own for all models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import anndata as ad
import numpy as np
import scanpy as sc
from _sets import DATA
from scipy import sparse

FILE, MEASURED = "pbmc_cite_10k_5k", "PBMC10k"
N_GENES = 2_000
SHOWN, HIDDEN = "shown", "hidden"
# share of the cells with proteins whose proteins are hidden
HIDDEN_SHARE = {"tune": 1 / 3, "report": 1 / 2}


@dataclass(frozen=True)
class Cite:
    """Counts of RNA (n, g) and proteins (n, p), batches, types, and which cells show their proteins to a model."""

    x: sparse.csr_matrix
    y: np.ndarray
    batch: np.ndarray
    types: np.ndarray
    proteins: np.ndarray
    genes: np.ndarray

    @property
    def shown_n(self) -> np.ndarray:
        """Cells whose proteins a model sees."""
        return self.batch == SHOWN

    @property
    def hidden_n(self) -> np.ndarray:
        """Cells whose proteins are hidden and scored."""
        return self.batch == HIDDEN

    @property
    def y_shown(self) -> np.ndarray:
        """Proteins as a model sees them: zeros where they are hidden or were not measured."""
        return np.where(self.shown_n[:, None], self.y, 0.0)


def load(part: Literal["tune", "report"], n_genes: int = N_GENES) -> Cite:
    """Return the cells of a part."""
    adata = ad.read_h5ad(DATA / f"{FILE}.h5ad")
    batch = adata.obs["batch"].astype(str).to_numpy()
    measured = np.flatnonzero(batch == MEASURED)
    rng = np.random.default_rng(0)
    order = rng.permutation(measured)
    half = len(order) // 2
    mine = order[:half] if part == "tune" else order[half:]
    n_hidden = round(HIDDEN_SHARE[part] * len(mine))
    label = np.full(adata.n_obs, "", dtype=object)
    label[mine], label[mine[:n_hidden]] = SHOWN, HIDDEN
    if part == "report":
        label[batch != MEASURED] = "other"
    adata.obs["part"] = label.astype(str)
    adata = adata[label != ""].copy()
    sc.pp.filter_genes(adata, min_cells=3)
    sc.experimental.pp.highly_variable_genes(
        adata, flavor="pearson_residuals", n_top_genes=n_genes, batch_key="part", check_values=False
    )
    adata = adata[:, adata.var["highly_variable"]].copy()
    return Cite(
        sparse.csr_matrix(adata.X, dtype=np.float32),
        np.asarray(adata.obsm["protein_expression"], dtype=np.float32),
        adata.obs["part"].astype(str).to_numpy(),
        adata.obs["cell_type"].astype(str).to_numpy(),
        np.asarray(adata.uns["protein_names"], dtype=str),
        np.asarray(adata.var_names, dtype=str),
    )
