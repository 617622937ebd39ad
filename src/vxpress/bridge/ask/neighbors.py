"""The graph of nearest cells by their posteriors, in the layout of scanpy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from vxpress.bridge.fits.results import Results
from vxpress.core.forked import check_numba_threads
from vxpress.core.inference.nearest import edge_frequency, likelihood_of, nearest

# callers check their process before they begin
__all__ = ["Distance", "check_numba_threads", "neighbor_graph"]

Distance = Literal["likelihood", "euclidean"]


def neighbor_graph(
    adata: AnnData,
    posterior: tuple[np.ndarray, np.ndarray],
    n_neighbors: int,
    use_rep: str,
    *,
    n_models: int = 1,
    distance: Distance,
    method: str,
    n_draws: int,
    random_state: int,
    rng: np.random.Generator,
    key_added: str | None,
) -> Results:
    """Return the graph of these cells, and with ``n_draws`` how often each edge occurs among draws of the posteriors.

    The columns of ``posterior`` are those of ``n_models`` models side by side.
    """
    mean_nd, var_nd = posterior
    k = n_neighbors - 1
    peak_nd, precision_nd = likelihood_of(mean_nd, var_nd)
    transformer = None
    if distance == "likelihood":
        transformer = FoundNeighbors(*nearest(peak_nd, precision_nd, mean_nd, var_nd, k, random_state))
    graph = AnnData(obs=pd.DataFrame(index=adata.obs_names), obsm={use_rep: mean_nd})
    with _quiet():
        sc.pp.neighbors(
            graph,
            n_neighbors,
            use_rep=use_rep,
            method=method,  # type: ignore[arg-type]
            transformer=transformer,  # type: ignore[arg-type]
            random_state=random_state,
            key_added=key_added,
        )
    name = "neighbors" if key_added is None else key_added
    frequency = "edge_frequency" if key_added is None else f"{key_added}_edge_frequency"
    entry = dict(graph.uns[name])
    entry["params"] = dict(entry["params"]) | {"distance": distance, "n_draws": n_draws}
    results = Results(obsp=dict(graph.obsp))
    if n_draws:
        weight_nd = precision_nd if distance == "likelihood" else np.ones_like(precision_nd)
        results.obsp[frequency] = edge_frequency(mean_nd, var_nd, weight_nd, k, n_draws, rng, n_models)
        entry["edge_frequency_key"] = frequency
    else:
        results.stale = [("obsp", frequency)]
    results.uns[name] = entry
    return results


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence scanpy's messages about what it writes to a temporary AnnData."""
    before = sc.settings.verbosity
    sc.settings.verbosity = min(int(before), 1)
    try:
        yield
    finally:
        sc.settings.verbosity = before


class FoundNeighbors:
    """Neighbours that were already found, with the interface of a transformer that scanpy expects."""

    def __init__(self, index_nk: np.ndarray, squared_nk: np.ndarray) -> None:
        n, k = index_nk.shape
        self.n_neighbors = k + 1
        distances = np.sqrt(squared_nk).ravel()
        self.distances = sparse.csr_matrix((distances, index_nk.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))

    def get_params(self) -> dict[str, Any]:
        return {"n_neighbors": self.n_neighbors}

    def fit_transform(self, x: np.ndarray) -> sparse.csr_matrix:
        return self.distances
