"""Cells of the benchmarks of predicted perturbations: one group's treated cells are kept apart, the rest is for all models."""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import scanpy as sc
from _sets import DATA
from scipy import sparse

# molecules of the scale of all scores
PER = 1e4


@dataclass(frozen=True)
class Response:
    """A data set with control and treated cells of several groups."""

    file: str
    groupby: str
    control: str
    target: str
    batch: str | None
    purpose: str
    without: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


RESPONSES = {
    "kang": Response("kang_ifnb", "cell_type_coarse", "ctrl", "stim", "batch", "report", without=("Megakaryocytes",)),
    # one cell type at a finer level, as in the notebook of scvi-tools
    "kang_cd4": Response(
        "kang_ifnb", "cell_type", "ctrl", "stim", "batch", "report", without=("Megakaryocytes",), only=("CD4 T cells",)
    ),
    "glioblastoma": Response("glioblastoma_panobinostat", "patient", "ctrl", "panobinostat", None, "tune"),
}


@dataclass(frozen=True)
class Fold:
    """The cells that models see, and the treated cells of the held-out group; the same genes."""

    name: str
    held_out: str
    seen: ad.AnnData
    treated: ad.AnnData

    @property
    def control(self) -> ad.AnnData:
        """Control cells of the held-out group."""
        obs = self.seen.obs
        return self.seen[(obs["group"] == self.held_out) & (obs["condition"] == RESPONSES[self.name].control)]


def cells_of(name: str) -> ad.AnnData:
    """Return all cells with ``obs["group"]``, ``obs["condition"]`` and, if there are batches, ``obs["batch"]``."""
    which = RESPONSES[name]
    adata = ad.read_h5ad(DATA / f"{which.file}.h5ad")
    adata.uns = {}
    adata.obs["group"] = adata.obs[which.groupby].astype(str)
    adata = adata[~adata.obs["group"].isin(which.without)].copy()
    keep = {"group": adata.obs["group"], "condition": adata.obs["condition"].astype(str)}
    if which.batch is not None:
        keep["batch"] = adata.obs[which.batch].astype(str)
    return ad.AnnData(
        sparse.csr_matrix(adata.X, dtype=np.float32),
        obs=adata.obs[[]].assign(**keep).astype("category"),
        var=adata.var[[]],
    )


def groups_of(name: str) -> list[str]:
    """Return the groups that are held out in turn."""
    return list(RESPONSES[name].only) or list(cells_of(name).obs["group"].cat.categories)


def fold(name: str, held_out: str) -> Fold:
    """Keep the treated cells of a group apart; genes are those in at least 20 of the other cells."""
    adata, target = cells_of(name), RESPONSES[name].target
    apart = ((adata.obs["group"] == held_out) & (adata.obs["condition"] == target)).to_numpy()
    seen = adata[~apart].copy()
    sc.pp.filter_genes(seen, min_cells=20)
    return Fold(name, held_out, seen, adata[apart, seen.var_names].copy())


def logged(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return log1p(1e4 x / l) with l the sum over the genes."""
    out = sparse.csr_matrix(x, dtype=np.float32, copy=True)
    total = np.maximum(np.asarray(out.sum(1)).reshape(-1), 1.0)
    out.data = np.log1p(out.data * np.repeat(PER / total, np.diff(out.indptr))).astype(np.float32)
    return out
