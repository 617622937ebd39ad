"""Data sets and scores of the integration benchmark: how well a latent space shows cell types and mixes batches.

Every method sees the same cells and genes, and every score uses the same functions. Where a data set has labels from
several sources, cells whose labels are weak (from clustering, or from a classifier) can be left out of the scores:
they are fitted, but their label is missing.
"""

from __future__ import annotations

import gc
import warnings
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from _sets import DATA, TEST_FRACTION
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

import vxpress as vx

MAX_CELLS, N_GENES = 2_500, 1_000
N_NEIGHBORS = 30
RESOLUTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class Integration:
    """A data set: file (or simulation), columns of batches, labels and condition, where the labels come from."""

    file: str
    batch: str | None
    labels: str
    source: str
    purpose: str = "report"
    condition: str | None = None
    strong: bool = False
    """Whether labels are independent of any clustering of the counts: sorting, genotype, protein, simulation."""
    scored: tuple[str, tuple[str, ...]] | None = None
    """Only cells with these values of a column keep their label."""
    max_cells: int = MAX_CELLS
    """Fitted and test cells together."""


SETS = {
    "pbmc3k": Integration("pbmc3k_raw", None, "cell_type", "clusters of PCA, named by markers"),
    "pbmc68k_reduced": Integration("", None, "bulk_labels", "correlation with sorted cells"),
    "kang": Integration("kang_ifnb", "batch", "cell_type_coarse", "authors and classifiers", condition="condition"),
    "pbmc_3studies": Integration("pbmc_3studies_v1", "batch", "cell_type", "sorting, clusters and a classifier"),
    "pbmc_3studies_sorted": Integration(
        "pbmc_3studies_v1", "batch", "cell_type", "sorting", strong=True, scored=("cell_type_source", ("FACS sort",))
    ),
    "rnamix": Integration("rnamix", "batch", "cell_type", "RNA of cell lines, mixed in known proportions", strong=True),
    "pancreas": Integration("pancreas_human_mouse_baron350", "batch", "cell_type", "authors, by clustering"),
    "onek1k": Integration("onek1k_donors", "batch", "cell_type", "authors, by a classifier"),
    "simulated": Integration("simulate", "batch", "group", "simulation", strong=True),
    "pbmc_batches": Integration("pbmc_batches", "batch", "cell_type", "simulation", strong=True),
    "pbmc3k_600": Integration("pbmc3k_raw", None, "cell_type", "clusters of PCA, named by markers", max_cells=750),
    "kang_600": Integration(
        "kang_ifnb", "batch", "cell_type_coarse", "authors and classifiers", condition="condition", max_cells=750
    ),
    "paul15": Integration("paul15", None, "cell_type", "authors, by clustering", "tune"),
    "cite": Integration("pbmc_cite_10k_5k", "batch", "cell_type_protein", "gates on proteins", "tune", strong=True),
    "kang_ctrl": Integration("kang_ctrl_8donors", "batch", "cell_type", "authors", "tune"),
    "worm": Integration("worm_l2_neurons", "batch", "cell_type", "authors, by clustering", "tune"),
    "simulated_tune": Integration("simulate", "batch", "group", "simulation", "tune", strong=True),
    "kang_ctrl_400": Integration("kang_ctrl_8donors", "batch", "cell_type", "authors", "tune", max_cells=400),
    "simulated_400": Integration("simulate", "batch", "group", "simulation", "tune", strong=True, max_cells=400),
}
# arguments of vx.datasets.simulate; other seeds and strengths for tuning
SIMULATED = {
    name: {"n_groups": 8, "library_mean": 1500, "de_fraction": 0.5, "de_log_fold_change": 1.7, **given}
    for name, given in {
        "simulated": {"n_batches": 4, "batch_strength": 0.4, "rng": 11},
        "simulated_tune": {"n_batches": 3, "batch_strength": 0.3, "rng": 7},
        "simulated_400": {"n_batches": 3, "batch_strength": 0.3, "rng": 7},
    }.items()
}


def _read(name: str) -> ad.AnnData:
    which = SETS[name]
    if which.file == "":
        return vx.datasets.pbmc68k_reduced()
    if which.file == "simulate":
        adata = vx.datasets.simulate(MAX_CELLS, N_GENES, **SIMULATED[name])
        adata.obs_names = [str(i) for i in range(adata.n_obs)]
        return adata
    if which.file == "pbmc_batches":
        return vx.datasets.pbmc_batches(MAX_CELLS, rng=3)
    return ad.read_h5ad(DATA / f"{which.file}.h5ad")


@cache
def load(name: str) -> tuple[ad.AnnData, ad.AnnData]:
    """Return the cells to fit and the test cells: at most 2,500 together, a fifth of them for testing.

    At most 1,000 genes, chosen on the cells to fit by Pearson residuals. ``obs`` holds ``batch``, ``label`` (missing
    where it is not scored) and ``condition`` if there are any.
    """
    stored = _stored(name)
    if not all(path.exists() for path in stored):
        stored[0].parent.mkdir(parents=True, exist_ok=True)
        for part, path in zip(_prepare(name), stored, strict=True):
            part.write_h5ad(path)
    fit, test = (ad.read_h5ad(path) for path in stored)
    return fit, test


def _stored(name: str) -> list[Path]:
    """Return files of the prepared cells; their names change with the description of the set."""
    described = repr((SETS[name], SIMULATED.get(name), N_GENES)).encode()
    folder = Path(__file__).parent / "cache" / "sets"
    return [folder / f"{name}-{sha256(described).hexdigest()[:8]}-{part}.h5ad" for part in ("fit", "test")]


def _prepare(name: str) -> list[ad.AnnData]:
    """Draw cells, keep what the benchmark uses, and choose genes."""
    which = SETS[name]
    adata = _read(name)
    rng = np.random.default_rng(0)
    order = rng.permutation(adata.n_obs)[: which.max_cells]
    n_test = round(TEST_FRACTION * len(order))
    test, fit = (adata[np.sort(rows)].copy() for rows in (order[:n_test], order[n_test:]))
    parts = [_plain(part, which) for part in (fit, test)]
    sc.pp.filter_genes(parts[0], min_cells=3)
    if parts[0].n_vars > N_GENES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sc.experimental.pp.highly_variable_genes(
                parts[0],
                flavor="pearson_residuals",
                n_top_genes=N_GENES,
                batch_key=None if which.batch is None else "batch",
                check_values=False,
            )
        parts[0] = parts[0][:, parts[0].var["highly_variable"]].copy()
    parts[1] = parts[1][:, parts[0].var_names].copy()
    for part in parts:
        sc.pp.filter_cells(part, min_counts=5)
        part.var = part.var[[]]
    return parts


def _plain(adata: ad.AnnData, which: Integration) -> ad.AnnData:
    """Keep counts and the columns that the benchmark uses, under its own names."""
    label = adata.obs[which.labels].astype("object")
    label = label.where(label.notna() & (label.astype(str) != "nan"))
    if which.scored is not None:
        column, values = which.scored
        label = label.where(adata.obs[column].astype(str).isin(values))
    columns = {"label": pd.Categorical(label.map(lambda value: value if pd.isna(value) else str(value)))}
    for name, column in (("batch", which.batch), ("condition", which.condition)):
        if column is not None:
            columns[name] = pd.Categorical(adata.obs[column].astype(str))
    obs = pd.DataFrame(columns, index=adata.obs_names)
    return ad.AnnData(sparse.csr_matrix(adata.X, dtype=np.float32), obs=obs, var=adata.var[[]])


@cache
def pca(name: str, n_comps: int = 30) -> np.ndarray:
    """Return the principal components of log-normalised counts of the cells to fit."""
    adata = load(name)[0].copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=min(n_comps, adata.n_obs - 1, adata.n_vars - 1), random_state=0)
    return np.asarray(adata.obsm["X_pca"])


def neighbours(latent: np.ndarray, k: int = N_NEIGHBORS) -> np.ndarray:
    """Return the ``k`` nearest other cells of each cell, (n, k)."""
    return NearestNeighbors(n_neighbors=k).fit(latent).kneighbors(return_distance=False)


def clusterings(latent: np.ndarray) -> list[np.ndarray]:
    """Return leiden clusters at every resolution of the grid."""
    adata = ad.AnnData(np.zeros((len(latent), 1), dtype=np.float32), obsm={"Z": latent})
    sc.pp.neighbors(adata, n_neighbors=15, use_rep="Z", transformer="sklearn")
    found = []
    for resolution in RESOLUTIONS:
        sc.tl.leiden(adata, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=0)
        found.append(adata.obs["leiden"].cat.codes.to_numpy().copy())
    return found


def agreement(latent: np.ndarray, found: list[np.ndarray], label: pd.Series) -> dict[str, float]:
    """Compare neighbours and clusters with labels; cells without a label are left out of the comparison."""
    known = label.notna().to_numpy()
    truth = label[known].astype(str).to_numpy()
    near = neighbours(latent[known])
    ari = [adjusted_rand_score(truth, part[known]) for part in found]
    nmi = [normalized_mutual_info_score(truth, part[known]) for part in found]
    n_labels = len(np.unique(truth))
    # the finest of the resolutions whose number of clusters is closest to that of the labels
    distance = [abs(len(np.unique(part[known])) - n_labels) for part in found]
    matched = max(i for i, d in enumerate(distance) if d == min(distance))
    kmeans = KMeans(n_labels, n_init=5, random_state=0).fit_predict(latent[known])
    return {
        "purity": float((truth[near] == truth[:, None]).mean()),
        "ARI best": max(ari),
        "NMI best": max(nmi),
        "ARI matched": ari[matched],
        "NMI matched": nmi[matched],
        "ARI KMeans": float(adjusted_rand_score(truth, kmeans)),
    }


def within_labels(latent: np.ndarray, label: pd.Series, k: int = 90, at_least: int = 100) -> tuple[np.ndarray, ...]:
    """Find the k nearest cells of the same label, the cell itself included, of every cell whose label has enough cells.

    Returns indices and distances, (n, k), and whether the row is of such a cell.
    """
    index, distance = np.tile(np.arange(len(latent))[:, None], k), np.zeros((len(latent), k), np.float32)
    known = np.zeros(len(latent), bool)
    for rows in label.groupby(label, observed=True).indices.values():
        if len(rows) >= at_least:
            far, near = NearestNeighbors(n_neighbors=k).fit(latent[rows]).kneighbors(latent[rows])
            index[rows], distance[rows], known[rows] = rows[near], far, True
    return index, distance, known


def mixing(latent: np.ndarray, label: pd.Series, batch: pd.Series) -> dict[str, float]:
    """Compute CiLISI: the mixing of batches among the cells of each label, scaled to 0 to 1, averaged over cells.

    Labels with fewer than 100 cells, or in one batch only, are left out.
    """
    from scib_metrics import lisi_knn
    from scib_metrics.nearest_neighbors import NeighborsResults

    index, distance, known = within_labels(latent, label)
    # one call for all labels: a compiled function per data set instead of one per label
    lisi = np.asarray(lisi_knn(NeighborsResults(indices=index, distances=distance), batch.astype(str).to_numpy()))
    n_batches = batch.astype(str).groupby(label, observed=True).transform("nunique").to_numpy()
    known &= n_batches > 1
    return {"CiLISI": float(((lisi - 1) / (n_batches - 1))[known].mean())} if known.any() else {}


def exact(x: np.ndarray, n_neighbors: int, **_: object):
    """Find exact neighbours for scib-metrics, the cell itself included, in place of its approximate search."""
    from scib_metrics.nearest_neighbors import NeighborsResults

    distance, index = NearestNeighbors(n_neighbors=n_neighbors).fit(x).kneighbors(x)
    return NeighborsResults(indices=index, distances=distance)


def scib(latent: np.ndarray, name: str) -> dict[str, float]:
    """Compute all metrics of the Benchmarker of scib-metrics, and its totals; without batches, only the first part."""
    from scib_metrics import nearest_neighbors
    from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation

    # kBET searches neighbours again within every label; compiling its search takes longer than all scores
    nearest_neighbors.pynndescent = exact
    obs = load(name)[0].obs
    known = obs["label"].notna().to_numpy()
    batched = "batch" in obs
    adata = ad.AnnData(np.zeros((int(known.sum()), 1), np.float32), obs=obs[known].astype(str).astype("category"))
    adata.obs["batch"] = adata.obs["batch"] if batched else pd.Categorical(["all"] * adata.n_obs)
    adata.obsm["Z"], adata.obsm["pre"] = np.ascontiguousarray(latent[known], np.float32), pca(name)[known]
    # labels in a single batch say nothing about mixing
    batched = batched and adata.obs["batch"].nunique() > 1
    bench = Benchmarker(
        adata,
        batch_key="batch",
        label_key="label",
        embedding_obsm_keys=["Z"],
        bio_conservation_metrics=BioConservation(isolated_labels=batched),
        batch_correction_metrics=BatchCorrection() if batched else None,
        pre_integrated_embedding_obsm_key="pre",
        n_jobs=1,
        progress_bar=False,
    )
    # the library collects garbage before every metric, which takes longer than most of them unless old objects are left out
    gc.freeze()
    bench.prepare(neighbor_computer=exact)
    bench.benchmark()
    gc.unfreeze()
    found = bench.get_results(min_max_scale=False, clean_names=True).loc["Z"]
    return {f"scib {metric}": float(value) for metric, value in found.items()}


def structure(latent: np.ndarray, label: pd.Series, batch: pd.Series | None = None) -> dict[str, float]:
    """Compute the scores that searches for settings use: agreement with labels, and mixing of batches."""
    found = agreement(latent, clusterings(latent), label)
    return found if batch is None else found | mixing(latent, label, batch)


def scores(
    latent: np.ndarray, name: str, *, with_scib: bool = True, found: list[np.ndarray] | None = None
) -> dict[str, float]:
    """Compute every score of an embedding of the cells to fit; ``found`` are its clusterings, if known."""
    obs = load(name)[0].obs
    found = clusterings(latent) if found is None else found
    out = agreement(latent, found, obs["label"])
    if "condition" in obs:
        both = (obs["label"].astype(str) + obs["condition"].astype(str)).where(obs["label"].notna())
        of_both = agreement(latent, found, both)
        out |= {f"{metric}, label x condition": of_both[metric] for metric in ("purity", "ARI best")}
    if "batch" in obs:
        near = neighbours(latent)
        codes = obs["batch"].cat.codes.to_numpy()
        out["same batch"] = float((codes[near] == codes[:, None]).mean())
        out |= mixing(latent, obs["label"], obs["batch"])
    return out | (scib(latent, name) if with_scib else {})


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Compute the share of its nearest neighbours that a cell has in common in two embeddings."""
    near = [neighbours(latent) for latent in (one, other)]
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(*near, strict=True)])) / N_NEIGHBORS
