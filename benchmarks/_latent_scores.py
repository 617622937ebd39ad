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


def agreement(z: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return NMI and ARI of the best Leiden clustering, the share of neighbors with the same label, and the silhouette."""
    cells = ad.AnnData(np.asarray(z, dtype=np.float32))
    sc.pp.neighbors(cells, use_rep="X", n_neighbors=N_NEIGHBORS, random_state=0)
    best = (-1.0, -1.0)
    for resolution in RESOLUTIONS:
        sc.tl.leiden(cells, resolution=resolution, flavor="igraph", n_iterations=2, random_state=0)
        found = cells.obs["leiden"]
        best = max(best, (normalized_mutual_info_score(labels, found), adjusted_rand_score(labels, found)))
    near = NearestNeighbors(n_neighbors=N_NEIGHBORS + 1).fit(z).kneighbors(z, return_distance=False)[:, 1:]
    return {
        "nmi": float(best[0]),
        "ari": float(best[1]),
        "neighbors": float((labels[near] == labels[:, None]).mean()),
        "silhouette": float(silhouette_score(z, labels)),
    }
