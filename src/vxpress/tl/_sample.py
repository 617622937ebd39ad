"""``vx.tl.sample``: draw counts for every cell from its posterior."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from anndata import AnnData
from scanpy import logging as logg
from scipy import sparse

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, check_name
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress.bridge.ask.records import check_own, params_of
from vxpress.bridge.ask.sampling import (
    draw_counts,
    draws_as_anndata,
    modelled_genes_named,
    modelled_genes_present,
    one_batch,
    spread_over_genes,
)
from vxpress.bridge.fits.find_fit import Model
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.query import decoding_covariates
from vxpress.bridge.fits.results import Results, own
from vxpress.bridge.fits.stored_cells import StoredCells, library_of
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.joint import has_shown


@entry
@takes_mudata("features")
def sample(
    adata: AnnData | MuData,
    model: Model = None,
    *,
    modality: str | None = None,
    key: str = DEFAULT_KEY,
    n_samples: int = 1,
    genes: str | Sequence[str] | np.ndarray | None = None,
    transform_batch: Hashable | None = None,
    rng: int | np.random.Generator | None = 0,
    key_added: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Draw new counts for every cell from its stored posterior; the original counts are not needed.

    .. math::

        z_n \sim q(z \mid x_n, s_n), \qquad x'_{ng} \sim p(\,\cdot \mid z_n, s_n, l_n)

    with the cell's own covariates :math:`s` and size factor :math:`l` (the posterior predictive of
    :cite:t:`Lopez2018`). This is **posterior resampling** of the cells in ``adata``: every draw is close to its cell,
    and no new kind of cell can arise. To draw new cells from the prior, use :func:`generate`. ``sc.pp.sample`` is
    something else: it picks a subset of the cells.

    Parameters
    ----------
    adata
        Cells with a stored posterior (:func:`fit_vae` and :func:`encode` write it) and genes of the fit, in any order.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    modality
        If ``adata`` is a MuData, the modality to draw counts of, for example ``"protein"``; results are written into it. With
        a joint fit RNA is drawn by default. Cells that lack the modality are left out.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    n_samples
        Draws per cell. One draw is written as a layer; several are returned as a new AnnData.
    genes
        Modelled genes to return instead of writing a layer: names, or a boolean array over ``adata.var``. Any modelled
        gene can be named, even if ``adata`` no longer holds it.
    transform_batch
        Batch under which every cell is decoded; by default its own. A category that is a number in ``obs`` may be given
        as a number.
    rng
        Seed of the draws, or a numpy generator. The first of several draws equals the draw of ``n_samples=1``.
    key_added
        Name of the layer; by default ``"vae_sample"``. Not available if an AnnData is returned.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``. Not available if an AnnData is returned.

    Returns
    -------
    With ``genes`` or ``n_samples`` above 1, an ``AnnData`` object with n_obs x ``n_samples`` cells and the modelled
    genes (``genes`` in the order given, else those of ``adata``): all cells of the first draw, then those of the
    second. ``obs`` is that of the cells, with the cell's name in ``"source"`` and the number of the draw in
    ``"draw"``; nothing is written.

    Otherwise returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields:

    ``adata.layers["vae_sample" | key_added]`` : :class:`scipy.sparse.csr_matrix` (dtype ``float32``)
        Counts (0 and 1 for a Bernoulli fit). **Genes that are not modelled are empty**, and a warning is raised: the
        fit knows their mean, not their distribution. For a Gaussian fit, a dense array of log values, NaN for these
        genes.
    ``adata.uns["vae_sample" | key_added]``
        ``genes``, the names of the genes that were drawn (``adata[:, adata.uns["vae_sample"]["genes"]]`` selects them),
        and ``params`` with ``drawn_from="posterior"``. A returned AnnData has ``params`` too.

    Raises
    ------
    KeyError
        If there is no such fit, posterior or size factor, or a gene of ``genes`` is not modelled.
    ValueError
        If the batch is unknown to the fit, no gene of ``adata`` is modelled, or another layer has that name.

    Notes
    -----
    If the size factor was inferred (``library="latent"``), its stored posterior mean is used.

    See Also
    --------
    generate : draw new cells from the prior.
    predictive_check : compare the draws with the counts.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> vx.tl.sample(adata)
    >>> adata.layers["vae_sample"].shape
    (700, 765)

    Three draws of two genes:

    >>> vx.tl.sample(adata, genes=["CD8A", "NKG7"], n_samples=3).shape
    (2100, 2)
    """
    check_adata(adata, copy=copy)
    cells = StoredCells.find(adata, model, key)
    fit, keys = cells.fit, cells.keys
    check_range("n_samples", n_samples, 1, 100_000, integer=True)
    layer = f"{keys.uns}_sample" if key_added is None else key_added
    check_name("key_added", layer)
    returned = genes is not None or n_samples > 1
    if returned and (key_added is not None or copy):
        given = f"key_added={key_added!r}" if key_added is not None else "copy=True"
        msg = f"{given} is not available with genes= or with n_samples= above 1, which return an AnnData and write no layer. Leave one of the two out."
        raise ValueError(msg)
    names = modelled_genes_present(adata, fit) if genes is None else modelled_genes_named(adata, fit, genes)
    if not returned:
        check_own(adata, layer, layers=[layer])
    covariates = decoding_covariates(adata, fit)
    if transform_batch is not None:
        covariates, transform_batch = one_batch(fit, covariates, transform_batch)
    library_n = library_of(adata, cells)
    start = logg.info("drawing counts")
    seed = int(seed_of(rng).integers(2**62))
    with progress_bar("sample", progress):
        matrix = draw_counts(cells, covariates, library_n, names, n_draws=n_samples, seed=seed)
    record = params_of(
        fit,
        key,
        drawn_from="posterior",
        transform_batch=transform_batch,
        rng=int(rng) if isinstance(rng, int) else None,
    )
    if returned:
        logg.info("    finished", time=start)
        has_n = has_shown(adata)
        out = draws_as_anndata(matrix[np.tile(has_n, n_samples)], adata[has_n], names, n_samples)
        out.uns[layer] = {"params": record}
        return out
    position = adata.var_names.get_indexer(names)
    if len(names) < adata.n_vars:
        how = "empty" if sparse.issparse(matrix) else "NaN"
        logg.warning(
            f"{adata.n_vars - len(names)} of the {adata.n_vars} genes of adata are not modelled by the fit and are {how} in "
            f"layers[{layer!r}]; adata[:, adata.uns[{layer!r}]['genes']] selects the others."
        )
    adata = own(adata, copy=copy)
    results = Results(
        layers={layer: spread_over_genes(matrix, position, adata.n_vars)},
        of_genes={layer: {"genes": names.to_numpy(dtype=object), "params": record}},
    )
    results.write(adata)
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None
