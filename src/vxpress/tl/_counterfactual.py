"""``vx.tl.counterfactual``: expression under another condition."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, check_name
from vxpress._mudata import MuData
from vxpress._names import each_value, name_of
from vxpress._progress import progress_bar
from vxpress.bridge.ask.arguments import (
    TargetSum,
    draw_seed,
    genes_as_anndata,
    genes_present,
    requested_genes,
    scale_from,
)
from vxpress.bridge.ask.counterfactual import batches_of, check_not_kept, decode_changed, find_change
from vxpress.bridge.ask.decoded import DENOISING_DRAWS, DENOISING_SEED, DecodingRequest, Draws
from vxpress.bridge.fits.find_fit import Model
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import Results, check_replaceable, has_params, own
from vxpress.bridge.fits.store_saving import array_for
from vxpress.bridge.fits.stored_cells import StoredCells
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.covariates import Batches


@entry
@takes_mudata()
def counterfactual(
    adata: AnnData | MuData,
    key_covariate: str,
    value: Hashable,
    *,
    modality: str | None = None,
    model: Model = None,
    key: str = DEFAULT_KEY,
    genes: str | Sequence[str] | np.ndarray | None = None,
    transform_batch: Batches | None = None,
    keep: bool = False,
    target_sum: TargetSum = None,
    n_neighbors: int | None = None,
    n_draws: int = DENOISING_DRAWS,
    rng: int | np.random.Generator | None = DENOISING_SEED,
    key_added: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Decode every cell under another value of a covariate, with its latent state and size factor unchanged.

    .. math::

        \hat y_{ng}(c) = s_n \, \mathbb{E}_{q(z \mid x_n)}[\rho_g(z, c, u_n)]

    where :math:`\rho` are the shares of the genes that the decoder returns :cite:p:`Sohn2015,Lopez2018`, :math:`c` the
    value, :math:`u_n` the other covariates of the cell and :math:`s_n` the ``target_sum``. The counts are not needed.

    The decoder returns a result for any cell and any value, even if the model has seen no similar cell with that value.
    Each cell therefore gets a support score, the weight of the value among its neighbours relative to all cells:

    .. math::

        \mathrm{support}_n = \frac{\frac{1}{k} \sum_{m \in N_k(n)} w_m}{\max(\frac{1}{N} \sum_m w_m, \frac{1}{N})}

    where :math:`N_k(n)` are the ``n_neighbors`` nearest cells of ``adata`` in ``obsm["X_vae"]``, without the cell
    itself. For a category, :math:`w_m` is 1 for its cells and 0 for other cells. For a number, it is a Gaussian kernel
    of the distance between the cell's own value and ``value``, 1 if they are equal, with the bandwidth of
    :cite:t:`Silverman1986`. A score of 1 means that the condition is as common near this cell as overall, 0 that it
    does not occur there.

    Parameters
    ----------
    adata
        Cells with a stored posterior (:func:`fit_vae` and :func:`encode` write it), genes of the fit in any order, and
        its covariates in ``obs``. Support is computed from these cells: include the cells of the condition.
    key_covariate
        Covariate to change: the batch, a categorical or a continuous covariate of the fit; or the column of the labels
        of a fit with ``labels_key=`` and ``unlabeled_category=``. Labels do not enter the decoder. They are changed in
        the latent space: each cell moves by the mean position of the cells with the label ``value``, less that of the
        cells with its own label (of cells without one, the label whose cells are nearest).
    value
        Category, or number in the units of the column, under which all cells are decoded. A category that is a number
        in ``obs`` may be given as a number.
    modality
        If ``adata`` is a MuData, the modality to use, for example ``"rna"``; its fit has to be one of this modality alone.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    genes
        Genes to return instead of writing a layer, as in :func:`denoise`. ``None`` writes the layer of all genes.
    transform_batch
        As in :func:`denoise`: by default the average over the batches of the fit, so that the layer is comparable with
        ``adata.layers["vae_normalized"]``; ``"observed"`` decodes each cell under its own batch. Not available if
        ``key_covariate`` is the batch, because all cells are then decoded under ``value``; compare with
        ``vx.tl.denoise(adata, transform_batch="observed", key_added=...)``. A category that is a number in ``obs`` may
        be given as a number.
    keep
        With ``True``, the effects of optional covariates are kept, as in :func:`denoise`; ``key_covariate`` must be
        another covariate. By default they can be changed like any other.
    target_sum
        As in :func:`denoise`: by default that of the fit; ``"library"`` gives expected counts at each cell's own size
        factor.
    n_neighbors
        Neighbours of the support score. By default enough to expect five cells of the condition among them, but at
        least 30 and, above that, at most a twentieth of the cells.
    n_draws
        Posterior draws per cell, spread evenly over the batches.
    rng
        Seed of the draws, or a numpy generator. By default the draws are those of :func:`denoise`, so that the two
        layers differ only by the condition.
    key_added
        Name of the layer; by default ``"vae_counterfactual"`` for the default fit, or ``"vae_counterfactual_kept"``
        with ``keep``. Not available with ``genes``. An
        earlier counterfactual of that name is replaced; anything else is not.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``. Not available with ``genes``, which writes nothing.

    Returns
    -------
    With ``genes``, an ``AnnData`` object, cells x ``genes``, with copies of ``obs`` (and the support score) and
    ``obsm``.

    Otherwise returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields:

    ``adata.layers["vae_counterfactual" | key_added]`` : :class:`numpy.ndarray` (dtype ``float32``)
        Expected expression under the condition, n_obs x n_vars, on the scale of ``target_sum``, not log-transformed.
    ``adata.obs["vae_counterfactual_support" | key_added + "_support"]`` : :class:`pandas.Series` (dtype ``float64``)
        Support score. A warning gives the number of cells of other conditions with a score below 0.2.
    ``adata.uns["vae_counterfactual" | key_added]`` : :class:`dict`
        ``"params"``: the covariate, the value and the settings.

    Raises
    ------
    KeyError
        If there is no such fit or posterior, the covariate does not belong to the fit, or a gene of ``genes`` is
        unknown to it.
    ValueError
        If the fit has not seen the category, ``value`` is not a number for a continuous covariate, ``keep`` keeps
        the effect of the covariate itself or is given for a fit without optional covariates, ``transform_batch``
        is given while the batch is changed, no gene of the fit is present, or the name is taken.

    Notes
    -----
    The result is what the model predicts for a cell with this latent state under the condition. It is not the effect of
    an intervention: the model attributes to the condition all differences between conditions that the latent space does
    not hold.

    See Also
    --------
    vxpress.tl.denoise : the same under the observed conditions.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, categorical_covariate_keys=["phase"])
    >>> vx.tl.counterfactual(adata, "phase", "S")
    >>> change = adata.layers["vae_counterfactual"] - adata.layers["vae_normalized"]
    >>> bool(abs(change[adata.obs["phase"] == "S"]).max() < 1e-3)
    True
    >>> adata.obs["vae_counterfactual_support"].shape
    (700,)
    """
    check_adata(adata, copy=copy)
    cells = StoredCells.find(adata, model, key, keep=keep)
    fit = cells.fit
    change = find_change(cells, adata.obs, key_covariate, value)
    check_not_kept(cells, change)
    wanted = None if genes is None else requested_genes(adata, fit, genes, key_added=key_added, copy=copy)
    name = f"{cells.keys.uns}_counterfactual{cells.keys.view}" if key_added is None else key_added
    if wanted is None:
        _check_free(adata, name)
    chosen, columns = genes_present(adata, fit) if wanted is None else (wanted, None)
    check_range("n_draws", n_draws, 1, 100_000, integer=True)
    if n_neighbors is not None:
        check_range("n_neighbors", n_neighbors, 1, 1_000_000, integer=True)
    request = DecodingRequest(
        Draws(n_draws, batches_of(cells, change, transform_batch), draw_seed(rng)),
        scale_from(adata, cells, target_sum),
        genes=chosen,
        columns=columns,
        width=adata.n_vars if wanted is None else None,
        new_array=array_for(adata),
    )
    start = logg.info(f"decoding under {key_covariate} = {change.value}")
    with progress_bar("counterfactual", progress):
        matrix, support_n, n_neighbors = decode_changed(cells, change, request, n_neighbors)
    if wanted is not None:
        out = genes_as_anndata(adata, fit, wanted, matrix)
        out.obs[f"{name}_support"] = support_n
        logg.info("    finished", time=start)
        return out
    params: dict[str, Any] = {
        "key": key,
        "key_covariate": key_covariate,
        "value": change.value,
        "n_neighbors": int(n_neighbors),
        "n_draws": int(n_draws),
        "target_sum": fit.params.target_sum if target_sum is None else target_sum,
    }
    if keep:
        params["keep"] = True
    if transform_batch is not None:
        params["transform_batch"] = [name_of(batch) for batch in each_value(transform_batch)]
    adata = own(adata, copy=copy)
    results = Results(layers={name: matrix}, obs={f"{name}_support": support_n}, uns={name: {"params": params}})
    results.write(adata)
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None


def _check_free(adata: AnnData, name: str) -> None:
    check_name("key_added", name)
    check_replaceable(
        adata,
        name,
        ours=lambda stored: has_params(stored, "key_covariate"),
        layers=[name],
        obs=[f"{name}_support"],
    )
