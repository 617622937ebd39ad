"""Expression of genes outside the modelled subset: a linear readout from the frozen body of the decoder.

How it is fitted and read depends on the output of the likelihood, see :mod:`vxpress.core.likelihoods.output`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vxpress.core.blocks import Point
from vxpress.core.data import Batch, Source
from vxpress.core.likelihoods import ToReadOut
from vxpress.core.model import VAE


def fit_readout(
    model: VAE,
    cells: Source,
    outside: Source,
    point: Point,
    train_rows: Tensor,
    validation_rows: Tensor,
    *,
    seed: int,
    drawn: Point | None = None,
) -> None:
    """Fit ``model.decoder.readout`` in place on a point of all cells, their posterior means; the rest of the model does not change.

    With ``drawn``, a draw from their posteriors, a fit by steps is judged there: expression is averaged over draws, which differ
    more from each other than means do along empty dimensions.
    """

    def features_at(at: Point) -> Callable[[Batch], Tensor]:
        @torch.no_grad()
        def features(batch: Batch) -> Tensor:
            return model.features({name: value[batch.rows] for name, value in at.items()}, batch.covariates)

        return features

    judged = features_at(point if drawn is None else drawn)
    tables = None
    if model.panels is not None and outside.covariates.panel_n is not None:
        tables = (model.panels.measured_pg, model.panels.outside_pg)
    data = ToReadOut(cells, outside, features_at(point), judged, train_rows, validation_rows, seed, tables)
    model.decoder.output.fit_readout(model.layers, data)
