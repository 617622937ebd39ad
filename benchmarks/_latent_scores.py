"""Agreement of a latent space with labels: clusters, neighbors and silhouette."""

from __future__ import annotations

import anndata as ad
import numpy as np
import scanpy as sc
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
from sklearn.neighbors import NearestNeighbors

# the best of these resolutions, by mutual information, as in scib
RESOLUTIONS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0)
N_NEIGHBORS = 15


def agreement(z: np.ndarray, labels: np.ndarray, n_states: int = 1) -> dict[str, float]:
    """Return NMI and ARI of the best Leiden clustering, the share of neighbors with the same label, and the silhouette.

    NMI and ARI are means over ``n_states`` random states of the neighbor graph and the clustering.
    """
    cells = ad.AnnData(np.asarray(z, dtype=np.float32))
    best = [_best_clustering(cells, labels, state) for state in range(n_states)]
    nmi, ari = np.mean(best, axis=0)
    near = NearestNeighbors(n_neighbors=N_NEIGHBORS + 1).fit(z).kneighbors(z, return_distance=False)[:, 1:]
    return {
        "nmi": float(nmi),
        "ari": float(ari),
        "neighbors": float((labels[near] == labels[:, None]).mean()),
        "silhouette": float(silhouette_score(z, labels)),
    }


def _best_clustering(cells: ad.AnnData, labels: np.ndarray, state: int) -> tuple[float, float]:
    """Return NMI and ARI of the clustering of the best resolution, by NMI, with one random state."""
    sc.pp.neighbors(cells, use_rep="X", n_neighbors=N_NEIGHBORS, random_state=state)
    best = (-1.0, -1.0)
    for resolution in RESOLUTIONS:
        sc.tl.leiden(cells, resolution=resolution, flavor="igraph", n_iterations=2, random_state=state)
        found = cells.obs["leiden"]
        best = max(best, (normalized_mutual_info_score(labels, found), adjusted_rand_score(labels, found)))
    return best
