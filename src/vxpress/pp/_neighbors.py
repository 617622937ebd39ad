"""``vx.pp.neighbors``: a neighborhood graph of cells that accounts for posterior variance."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_choice, check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, check_name
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress.bridge.ask.neighbors import Distance, check_numba_threads, neighbor_graph
from vxpress.bridge.fits.find_fit import Model, find_fit
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import check_replaceable, own
from vxpress.bridge.fits.stored_cells import stored_ensemble, stored_latent, view_of
from vxpress.bridge.read.adata import check_adata


@entry
@takes_mudata("cells")
def neighbors(
    adata: AnnData | MuData,
    n_neighbors: int = 15,
    *,
    modality: str | None = None,
    key: str = DEFAULT_KEY,
    model: Model = None,
    ensemble: bool | None = None,
    keep: bool = False,
    distance: Distance = "likelihood",
    method: str = "umap",
    n_draws: int = 0,
    rng: int | np.random.Generator | None = 0,
    key_added: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Compute the neighborhood graph of cells from their posteriors, in the format of :func:`scanpy.pp.neighbors`.

    The neighbours of a cell are the cells whose states explain its counts best. Cell i has the posterior N(m, v) in
    each latent dimension, and all cells together have the mean :math:`\bar m` and the variance
    :math:`s^2 = \mathrm{Var}(m) + \overline{v}`. With this population distribution divided out, the counts of cell i
    give a likelihood of z with precision r / v and peak :math:`\bar m + (m - \bar m) / r`, where
    :math:`r = 1 - v / s^2` is the share of the variance that the cell resolves. The squared distance from i to j is
    twice the expected decrease of the log-likelihood of cell i, from its peak, if its state were that of cell j:

    .. math::

        d_{ij}^2 = 2 \, \mathbb{E}_{z \sim q_j} \Big[\max_{z'} \log p(x_i | z') - \log p(x_i | z)\Big]
                 = \sum_d \frac{r_{id}}{v_{id}} \Big[ \Big(m_{jd} - \bar m_d - \frac{m_{id} - \bar m_d}{r_{id}}\Big)^2
                   + v_{jd} \Big].

    So a dimension is weighted by the precision of the cell itself, the shrinkage of cells with few counts towards the
    prior is removed, and uncertain cells are the last neighbours. If all posteriors are equally narrow, the graph is
    that of scanpy on posterior means. The guide shows the measured gain over distances between means. The graph is the
    input of :func:`scanpy.tl.leiden`, :func:`~scanpy.tl.umap`, :func:`~scanpy.tl.paga` and :func:`~scanpy.tl.diffmap`.

    Parameters
    ----------
    adata
        Cells with a stored posterior (from :func:`~vxpress.tl.fit_vae` or :func:`~vxpress.tl.encode`).
    n_neighbors
        Size of the neighbourhood, including the cell itself, as in scanpy. The default is scanpy's.
    modality
        If ``adata`` is a MuData, the modality whose fit is used; results are written into it. With a joint fit, the graph
        is that of all cells, and is written into the MuData.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    ensemble
        Whether to use the posteriors of all models of a fit with ``n_fits`` above 1, ``obsm["X_vae_ensemble"]``, so that
        another seed gives more of the same neighbours. By default they are used if the fit has several models;
        ``False`` uses the first one alone, ``obsm["X_vae"]``.
    keep
        With ``True``, the neighbours are those in ``obsm["X_vae_kept"]``, where the effects of optional covariates are
        kept. Only for fits with ``optional_covariate_keys=``; see :func:`~vxpress.tl.fit_vae`. Pass ``key_added`` to
        keep both graphs.
    distance
        ``"likelihood"`` is described above. ``"euclidean"`` is the distance between posterior means, with the same
        result as ``sc.pp.neighbors(adata, use_rep="X_vae")`` (with an ensemble ``use_rep="X_vae_ensemble"``).
    method
        How scanpy computes connectivities from distances: ``"umap"``, ``"gauss"`` or another method of scanpy.
    n_draws
        Number of posterior draws of all cells. The graph is computed again for each draw, and the frequency of every
        edge is written. 20 draws distinguish frequencies that differ by about 0.1. The default is 0, because each draw
        takes as long as the graph itself. With an ensemble, the models take turns: draws come from one model each, so that
        the frequencies also show how far its models differ.
    rng
        Seed of the draws and of approximate searches, or a numpy generator.
    key_added
        Name under which the results are written, as in scanpy.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields:

    ``adata.obsp["distances" | f"{key_added}_distances"]`` : :class:`scipy.sparse.csr_matrix`
        Distances d_ij to the ``n_neighbors - 1`` nearest other cells; not symmetric.
    ``adata.obsp["connectivities" | f"{key_added}_connectivities"]`` : :class:`scipy.sparse.csr_matrix` (dtype ``float32``)
        Weights of the graph.
    ``adata.obsp["edge_frequency" | f"{key_added}_edge_frequency"]`` : :class:`scipy.sparse.csr_matrix` (dtype ``float32``)
        With ``n_draws``: share of draws in which j is among the ``n_neighbors - 1`` nearest cells of i; rows sum to
        ``n_neighbors - 1``. Without ``n_draws``, the matrix of an earlier call is removed.
    ``adata.uns["neighbors" | key_added]`` : :class:`dict`
        Names and parameters, as scanpy writes them, and in addition ``distance`` and ``n_draws`` (and
        ``edge_frequency_key``). ``use_rep`` is that of the posterior means and ``metric`` is ``"euclidean"``, for
        functions of scanpy that need coordinates in addition to the graph.

    Raises
    ------
    KeyError
        If there is no such fit or posterior.
    ValueError
        If ``n_neighbors`` is not from 2 to one less than the number of cells, if another argument is out of range, or
        if the name belongs to something that is not a neighborhood graph. Graphs of this function or of scanpy's are
        replaced.
    RuntimeError
        If this process was forked after numba had started its threads.

    See Also
    --------
    vxpress.tl.cluster_stability : how certain the cluster of each cell is, from the edge frequencies.

    Examples
    --------
    >>> import scanpy as sc
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> vx.pp.neighbors(adata, n_draws=5)
    >>> sc.tl.umap(adata)
    >>> adata.obsp["edge_frequency"].sum(1)[:3].round(3).tolist()
    [[14.0], [14.0], [14.0]]
    """
    check_adata(adata, copy=copy)
    check_choice("distance", distance, Distance)
    check_range("n_draws", n_draws, 0, 10_000, integer=True)
    fit = find_fit(adata, model, key)
    keys = view_of(fit, key, keep=keep)
    if not (ensemble is None or isinstance(ensemble, (bool, np.bool_))):
        msg = f"ensemble={ensemble!r} was given; True, False or None is expected."
        raise ValueError(msg)
    if ensemble and not fit.members:
        msg = f"ensemble=True was given, but the fit in uns[{keys.uns!r}] has one model. Fit several: vx.tl.fit_vae(adata, n_fits=3)."
        raise ValueError(msg)
    several = bool(fit.members) and (ensemble is None or bool(ensemble))
    posterior = (stored_ensemble if several else stored_latent)(adata, fit, keys)
    if adata.n_obs < 3:
        msg = f"adata has {adata.n_obs} cells; at least 3 are expected, so that each can have neighbours."
        raise ValueError(msg)
    check_range("n_neighbors", n_neighbors, 2, adata.n_obs - 1, integer=True)
    if key_added is not None:
        check_name("key_added", key_added)
    _check_replaceable(adata, key_added)
    check_numba_threads("neighbors")
    generator = seed_of(rng)
    random_state = int(rng) if isinstance(rng, (int, np.integer)) and rng < 2**32 else int(generator.integers(2**31))
    start = logg.info("finding neighbors by their posteriors")
    with progress_bar("neighbors", progress):
        results = neighbor_graph(
            adata,
            posterior,
            int(n_neighbors),
            keys.of_ensemble()[0] if several else keys.latent,
            n_models=1 + len(fit.members) if several else 1,
            distance=distance,
            method=method,
            n_draws=int(n_draws),
            random_state=random_state,
            rng=generator,
            key_added=key_added,
        )
    adata = own(adata, copy=copy)
    results.write(adata)
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None


def _check_replaceable(adata: AnnData, key_added: str | None) -> None:
    """Raise if a name belongs to anything except a graph of this function or of scanpy's."""
    stem = "" if key_added is None else f"{key_added}_"
    check_replaceable(
        adata,
        "neighbors" if key_added is None else key_added,
        ours=lambda stored: {"connectivities_key", "distances_key", "params"} <= set(stored),
        obsp=[f"{stem}{name}" for name in ("connectivities", "distances", "edge_frequency")],
    )
