"""Similarity of the embeddings of perturbations of a fit, from its stored cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vxpress.bridge.fits.stored_cells import StoredCells
from vxpress.core.inference.embedding_similarity import clustered_order, similarity


def similarity_record(
    cells: StoredCells, names: Sequence[str], *, level: float, n_resamples: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Return names, similarities with intervals, reliabilities and sizes, with similar perturbations next to each other."""
    conditioner = cells.fit.model.conditioner
    assert conditioner.perturbations is not None  # noqa: S101 - the fit has them
    with torch.no_grad():
        strength = conditioner.strength(cells.covariates)
        assert strength is not None  # noqa: S101 - as above
        embedding = conditioner.perturbations.embedding.detach()
        z_nd = cells.encoded.mean_nd + (strength @ embedding).numpy()
        found = similarity(
            embedding.double().numpy(),
            z_nd.astype(np.float64),
            strength.double().numpy(),
            level=level,
            n_resamples=n_resamples,
            rng=rng,
        )
    order = clustered_order(found.similarity_pp)
    square = np.ix_(order, order)
    return {
        "names": np.array(names, dtype=object)[order],
        "similarity": found.similarity_pp[square],
        "low": found.low_pp[square],
        "high": found.high_pp[square],
        "reliability": found.reliability_p[order],
        "size": embedding.double().norm(dim=1).numpy()[order],
    }
