"""Predict by decoding control cells under another value of a covariate of the fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vxpress.bridge.ask.intervention import Intervention
from vxpress.bridge.ask.perturbation.base import Method, Moved, covariates_of
from vxpress.bridge.ask.perturbation.cells import PerturbedCells


class Counterfactual(Method):
    """The perturbation is a covariate of the fit: positions stay, and the decoder receives the target instead of the control."""

    in_latent_space = True
    needs_target = False

    @classmethod
    def wants_kept(cls, fit: Any, perturbation_key: str) -> bool:
        if perturbation_key not in [key for key, _ in fit.covariates.categorical]:
            known = [key for key, _ in fit.covariates.categorical]
            msg = (
                f"method='counterfactual' needs a fit with the perturbation as a covariate; {perturbation_key!r} is none (the fit has "
                f"{known or 'none'}). Fit with vx.tl.fit_vae(adata, categorical_covariate_keys=[{perturbation_key!r}]), or use method='shift'."
            )
            raise ValueError(msg)
        return False

    def check(self, cells: PerturbedCells) -> None:
        _intervention(cells)

    def predict(self, cells: PerturbedCells, rows: np.ndarray, group: int, learn_from: Sequence[int]) -> Moved:
        return Moved(cells.encoded[rows], _intervention(cells).apply(covariates_of(cells, rows)))


def _intervention(cells: PerturbedCells) -> Intervention:
    populations = cells.populations
    names = dict(cells.fit.covariates.categorical)[populations.perturbation_key]
    for argument, name in (("control", populations.control), ("target", populations.target)):
        if name not in names:
            msg = (
                f"{argument}={name!r} is not a category of {populations.perturbation_key!r} in the fit, which knows {list(names)}. "
                "Fit again with its cells."
            )
            raise ValueError(msg)
    return Intervention.find(cells.fit.covariates, populations.perturbation_key, populations.target)
