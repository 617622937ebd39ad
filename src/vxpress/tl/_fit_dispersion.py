"""``vx.tl.fit_dispersion``: how much counts scatter around what is decoded, fitted anew."""

from __future__ import annotations

import copy as copying
from dataclasses import replace

import numpy as np
import torch
from anndata import AnnData
from scanpy import logging as logg

from vxpress._keys import DEFAULT_KEY, Keys
from vxpress._unset import UNSET, Unset
from vxpress.bridge.find import find_fit
from vxpress.bridge.predictive import read_scored
from vxpress.bridge.prepare import seed_of
from vxpress.bridge.store import Results, check_adata, own
from vxpress.bridge.training_cells import learning_split
from vxpress.core.dispersion import has_dispersions, mean_log_likelihood, refit_dispersions

MAX_CELLS = 5_000


def fit_dispersion(
    adata: AnnData,
    *,
    key: str = DEFAULT_KEY,
    layer: str | Unset | None = UNSET,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    r"""Fit the dispersion of every gene anew, with the rest of the model left as it is.

    A training of a few hundred steps moves each :math:`\log \theta_g` only so far, and stops before those of strongly
    expressed genes, whose counts scatter little, are there: what is decoded is right, and counts drawn from it are too
    noisy.  Given what is decoded, the training cells' likelihood is a curve in one number per gene,

    .. math::

        \hat\theta_g = \arg\max_\theta \sum_n \mathbb{E}_{q(z \mid x_n)} \log p(x_{ng} \mid z, s_n, l_n, \theta)
        - \tfrac12 \Big(\frac{\log \theta - \log \theta_g}{2}\Big)^2,

    whose top is found on a grid of :math:`\log\theta`.  The last term leaves genes with hardly a count where they are.

    Posteriors, latent space and decoded expression stay as they are, to the bit. What changes is all that rests on the law
    of counts: :func:`generate`, :func:`sample`, :func:`predictive_check`, :func:`log_likelihood`. The new dispersions are kept
    only if the mean log likelihood of the validation cells, at the same draws, rises; else a warning says so.

    Parameters
    ----------
    adata
        The cells of the fit, which is in ``uns``, with their split and raw counts.
    key
        Stem of the fit.
    layer
        Layer that holds the counts; left out, the one that the fit read.
    rng
        Seed of the draws, and of the 5,000 training cells looked at where there are more.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following field:

    ``adata.uns["vae"]``
        The fit with its new dispersions. ``uns["vae"]["diagnostics"]["dispersion"]`` holds ``kept``, ``refitted``, whether the
        dispersions of the fit come from this call or an earlier one, ``gain``, the mean change of the log likelihood of
        validation cells in nats per cell, ``gain_se``, its standard error, and ``n_cells``.

    Raises
    ------
    KeyError
        If there is no such fit, or no split, since the cells are not those of the fit.
    ValueError
        If the law of the fit has no dispersion, or one that hangs on the cell, or too few cells are at hand.

    See Also
    --------
    fit_prior : learns where cells lie.
    generate : draws new cells.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=40, denoised=False)
    >>> vx.tl.fit_dispersion(adata)
    >>> bool(adata.uns["vae"]["diagnostics"]["dispersion"]["gain"] > 0)
    True
    """
    check_adata(adata, copy=copy)
    fit = find_fit(adata, None, key)
    config = fit.params.model
    if not has_dispersions(fit.model):
        msg = (
            f"The fit has likelihood={config.likelihood!r} and dispersion={config.dispersion!r}: there is no dispersion of a "
            "gene to fit. It takes likelihood='nb' or 'zinb' with a dispersion per gene, gene and batch, or gene and label."
        )
        raise ValueError(msg)
    keys = Keys.of(key)
    generator = seed_of(rng)
    train_n, validation_n = learning_split(adata, keys, "a dispersion")
    start = logg.info("fitting dispersions")
    cells = read_scored(adata, fit, layer)
    if len(train_n) > MAX_CELLS:
        train_n = np.sort(generator.permutation(train_n)[:MAX_CELLS])
    seeds = [int(seed) for seed in generator.integers(2**62, size=2)]
    new = copying.deepcopy(fit.model)
    new.decoder.log_dispersion.data.copy_(refit_dispersions(fit.model, cells, torch.from_numpy(train_n), seed=seeds[0]))
    judged = torch.from_numpy(validation_n)
    gain_n = mean_log_likelihood(new, cells, judged, seeds[1]) - mean_log_likelihood(fit.model, cells, judged, seeds[1])
    gain, gain_se = float(gain_n.mean()), float(gain_n.std(ddof=1) / np.sqrt(len(gain_n)))
    kept = bool(gain > 0)
    # a second call that finds nothing better does not undo the first
    refitted = kept or bool(fit.diagnostics.get("dispersion", {}).get("refitted", False))
    record = {"kept": kept, "refitted": refitted, "gain": gain, "gain_se": gain_se, "n_cells": len(gain_n)}
    where = f"log likelihood of {len(gain_n)} validation cells {gain:+.2f} +- {gain_se:.2f} nats per cell"
    if kept:
        logg.info(f"    {where}")
    else:
        logg.warning(f"The new dispersions are not better and were not kept: {where}.")
    adata = own(adata, copy=copy)
    result = replace(fit, model=new if kept else fit.model, diagnostics={**fit.diagnostics, "dispersion": record})
    results = Results(uns={keys.uns: result.to_uns()})
    results.write(adata)
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None
