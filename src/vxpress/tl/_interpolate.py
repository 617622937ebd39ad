"""``vx.tl.interpolate``: a path through the latent space, decoded, with its density."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_choice, check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress.bridge.ask.arguments import genes_of_fit, total_from
from vxpress.bridge.ask.endpoints import Endpoint, endpoint_name, endpoint_rows
from vxpress.bridge.ask.interpolation import (
    Method,
    check_apart,
    covariates_of,
    decode_path,
    path_with_densities,
    warn_empty,
    with_other_blocks,
)
from vxpress.bridge.fits.find_fit import Model
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.stored_cells import StoredCells
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.covariates import Batches


@entry
@takes_mudata()
def interpolate(
    adata: AnnData | MuData,
    source: Endpoint,
    target: Endpoint,
    *,
    modality: str | None = None,
    groupby: str | None = None,
    n_steps: int = 21,
    method: Method = "linear",
    genes: str | Sequence[str] | np.ndarray | None = None,
    transform_batch: Batches | None = None,
    covariates: Mapping[str, Any] | None = None,
    target_sum: float | None = None,
    min_percentile: float = 5.0,
    model: Model = None,
    key: str = DEFAULT_KEY,
    rng: int | np.random.Generator | None = 0,
    progress: bool | None = None,
) -> AnnData:
    r"""Decode a path through the latent space from one cell or group of cells to another.

    The ends are the mean posterior means of the cells. Between them, at :math:`t` from 0 to 1, the path is

    - ``"linear"``: :math:`z(t) = (1 - t) z_0 + t z_1`;
    - ``"spherical"``: the arc around the origin on which direction and norm change evenly :cite:p:`Shoemake1985`;
    - ``"flow"``: the straight line in the base space of a learned flow :math:`f`, mapped back,
      :math:`f^{-1}((1 - t) f(z_0) + t f(z_1))`. The flow stretches regions where it has learned a high density, so the
      path bends to follow the cells. It needs a fit whose prior is a flow: ``vx.tl.fit_prior(adata, prior="flow")``.

    Further latent variables (``FitOptions(blocks=)``) move linearly between their means at the ends with every method.

    A path may cross regions without any cells, and the decoder returns expression there too. Each step therefore has
    its density under the aggregate posterior :math:`\frac{1}{N} \sum_n q(z \mid x_n)` of the cells of ``adata``, and a
    percentile. For the percentile, the cells of the two ends are moved along the path, :math:`z_n + z(t) - z(0)`. The
    density around each moved cell, without its own posterior, is compared with the density around the unmoved cells of
    both ends (around all cells, if an end has fewer than 20), and the median over moved cells is taken. Comparing the
    path itself would flag too few steps: the density at the mean of a group is higher than around any typical cell, the
    more so the more latent dimensions there are. Steps below ``min_percentile`` are flagged, and a warning names them.

    Parameters
    ----------
    adata
        Cells with a stored posterior (:func:`fit_vae` and :func:`encode` write it). They define where cells are in the
        latent space: pass all of them.
    source, target
        Start and end of the path: a group of ``obs[groupby]``; without ``groupby`` the name of a cell, names of cells,
        or a boolean array over cells. A category that is a number in ``obs`` may be given as a number.
    modality
        If ``adata`` is a MuData, the modality to use, for example ``"rna"``; its fit has to be one of this modality alone.
    groupby
        Column of ``obs`` with the groups that ``source`` and ``target`` name.
    n_steps
        Points on the path, including its ends.
    method
        Kind of path: ``"linear"``, ``"spherical"`` or ``"flow"``.
    genes
        Genes to decode, by name; by default all genes of the fit.
    transform_batch
        Batches under which steps are decoded; by default the average over all batches, as in :func:`denoise`.
        A category that is a number in ``obs`` may be given as a number.
    covariates
        Values of other covariates of the fit, by column. By default the most frequent category among the cells of the
        two ends (the mean of a number). They are the same at every step, so that only :math:`z` changes along the path.
        A category that is a number in ``obs`` may be given as a number.
    target_sum
        Factor that shares are multiplied with; by default the ``target_sum`` of the fit. With a size factor the
        result is expected counts.
    min_percentile
        A step is flagged if its density percentile is below this value: more than half of the moved cells would then be
        at a lower density than all cells except this percentage of them.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    rng
        Seed of the subsamples: 10,000 cells for the density, and 200 cells of each end that are moved, if there are
        more. The paths themselves are not random.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.

    Returns
    -------
    An ``AnnData`` object with one row per step, ready for :func:`vxpress.pl.trajectory` and ``sc.pl.heatmap``:

    ``X`` : :class:`numpy.ndarray` (dtype ``float32``)
        Expected expression, n_steps x genes, on the scale of ``target_sum``, not log-transformed (for a Gaussian fit
        expected log values).
    ``obs["position"]``
        :math:`t`, from 0 to 1.
    ``obs["log_density"]``, ``obs["density_percentile"]``
        Log density of the step under the aggregate posterior in nats, and the percentile described above.
    ``obs["prior_log_density"]``, ``obs["prior_percentile"]``
        Log density of the step under the prior of the fit, and the percentage of cells with a lower one. They do not
        affect the flag, because N(0, I) is dense between clusters too. The density of a diffusion or flow-matching
        prior takes milliseconds per cell and condition, so it is compared with that of 300 cells only.
    ``obs["empty"]``
        Whether the step is flagged.
    ``obsm["X_vae"]`` : :class:`numpy.ndarray`
        The path, n_steps x n_latent.
    ``uns["vae_interpolate"]``
        ``"params"``: ends, method and settings.

    Raises
    ------
    KeyError
        If there is no such fit or posterior, or a cell, gene or covariate is unknown.
    ValueError
        If a group has no cells, the ends are the same, or the prior lacks the invertible map that ``method="flow"``
        needs.

    Notes
    -----
    A path shows what the model predicts for latent states between the cells. It is not a time course: cells need not
    develop along it, and distance along it is distance in the latent space.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> path = vx.tl.interpolate(adata, "CD4+/CD25 T Reg", "CD14+ Monocyte", groupby="bulk_labels", n_steps=11)
    >>> path.shape
    (11, 765)
    >>> path.obs["position"].iloc[[0, -1]].to_list()
    [0.0, 1.0]
    """
    check_adata(adata, copy=False)
    cells = StoredCells.find(adata, model, key)
    fit, keys = cells.fit, cells.keys
    check_choice("method", method, Method)
    check_range("n_steps", n_steps, 2, 100_000, integer=True)
    check_range("min_percentile", min_percentile, 0.0, 100.0)
    ends = [endpoint_rows(adata, end, groupby, name) for end, name in ((source, "source"), (target, "target"))]
    posterior = cells.encoded.mean_nd.astype(np.float64), cells.encoded.var_nd.astype(np.float64)
    check_apart(posterior[0], ends)
    wanted = None if genes is None else genes_of_fit(adata, fit, genes)
    scale = total_from(fit, target_sum)
    obs = covariates_of(adata, fit, covariates, np.concatenate(ends), n_steps)
    batches = fit.covariates.decoding_batches(transform_batch)
    generator = seed_of(rng)
    if adata.n_obs < 3:
        msg = f"adata has {adata.n_obs} cells, too few to estimate the density of cells in the latent space. Pass all cells of the fit."
        raise ValueError(msg)

    start = logg.info(f"interpolating ({method})")
    with progress_bar("interpolate", progress):
        position_s = np.linspace(0.0, 1.0, n_steps)
        path_sd, density = path_with_densities(fit, method, position_s, posterior, ends, rng=generator)
        density["empty"] = density["density_percentile"] < min_percentile
        path = with_other_blocks(path_sd, position_s, cells.encoded, ends)
        matrix = decode_path(fit, path, obs, batches=batches, scale=scale, genes=wanted)
    names = [endpoint_name(adata, groupby, rows) for rows in ends]
    warn_empty(density["empty"], position_s, names, method)
    params = {
        "key": key,
        "method": method,
        "source": names[0],
        "target": names[1],
        "n_source": len(ends[0]),
        "n_target": len(ends[1]),
        "min_percentile": float(min_percentile),
        "target_sum": float(scale),
    }
    if groupby is not None:
        params["groupby"] = groupby
    logg.info("    finished", time=start)
    return AnnData(
        matrix,
        obs=pd.DataFrame({"position": position_s} | density, index=[f"step-{i}" for i in range(n_steps)]),
        var=pd.DataFrame(index=pd.Index(fit.genes if wanted is None else fit.genes[wanted], dtype=object)),
        obsm={keys.latent: path.mean_nd},
        uns={f"{keys.uns}_interpolate": {"params": params}},
    )
