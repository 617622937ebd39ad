"""The slots of an AnnData that hold the posteriors of the latent blocks of a fit."""

from __future__ import annotations

import numpy as np
import torch

from vxpress._keys import Keys
from vxpress.bridge.fits.results import Results
from vxpress.core.data import Source
from vxpress.core.inference.posterior import Encoded, Views
from vxpress.core.model import VAE


def add_posterior(
    results: Results, model: VAE, views: Views, cells: Source, keys: Keys, *, library_n: np.ndarray
) -> None:
    """Add the posterior of every block in each view, and the size factors ``library_n`` unless a block infers them.

    With perturbations, also the mean of z with their effects, of the ``cells``.
    """
    results.obs[keys.library] = library_n
    removed, kept = views
    add_blocks(results, model, removed, keys)
    with torch.no_grad():
        shift_nd = model.conditioner.shift(cells.covariates)
    if shift_nd is not None:
        results.obsm[keys.perturbed] = removed.mean_nd + shift_nd.numpy()
    if kept is not None:
        # a cell has one size factor
        add_blocks(results, model, kept.of(model.decoded_blocks), keys.kept())


def add_blocks(results: Results, model: VAE, encoded: Encoded, keys: Keys) -> None:
    """Add the posterior of the blocks that are encoded."""
    for name, mean_nd in encoded.mean.items():
        for slot, values in model.blocks[name].slots(keys, mean_nd, encoded.var[name]).items():
            getattr(results, slot).update(values)
