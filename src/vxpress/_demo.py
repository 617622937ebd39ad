"""``vxpress demo``: the embedded data set fitted, clustered, judged against its labels, and drawn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vxpress._cli import report, was_interrupted, write

if TYPE_CHECKING:
    from anndata import AnnData

RESOLUTIONS = (0.3, 0.6, 1.0)
SHOWN = 0.6
LABELS = "bulk_labels"


def demo(folder: Path) -> None:
    """Run the demonstration and write the AnnData and the figures into ``folder``."""
    import scanpy as sc
    import torch

    import vxpress as vx

    # 700 cells are too few to share among threads, and the numbers do not hang on how many there are
    torch.set_num_threads(1)
    start = time.perf_counter()
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file; name a folder with --output."
        raise NotADirectoryError(msg)
    folder.mkdir(parents=True, exist_ok=True)

    adata = vx.datasets.pbmc68k_reduced()
    print(f"{adata.n_obs} peripheral blood cells x {adata.n_vars} genes (Zheng et al. 2017)")
    before = time.perf_counter()
    vx.tl.fit_vae(adata)
    if was_interrupted(adata.uns["vae"]):
        raise KeyboardInterrupt
    report(adata.uns["vae"], time.perf_counter() - before)

    pca = adata.copy()
    sc.pp.normalize_total(pca)
    sc.pp.log1p(pca)
    sc.pp.pca(pca, n_comps=adata.obsm["X_vae"].shape[1])
    rows = {"X_vae": _agreement(adata, "X_vae"), "X_pca": _agreement(pca, "X_pca")}
    _print_agreement(rows)

    sc.tl.leiden(adata, resolution=SHOWN, flavor="igraph", n_iterations=2)
    sc.tl.umap(adata)
    names = _figures(adata, folder)
    write(adata, folder / "vxpress_demo.h5ad", overwrite=True)
    print(f"\nwrote {folder}/: vxpress_demo.h5ad, {', '.join(names)}")
    print(f"{time.perf_counter() - start:.0f} s in all")


def _agreement(adata: AnnData, use_rep: str) -> list[tuple[float, float, int]]:
    """ARI, NMI and number of clusters, per resolution, of scanpy's clusters against the known labels."""
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    sc.pp.neighbors(adata, use_rep=use_rep)
    labels, found = adata.obs[LABELS], []
    for resolution in RESOLUTIONS:
        sc.tl.leiden(adata, resolution=resolution, flavor="igraph", n_iterations=2)
        clusters = adata.obs["leiden"]
        found.append(
            (
                float(adjusted_rand_score(labels, clusters)),
                float(normalized_mutual_info_score(labels, clusters)),
                int(clusters.nunique()),
            )
        )
    return found


def _print_agreement(rows: dict[str, list[tuple[float, float, int]]]) -> None:
    print(f"\nLeiden clusters against obs[{LABELS!r}]: ARI / NMI (number of clusters)")
    print("resolution" + "".join(f"{resolution:>20}" for resolution in RESOLUTIONS) + f"{'mean':>16}")
    for name, found in rows.items():
        cells = [f"{f'{ari:.2f} / {nmi:.2f} ({k})':>20}" for ari, nmi, k in found]
        ari, nmi = (sum(values) / len(found) for values in list(zip(*found, strict=True))[:2])
        print(f"{name:<10}" + "".join(cells) + f"{f'{ari:.2f} / {nmi:.2f}':>16}")
    print(
        "X_pca: normalize_total, log1p, pca with as many components. With 700 cells, differences of a few hundredths mean little."
    )


def _figures(adata: AnnData, folder: Path) -> list[str]:
    """Draw the figures into ``folder`` and return their names."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    import vxpress as vx

    figures: dict[str, Any] = {
        "latent.png": vx.pl.latent(adata, color=["leiden", LABELS], return_fig=True),
        "kl.png": vx.pl.kl(adata, return_fig=True),
        "history.png": vx.pl.history(adata, return_fig=True),
        "posterior.png": vx.pl.posterior(adata, return_fig=True),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=150, bbox_inches="tight")
        plt.close(figure)
    return list(figures)
