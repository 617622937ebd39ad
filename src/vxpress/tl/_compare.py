"""``vx.tl.compare``: rank fits by held-out likelihood."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import check_name
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress._unset import UNSET, Unset
from vxpress.bridge.ask.comparable import MIN_CELLS, check_settings, shared_cells
from vxpress.bridge.ask.compared_fits import Models, find_candidates
from vxpress.bridge.ask.comparison import LEVEL, read_cells, score_fits, table_of
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import Results, check_replaceable, own
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.prepare import resolve_device

# the bound is also computed with one FEWER-th of the samples
FEWER = 10


@entry
@takes_mudata("cells")
def compare(
    adata: AnnData | MuData,
    models: Models = None,
    *,
    modality: str | None = None,
    cells: str | np.ndarray | None = None,
    layer: str | Unset | None = UNSET,
    n_samples: int = 1_000,
    n_cells: int = 1_000,
    rng: int | np.random.Generator | None = 0,
    device: str | torch.device = "auto",
    key_added: str = "vae_compare",
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Rank fits by the likelihood of cells that none of them was trained on.

    Each fit scores every cell with the importance-weighted bound on its log likelihood (:cite:t:`Burda2016`; see
    :func:`log_likelihood`), once with :math:`K` samples and once with the first tenth of them, :math:`K / 10`. Fits
    with equal settings and different seeds count as one model. The paired difference between a model and the best one
    is averaged over cells. Its variance is

    .. math::

        \frac{\mathrm{Var}_n(d_n)}{N} + \frac{\mathrm{Var}_s(\bar L_{as})}{S_a} + \frac{\mathrm{Var}_s(\bar L_{bs})}{S_b},
        \qquad d_n = \bar L_{an} - \bar L_{bn},

    so the interval accounts for the sampling of the :math:`N` cells and, for models with several fits, of the seeds
    (Student's t with degrees of freedom after Welch and Satterthwaite). A model is *worse* if the interval does not
    contain 0 and the difference exceeds what either bound still gained from :math:`K / 10` to :math:`K` samples.
    Otherwise the two are *undecided*.

    Parameters
    ----------
    adata
        Cells with raw counts of the genes of the fits, and with their covariates in ``obs``.
    models
        Fits to compare: a list, or a mapping from names to fits. A fit is the name of a fit in ``adata``, an AnnData,
        an ``.h5ad``, zarr or ``.safetensors`` file, or a pair ``(AnnData or file, name)``. ``None`` compares all fits
        in ``adata``.
    modality
        If ``adata`` is a MuData, the modality to use with a fit of one modality; results are written into it. With a joint
        fit, the likelihoods of all modalities are added, for cells that have RNA, and results are written into the MuData.
    cells
        Cells to compare on: a boolean array or a boolean column of ``obs``. None of them may be a training cell. By
        default the cells that every fit has recorded as held out. Fits in other places recognise cells by their
        ``obs_names``. If such a place holds all cells that a fit was trained on, a cell of another name was not among
        them, unless only a part was added to its name, as concatenation does. A file of weights has no record of cells,
        so ``cells`` is required for it.
    layer
        Layer with the counts, or ``None`` for ``adata.X``; by default the layer that the fits read.
    n_samples
        Samples per cell, :math:`K`. With 1,000 samples a fit takes about 20 seconds for 1,000 cells and 2,000 genes on
        one core. The density of a diffusion or flow-matching prior is integrated for every sample, which adds about a
        millisecond per sample, and as much again for every condition. This can take quarters of an hour, so use 100.
    n_cells
        Maximum number of cells used, drawn with ``rng``.
    rng
        Seed of cells and samples, or a numpy generator.
    device
        ``"auto"`` uses CUDA if it is available, else the CPU; or ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    key_added
        Name of the entry of ``uns``.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following field:

    ``adata.uns["vae_compare"]``
        ``table``, a :class:`pandas.DataFrame` with one row per model, the best first, and ``params``. The columns are

        - ``rank``;
        - ``n_fits``, and ``fits``, their names;
        - ``likelihood``, ``n_latent`` and ``prior``;
        - ``log_likelihood``, in nats per cell with ``n_samples`` samples, and ``se``, its standard error over cells and
          seeds;
        - ``log_likelihood_fewer``, the same with a tenth of the samples;
        - ``ess_median``, the median effective sample size, out of ``n_samples``;
        - ``difference`` from the best model, with ``ci_low`` and ``ci_high`` at 95 %;
        - ``gap``, which the difference must exceed (the larger of the two gains from more samples);
        - ``verdict``: ``"best"``, ``"worse"`` or ``"undecided"``.

    Raises
    ------
    ValueError
        If the likelihoods are not comparable (different genes, library or observation: counts, log values, detection),
        fewer than 200 cells are held out by all fits, or a fit was trained on a cell of ``cells``.
    KeyError
        If there is no such fit, or a column of ``obs`` that a fit needs is missing.
    TypeError
        If ``models`` is neither a list nor a mapping of places where fits can be.

    See Also
    --------
    vxpress.tl.log_likelihood : the bound of every cell under one fit.

    Notes
    -----
    In :func:`fit_vae`, the held-out cells also chose the epoch that was kept; this holds for every fit. With one fit
    per model, the interval does not cover the variation between seeds, and a warning is raised: the verdict is about
    these fits, and another seed with the same settings can reverse it (measured, see the guide). ``gap`` indicates the
    size of what the bounds still lack; it is not an upper limit. Likelihoods given a covariate and likelihoods without
    it are comparable, as predictions made with and without that covariate.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> for n_latent in (2, 10):
    ...     vx.tl.fit_vae(
    ...         adata,
    ...         n_latent=n_latent,
    ...         validation_fraction=0.3,
    ...         max_epochs=20,
    ...         denoised=False,
    ...         key_added=f"vae{n_latent}",
    ...     )
    >>> vx.tl.compare(adata, ["vae2", "vae10"], n_samples=100)
    >>> table = adata.uns["vae_compare"]["table"]
    >>> table["verdict"].iloc[0], int(adata.uns["vae_compare"]["params"]["n_cells"])
    ('best', 210)
    """
    check_adata(adata, copy=copy)
    check_name("key_added", key_added)
    check_range("n_samples", n_samples, FEWER, 10_000_000, integer=True)
    check_range("n_cells", n_cells, MIN_CELLS, 10_000_000, integer=True)
    check_replaceable(adata, key_added, ours=lambda stored: {"table", "params"} <= set(stored))
    generator, torch_device = seed_of(rng), resolve_device(device)
    candidates = find_candidates(adata, models)
    check_settings(candidates, layer)
    rows = np.flatnonzero(shared_cells(adata, candidates, cells))
    if len(rows) > n_cells:
        rows = np.sort(generator.permutation(rows)[:n_cells])
    start = logg.info(f"comparing {len(candidates)} fits")
    with progress_bar("compare", progress):
        scored = read_cells(adata, candidates, rows, layer)
        seed, fewer = int(generator.integers(2**62)), int(n_samples) // FEWER
        found = score_fits(candidates, scored, (fewer, int(n_samples)), seed=seed, device=torch_device)
    table = table_of(candidates, found)
    params: dict[str, Any] = {
        "n_cells": len(scored[0][1]),
        "n_samples": int(n_samples),
        "n_samples_fewer": fewer,
        "level": LEVEL,
    }
    if isinstance(rng, int):
        params["rng"] = int(rng)
    adata = own(adata, copy=copy)
    results = Results(uns={key_added: {"table": table, "params": params}})
    results.write(adata)
    logg.info("\n".join(f"    {row.Index}: {row.log_likelihood:.2f}, {row.verdict}" for row in table.itertuples()))
    alone = list(table.index[table["n_fits"] == 1])
    if alone:
        logg.warning(
            f"There is only one fit of each of {alone}: the intervals do not cover the variation between seeds, so equal models "
            "can be found to differ. Fit each with two more seeds (rng=1, rng=2, with a key_added= for each) and compare again."
        )
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None
