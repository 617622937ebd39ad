"""``vx.tl.denoise``: denoised expression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, Keys, check_name
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._unset import UNSET, Unset
from vxpress.bridge.ask.arguments import (
    TargetSum,
    draw_seed,
    genes_as_anndata,
    genes_present,
    requested_genes,
    scale_from,
)
from vxpress.bridge.ask.decoded import DENOISING_SEED, DecodingRequest, Draws, FloatName
from vxpress.bridge.ask.denoising import check_form, checked_draws, denoise_cells, own_counts_of
from vxpress.bridge.fits.find_fit import Model
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import Results, check_replaceable, has_params, own
from vxpress.bridge.fits.store_saving import array_for
from vxpress.bridge.fits.stored_cells import StoredCells
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.covariates import Batches


@entry
@takes_mudata("features")
def denoise(
    adata: AnnData | MuData,
    model: Model = None,
    *,
    modality: str | None = None,
    key: str = DEFAULT_KEY,
    genes: str | Sequence[str] | np.ndarray | None = None,
    transform_batch: Batches | None = None,
    keep: bool = False,
    target_sum: TargetSum = None,
    own_counts: bool = False,
    layer: str | Unset | None = UNSET,
    interval: float | None = None,
    n_draws: int | None = None,
    dtype: FloatName = "float32",
    drop_below: float | None = None,
    rng: int | np.random.Generator | None = DENOISING_SEED,
    key_added: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Compute denoised expression from the stored posterior, in chunks; the counts are not needed.

    .. math::

        \hat y_{ng} = s_n \, \frac{1}{|B|} \sum_{b \in B} \mathbb{E}_{q(z \mid x_n)}[\rho_g(z, b)]

    where :math:`\rho` are the shares of the genes that the decoder returns :cite:p:`Lopez2018`, :math:`B` the batches
    of ``transform_batch`` and :math:`s_n` the ``target_sum``.

    To get a few genes of a large matrix, name them with ``genes``: they are returned as a new AnnData, nothing is
    written, and the dense matrix of all genes is never built. A layer of all genes takes half the memory with
    ``dtype="float16"``, and still less with ``drop_below``.

    Parameters
    ----------
    adata
        Cells with a stored posterior (:func:`fit_vae` and :func:`encode` write it) and genes of the fit, in any order.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    modality
        If ``adata`` is a MuData, the modality to denoise, for example ``"protein"``; results are written into it. With a
        joint fit of several modalities, RNA by default. For a likelihood with a background (``"nb_mixture"``), values are
        expected counts of the foreground, without background and not scaled.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    genes
        Genes to return instead of writing a layer: names, or a boolean array over ``adata.var``. Any gene of the fit
        can be named, even if ``adata`` no longer holds it. ``None`` writes the layer of all genes.
    transform_batch
        Batch, or batches to average over, under which every cell is decoded. By default all batches of the fit with 30
        training cells or more, so that cells of different batches are comparable (all batches, if most cells are in
        smaller ones; a warning names those left out). ``"observed"`` decodes each cell under its own batch, which
        predicts its counts best; if a batch has the name "observed", pass ``["observed"]`` for that batch. A category
        that is a number in ``obs`` may be given as a number.
    keep
        With ``True``, the effects of optional covariates are kept: cells are decoded from ``obsm["X_vae_kept"]`` without
        their categories. Only for fits with ``optional_covariate_keys=``; see :func:`fit_vae`.
    target_sum
        Sum that each cell is scaled to, over all genes that the size factor counts; by default that of the fit.
        ``"library"`` scales each cell to its own size factor, ``adata.obs["vae_library"]``: the values are then
        expected counts (for a zero-inflated fit, before any counts are lost to the inflation). They include the factor
        of a further latent variable (``FitOptions(blocks=)``) that multiplies the size factor.
    own_counts
        Whether to combine the expectation of the model with the counts of the cell itself, read from ``layer``. The
        expectation is multiplied by :math:`(\theta_g + x_{ng}) / (\theta_g + \mu_{ng})`, the mean of the gamma
        distribution behind the negative binomial given the count, as in SAVER :cite:p:`Huang2018`. :math:`\mu` is the
        cell's own mean under its own batch. A latent space of a few dimensions cannot represent what is particular to
        one cell; this option restores as much of it as the dispersion of the gene allows. It is better for predicting
        the molecules of this cell and noisier in plots; rows no longer sum exactly to ``target_sum``. Only for fits
        with ``likelihood="nb"`` and a dispersion per gene, or per gene and batch; genes outside the model are not
        changed.
    layer
        With ``own_counts``, the layer with the counts, or ``None`` for ``adata.X``; by default the layer that the fit
        read.
    interval
        Probability of an equal-tailed credible interval, such as 0.9, written in addition to the mean. ``None`` writes
        none.
    n_draws
        Posterior draws per cell; by default 10, spread evenly over the batches (at least one for each). With
        ``interval`` 100; each draw is decoded under every batch and averaged over them before quantiles are taken.
    dtype
        ``"float32"``, or ``"float16"`` for half the memory: three digits, from 6e-5 to 65,504.
    drop_below
        Write a sparse CSR matrix without the entries below this value, which is on the scale of the result (0.1 with a
        ``target_sum`` of 10,000 is a share of 1e-5). The share of the sum that was dropped is logged. ``None`` keeps
        all entries in a dense matrix: decoded expression is never exactly zero.
    rng
        Seed of the draws, or a numpy generator; the default gives the layer that :func:`fit_vae` writes.
    key_added
        Name of the layer; by default ``"vae_normalized"`` for the default fit, or ``"vae_normalized_kept"`` with
        ``keep``. This layer, or one that an earlier call
        wrote under ``key_added``, is replaced. Not available with ``genes``.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``. Not available with ``genes``, which writes nothing.

    Returns
    -------
    With ``genes``, an ``AnnData`` object, cells x ``genes`` in the order given, ready to plot. ``X`` holds the columns
    that the layer would have, next to copies of ``obs`` and ``obsm``. With ``interval``, the ends of the interval are
    in ``layers["lower"]`` and ``layers["upper"]``. ``adata`` is not changed.

    Otherwise returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields:

    ``adata.layers["vae_normalized" | key_added]`` : :class:`numpy.ndarray` | :class:`scipy.sparse.csr_matrix` (dtype ``dtype``)
        E_q[rho] x ``target_sum``, n_obs x n_vars, not log-transformed (for a Gaussian fit the expected log value).
    ``adata.uns[key_added]``
        With ``key_added``, ``params``. The next call uses this record to recognise a layer that it may replace.
    ``adata.layers["vae_normalized_lower" | key_added + "_lower"]``, and the same with ``_upper``
        With ``interval``, the ends of the interval of rho under q(z | x), on the same scale. They show how precisely
        the latent state of the cell is known, given the model. They are not an interval for counts, which vary around
        their expectation, and they do not include the uncertainty of the fitted model itself.

    Raises
    ------
    KeyError
        If there is no such fit or posterior, or a gene of ``genes`` is unknown to the fit.
    ValueError
        If a batch is unknown to the fit, ``keep`` is given for a fit without optional covariates, no gene of the fit is present, another layer has that name, ``genes`` names a
        gene twice or is given with ``key_added`` or ``copy``, ``n_draws`` is too small for ``interval``, ``drop_below``
        is given with ``dtype="float16"``, which sparse matrices do not support, or a value is out of range for
        ``dtype``.

    See Also
    --------
    vxpress.tl.counterfactual : the same under another condition.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> vx.tl.denoise(adata)
    >>> adata.layers["vae_normalized"].shape
    (700, 765)

    Two genes only, as expected counts with an interval; no layer is written:

    >>> few = vx.tl.denoise(adata, genes=["CD8A", "NKG7"], target_sum="library", interval=0.9)
    >>> few.shape
    (700, 2)
    >>> bool((few.layers["lower"] <= few.layers["upper"]).all())
    True
    """
    check_adata(adata, copy=copy)
    cells = StoredCells.find(adata, model, key, keep=keep)
    fit = cells.fit
    wanted = None if genes is None else requested_genes(adata, fit, genes, key_added=key_added, copy=copy)
    chosen, columns = genes_present(adata, fit) if wanted is None else (wanted, None)
    n_draws = checked_draws(n_draws, interval)
    check_form(fit, dtype, drop_below)
    scale = scale_from(adata, cells, target_sum)
    counts = own_counts_of(adata, cells, layer, interval) if own_counts else None
    names = _names(adata, cells.keys, key_added, interval) if wanted is None else []
    request = DecodingRequest(
        Draws(n_draws, cells.decoding_batches(transform_batch), draw_seed(rng)),
        scale,
        genes=chosen,
        columns=columns,
        width=adata.n_vars if wanted is None else None,
        new_array=array_for(adata),
        dtype=dtype,
        drop_below=drop_below,
        interval=interval,
    )
    start = logg.info("denoising")
    with progress_bar("denoise", progress):
        matrices = denoise_cells(cells, request, counts)
    if wanted is not None:
        logg.info("    finished", time=start)
        out = genes_as_anndata(adata, fit, wanted, matrices[0])
        for name, matrix in zip(("lower", "upper"), matrices[1:], strict=False):
            out.layers[name] = matrix
        return out
    adata = own(adata, copy=copy)
    results = Results(layers=dict(zip(names, matrices, strict=True)))
    if names[0] != cells.keys.normalized:
        params = {"key": key, "denoised": True, "n_draws": n_draws} | ({"keep": True} if keep else {})
        results.uns = {names[0]: {"params": params if interval is None else params | {"interval": interval}}}
    if interval is None and (names[0] == cells.keys.normalized or _with_interval(adata.uns.get(names[0], {}))):
        results.stale = [("layers", name) for name in cells.keys.bounds(names[0])]
    results.write(adata)
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None


def _names(adata: AnnData, keys: Keys, key_added: str | None, interval: float | None) -> list[str]:
    """Return the names of the layers to write, or raise an error if one of them must not be replaced."""
    layer = f"{keys.normalized}{keys.view}" if key_added is None else key_added
    check_name("key_added", layer)
    names = [layer] if interval is None else [layer, *keys.bounds(layer)]
    if layer != keys.normalized:
        check_replaceable(adata, layer, ours=lambda stored: has_params(stored, "denoised"), layers=[layer])
        taken = [f"layers[{name!r}]" for name in names[1:] if name in adata.layers]
        if taken and not _with_interval(adata.uns.get(layer, {})):
            msg = f"adata already holds {', '.join(taken)}, which an earlier call did not write. Choose another key_added=, or delete it first."
            raise ValueError(msg)
    return names


def _with_interval(stored: Mapping[str, Any]) -> bool:
    """Return whether this is the record of an earlier call that wrote a layer and its interval."""
    return has_params(stored, "denoised", "interval")
