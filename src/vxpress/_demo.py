"""``vxpress demo``: fit cells in batches, cluster them, compare clusters with labels and with PCA, and draw figures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vxpress._command_output import report, was_interrupted, write

if TYPE_CHECKING:
    from anndata import AnnData

BATCH, LABELS = "batch", "cell_type"
RESOLUTIONS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
N_NEIGHBORS = 15
REPRESENTATIONS = {
    "X_pca": "normalize_total, log1p, pca: no batch correction",
    "X_combat": "normalize_total, log1p, combat, pca: batch correction gene by gene",
    "X_vae": "vx.tl.fit_vae(adata, batch_key='batch')",
}
FILE = "vxpress_demo.h5ad"


def demo(folder: Path) -> None:
    """Run the demonstration and write the AnnData and the figures into ``folder``."""
    import torch

    import vxpress as vx

    # so few cells do not benefit from several threads
    torch.set_num_threads(1)
    start = time.perf_counter()
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file; name a folder with --output."
        raise NotADirectoryError(msg)
    folder.mkdir(parents=True, exist_ok=True)

    adata = vx.datasets.pbmc_batches()
    n_batches, n_types = adata.obs[BATCH].nunique(), adata.obs[LABELS].nunique()
    print(
        f"{adata.n_obs:,} blood cells of {n_types} types x {adata.n_vars} genes in {n_batches} batches: simulated with batch effects,\n"
        "from estimates of 700 real cells (Zheng et al. 2017)"
    )
    before = time.perf_counter()
    vx.tl.fit_vae(adata, BATCH)
    if was_interrupted(adata.uns["vae"]):
        raise KeyboardInterrupt
    report(adata.uns["vae"], time.perf_counter() - before)
    _add_pca(adata)
    _print_agreement({name: _agreement(adata, name) for name in REPRESENTATIONS})
    names = _figures(adata, folder)
    write(adata, folder / FILE, overwrite=True)
    print(f"\nwrote {folder}/: {FILE}, {', '.join(names)}")
    print(f"{time.perf_counter() - start:.0f} s in total")


def _add_pca(adata: AnnData) -> None:
    """Add principal components of the log-normalised counts, without and with scanpy's ComBat, as many as latent dimensions."""
    import scanpy as sc

    n_comps = adata.obsm["X_vae"].shape[1]
    log = adata.copy()
    sc.pp.normalize_total(log)
    sc.pp.log1p(log)
    adata.obsm["X_pca"] = sc.pp.pca(log, n_comps=n_comps, copy=True).obsm["X_pca"]
    sc.pp.combat(log, BATCH)
    adata.obsm["X_combat"] = sc.pp.pca(log, n_comps=n_comps, copy=True).obsm["X_pca"]


def _agreement(adata: AnnData, use_rep: str) -> list[float]:
    """Compute mixing of the batches, purity of neighbours, and ARI of the types and as many clusters; store the clusters."""
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score

    z_nd, types = adata.obsm[use_rep], adata.obs[LABELS].cat.codes.to_numpy()
    sc.pp.neighbors(adata, use_rep=use_rep, n_neighbors=N_NEIGHBORS)
    key, n_types, found = f"{use_rep}_leiden", len(np.unique(types)), {}
    for resolution in RESOLUTIONS:
        sc.tl.leiden(adata, resolution=resolution, flavor="igraph", n_iterations=2, key_added=key)
        found[resolution] = adata.obs[key]
    # the number of clusters depends on the resolution, and differently for each representation
    adata.obs[key] = min(found.values(), key=lambda clusters: abs(clusters.nunique() - n_types))
    purity = float((types[_neighbours(z_nd)] == types[:, None]).mean())
    return [mixing(z_nd, adata.obs[BATCH].cat.codes.to_numpy()), purity, adjusted_rand_score(types, adata.obs[key])]


def _neighbours(z_nd: np.ndarray) -> np.ndarray:
    """Return the nearest other cells of each cell, (n, 15)."""
    from sklearn.neighbors import NearestNeighbors

    return np.asarray(NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(z_nd).kneighbors(return_distance=False))


def mixing(z_nd: np.ndarray, batch_n: np.ndarray) -> float:
    """Compute the share of the 15 nearest neighbours from other batches, divided by the share expected at random.

    Near 1 batches are mixed, at 0 they are separate. If the batches hold different shares of the types, 1 is not reached.
    """
    near = _neighbours(z_nd)
    share_b = np.bincount(batch_n) / len(batch_n)
    return float((batch_n[near] != batch_n[:, None]).mean() / (1.0 - np.square(share_b).sum()))


def _print_agreement(rows: dict[str, list[float]]) -> None:
    print(
        "\nMixing of batches (0 separate, 1 mixed), purity (share of the 15 nearest neighbours of the same type), and adjusted Rand\n"
        f"index (ARI) of the types and as many Leiden clusters\n{'':10}",
        end="",
    )
    print("".join(f"{name:>13}" for name in ("mixing", "purity", "ARI")))
    for name, values in rows.items():
        print(f"{name:<10}" + "".join(f"{value:>13.2f}" for value in values))
    print("\n".join(f"  {name}: {how}" for name, how in REPRESENTATIONS.items()))


def _figures(adata: AnnData, folder: Path) -> list[str]:
    """Draw the figures into ``folder`` and return their names."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import scanpy as sc

    import vxpress as vx

    for name in ("X_pca", "X_vae"):
        sc.pp.neighbors(adata, use_rep=name, n_neighbors=N_NEIGHBORS)
        sc.tl.umap(adata)
        adata.obsm[f"X_umap_{name[2:]}"] = adata.obsm["X_umap"].copy()
    adata.obs["leiden"] = adata.obs["X_vae_leiden"]
    figures: dict[str, Any] = {
        "integration.png": integration(adata),
        "latent.png": vx.pl.latent(adata, color=["leiden", BATCH, LABELS], return_fig=True),
        "kl.png": vx.pl.kl(adata, return_fig=True),
        "history.png": vx.pl.history(adata, return_fig=True),
        "posterior.png": vx.pl.posterior(adata, return_fig=True),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=150, bbox_inches="tight")
        plt.close(figure)
    return list(figures)


def integration(adata: AnnData) -> Any:
    """Draw the cells by principal components and by latent space, coloured by batch and by type: the figure of the README."""
    import matplotlib.pyplot as plt
    import scanpy as sc

    figure, axes = plt.subplots(2, 2, figsize=(9.5, 6.4), layout="constrained")
    titles = {"pca": "PCA", "vae": "vxpress"}
    for column, (basis, title) in enumerate(titles.items()):
        for row, (color, palette) in enumerate(((BATCH, ["#0072B2", "#E69F00", "#009E73"]), (LABELS, PALETTE))):
            ax = axes[row, column]
            sc.pl.embedding(
                adata,
                f"umap_{basis}",
                color=color,
                palette=palette,
                ax=ax,
                show=False,
                size=12,
                title=f"{title}, by {color.replace('_', ' ')}",
                legend_loc="right margin" if column else "none",
            )
            ax.set(xlabel="", ylabel="")
    return figure


# colours of Okabe and Ito
PALETTE = ["#E69F00", "#56B4E9", "#009E73", "#000000", "#0072B2", "#D55E00", "#CC79A7"]
