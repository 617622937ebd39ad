"""Predict by adding the effects of perturbations that a fit has learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vxpress.bridge.ask.perturbation.base import Method, Moved, covariates_of
from vxpress.bridge.ask.perturbation.cells import PerturbedCells
from vxpress.bridge.read.perturbations import PerturbationTable


class Additive(Method):
    """The fit has embeddings of single perturbations, whose effects add up: control cells are decoded with those of the target.

    The target may be a combination that was never observed.
    """

    in_latent_space = True
    needs_target = False

    @classmethod
    def wants_kept(cls, fit: Any, perturbation_key: str) -> bool:
        table = fit.covariates.perturbations
        if table is None or table.key != perturbation_key:
            msg = (
                f"method='additive' needs a fit of the perturbations in obs[{perturbation_key!r}]"
                f"{'' if table is None else f'; this one has those in {table.key!r}'}. Fit with vx.tl.fit_vae(adata, "
                f"perturbation_key={perturbation_key!r}, control=...), or use method='shift' with a fit without perturbations."
            )
            raise ValueError(msg)
        return False

    @classmethod
    def check(cls, cells: PerturbedCells) -> None:
        table, control = _table(cells), cells.populations.control
        if table.condition(control, "control=").any():
            msg = f"control={control!r} is not the control of the fit, {table.control!r}. method='additive' starts from cells without a perturbation."
            raise ValueError(msg)
        table.condition(cells.populations.target, "target=")

    def predict(self, cells: PerturbedCells, rows: np.ndarray, group: int, learn_from: Sequence[int]) -> Moved:
        table = _table(cells)
        dose_p = torch.from_numpy(table.scaled(table.condition(cells.populations.target, "target=")))
        return Moved(cells.encoded[rows], covariates_of(cells, rows).with_doses(dose_p))


def _table(cells: PerturbedCells) -> PerturbationTable:
    table = cells.fit.covariates.perturbations
    assert table is not None  # noqa: S101 - wants_kept raises without
    return table
