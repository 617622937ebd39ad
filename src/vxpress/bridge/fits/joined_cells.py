"""The other modalities of cells that are read for a joint fit."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.read.further import Further, no_counts, read_further
from vxpress.bridge.read.joint import joint_of
from vxpress.core.data import Source


def with_modalities(adata: AnnData, fit: Fit, rna: Source, has_rna_n: np.ndarray, *, layer: str | None) -> Source:
    """Return cells with all modalities of a fit; those of an AnnData have RNA alone."""
    joint = joint_of(adata)
    if joint is None:
        further = Further({name: no_counts(adata.n_obs, found) for name, found in fit.features.items()})
    else:
        further = read_further(joint, fit.params.modalities[1:], layer, fit.features)
    return further.join(rna, has_rna_n)
