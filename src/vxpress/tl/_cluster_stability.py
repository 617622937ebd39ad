"""``vx.tl.cluster_stability``: stability of cluster assignments under the posterior."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scanpy import logging as logg
from scipy import sparse

from vxpress._entry import entry
from vxpress._keys import check_name
from vxpress._mudata import MuData
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import Results, check_replaceable, has_params, own
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.blockwise import is_dask
from vxpress.bridge.read.columns import get_names


@entry
@takes_mudata("cells")
def cluster_stability(
    adata: AnnData | MuData,
    cluster_key: str = "leiden",
    *,
    modality: str | None = None,
    neighbors_key: str | None = None,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Compute how stable the cluster of each cell is under the uncertainty of its latent state.

    The stability of cell i is the share of its neighbours that are in its own cluster, averaged over draws of all cells
    from their posteriors:

    .. math::

        s_i = \sum_j f_{ij} \, [c_j = c_i] \Big/ \sum_j f_{ij},

    where f are the edge frequencies that :func:`vxpress.pp.neighbors` writes. A value near 1 means that the cell is
    well inside its cluster for every plausible latent state. Cells of low stability are those that another sample of
    their molecules would put into another cluster (measured, see the guide). The score judges cells. It does not say
    whether clusters are real: if a homogeneous population is cut in two, only the cells along the cut have a low
    stability.

    Parameters
    ----------
    adata
        Cells with edge frequencies.
    cluster_key
        Column of ``obs`` with the clusters, or any other annotation.
    modality
        If ``adata`` is a MuData, the modality to use with a fit of one modality; results are written into it. With a joint
        fit, all modalities are used, and results are written into the MuData.
    neighbors_key
        Name of the graph in ``uns``: the ``key_added`` of :func:`vxpress.pp.neighbors`, if one was given.
    key_added
        Name of the column; by default the name of the cluster column followed by ``"_stability"``.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields:

    ``adata.obs[f"{cluster_key}_stability" | key_added]`` : ``float64``
        From 0 to 1; NaN if the cell has no cluster. Neighbours without a cluster are not counted.
    ``adata.uns[f"{cluster_key}_stability" | key_added]`` : :class:`dict`
        ``params``. The next call uses this record to recognise a column that it may replace.

    Raises
    ------
    KeyError
        If the column or the edge frequencies do not exist.
    ValueError
        If ``key_added`` is the column of the clusters, or the name is taken by something else.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> vx.pp.neighbors(adata, n_draws=5)
    >>> vx.tl.cluster_stability(adata, "bulk_labels")
    >>> stability = adata.obs.groupby("bulk_labels", observed=True)["bulk_labels_stability"].mean()
    >>> bool(stability["CD19+ B"] > stability["CD4+/CD25 T Reg"])
    True
    """
    check_adata(adata, copy=copy)
    hint = "Cluster the cells first: sc.tl.leiden(adata)."
    codes_n = get_names(adata.obs, cluster_key, argument="cluster_key", gaps=True, hint=hint).code_n
    name = f"{cluster_key}_stability" if key_added is None else key_added
    check_name("key_added", name)
    if name == cluster_key:
        msg = f"key_added={name!r} is the column with the clusters. Choose another name."
        raise ValueError(msg)
    check_replaceable(adata, name, ours=lambda stored: has_params(stored, "cluster_key"), obs=[name])
    frequency_nn = _edge_frequency(adata, neighbors_key)
    start = logg.info("computing cluster stability")
    row = np.repeat(np.arange(adata.n_obs), np.diff(frequency_nn.indptr))
    own_n, other_n = codes_n[row], codes_n[frequency_nn.indices]
    weight = frequency_nn.data.astype(np.float64) * (other_n >= 0)
    inside_n = np.bincount(row, weight * (own_n == other_n), minlength=adata.n_obs)
    total_n = np.bincount(row, weight, minlength=adata.n_obs)
    known_n = (codes_n >= 0) & (total_n > 0)
    stability_n = np.full(adata.n_obs, np.nan)
    stability_n[known_n] = inside_n[known_n] / total_n[known_n]
    adata = own(adata, copy=copy)
    params = {"cluster_key": cluster_key} | ({} if neighbors_key is None else {"neighbors_key": neighbors_key})
    results = Results(obs={name: stability_n}, uns={name: {"params": params}})
    results.write(adata)
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None


def _edge_frequency(adata: AnnData, neighbors_key: str | None) -> sparse.csr_matrix:
    """Return the edge frequencies of the graph, or raise an error that names the call that writes them."""
    name = "edge_frequency" if neighbors_key is None else f"{neighbors_key}_edge_frequency"
    if name not in adata.obsp:
        named = "" if neighbors_key is None else f", key_added={neighbors_key!r}"
        msg = f"adata.obsp has no {name!r}. Write it with vx.pp.neighbors(adata, n_draws=20{named})."
        raise KeyError(msg)
    found = adata.obsp[name]
    # of a lazy AnnData
    return sparse.csr_matrix(found.compute() if is_dask(found) else found)
