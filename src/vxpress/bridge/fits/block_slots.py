"""The slots of an AnnData that hold the posteriors of the latent blocks of a fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData

from vxpress._keys import Keys
from vxpress.bridge.fits.results import Results
from vxpress.core.inference.posterior import Encoded
from vxpress.core.model import VAE


def add_posterior(results: Results, model: VAE, encoded: Encoded, keys: Keys, library_n: np.ndarray) -> None:
    """Add the posterior of every block, and the size factors ``library_n`` unless a block infers them."""
    results.obs[keys.library] = library_n
    add_blocks(results, model, encoded, keys)


def add_blocks(results: Results, model: VAE, encoded: Encoded, keys: Keys) -> None:
    """Add the posterior of the blocks that are encoded."""
    for name, mean_nd in encoded.mean.items():
        for slot, values in model.blocks[name].slots(keys, mean_nd, encoded.var[name]).items():
            getattr(results, slot).update(values)


def stale_blocks(adata: AnnData, keys: Keys, model: VAE) -> list[tuple[str, str]]:
    """Return slots and names that an earlier fit under this name wrote for blocks that the new one does not have."""
    stored: Any = adata.uns.get(keys.uns, {})
    for part in ("params", "model"):
        stored = stored.get(part, {}) if isinstance(stored, Mapping) else {}
    earlier = stored.get("blocks", ()) if isinstance(stored, Mapping) else ()
    gone = [str(name) for name in np.asarray(earlier).reshape(-1) if str(name) not in model.blocks]
    return [("obsm", name) for block in gone for name in keys.of_block(block)]
