"""Predict by adding the effects of perturbations that a fit has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vxpress.bridge.ask.perturbation.base import Method, Moved, covariates_of
from vxpress.bridge.ask.perturbation.cells import PerturbedCells
from vxpress.bridge.read.perturbations import PerturbationTable
from vxpress.core.option import Options


@dataclass(frozen=True)
class AdditiveOptions(Options):
    """Dose of the target: one number, or text with one for each part, ``"0.5+1"``; by default the highest of the fit."""

    dose: Any = None


class Additive(Method):
    """The fit has embeddings of single perturbations, whose effects add up: control cells are decoded with those of the target.

    The target may be a combination that was never observed.
    """

    Options = AdditiveOptions
    options: AdditiveOptions
    in_latent_space = True
    weighs_genes = True
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

    def check(self, cells: PerturbedCells) -> None:
        table, control = _table(cells), cells.populations.control
        if table.condition(control, "control=").any():
            msg = f"control={control!r} is not the control of the fit, {table.control!r}. method='additive' starts from cells without a perturbation."
            raise ValueError(msg)
        self._dose(cells)

    def follows_observed(self, cells: PerturbedCells) -> bool:
        # cells with the target may have other doses
        return _table(cells).dose_key is None

    def predict(self, cells: PerturbedCells, rows: np.ndarray, group: int, learn_from: Sequence[int]) -> Moved:
        dose_p = torch.from_numpy(_table(cells).scaled(self._dose(cells)))
        return Moved(cells.encoded[rows], covariates_of(cells, rows).with_doses(dose_p))

    def _dose(self, cells: PerturbedCells) -> np.ndarray:
        return _table(cells).condition(cells.populations.target, "target", self.options.dose)


def _table(cells: PerturbedCells) -> PerturbationTable:
    table = cells.fit.covariates.perturbations
    assert table is not None  # noqa: S101 - wants_kept raises without
    return table
