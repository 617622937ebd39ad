"""What a method of prediction is: it moves control cells in the latent space, or changes the mean profile of their group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vxpress.bridge.ask.perturbation.cells import PerturbedCells
from vxpress.core.covariates import Covariates
from vxpress.core.inference.posterior import Encoded
from vxpress.core.option import Options as NoOptions
from vxpress.core.registry import Registry

METHODS: Registry[Any] = Registry("perturbation method", home="vxpress.bridge.ask.perturbation.methods")


@dataclass(frozen=True)
class Moved:
    """Where control cells are under the perturbation, and under which covariates they are decoded there.

    With ``change_g``, float64 (genes,), the mean profile of the cells is made to change by it; otherwise it changes as
    decoded.
    """

    encoded: Encoded
    covariates: Covariates
    change_g: np.ndarray | None = None


class Method:
    """A method of prediction, made anew for every call.

    A subclass implements :meth:`predict`, and says what it can work with.
    """

    Options: ClassVar[type[NoOptions]] = NoOptions
    """The options of this method, a frozen dataclass."""
    in_latent_space: ClassVar[bool] = False
    """Whether it decodes positions or covariates; otherwise it is a floor, which changes mean profiles of observed counts."""
    weighs_genes: ClassVar[bool] = False
    """Whether the anchor has more weight for genes whose change was measured precisely."""
    costly: ClassVar[bool] = False
    """Whether a prediction from other groups takes seconds, so that few groups are left out in turn."""
    needs_target: ClassVar[bool] = True
    """Whether some group needs cells with the target perturbation."""

    def __init__(self, options: NoOptions | None, seed: int) -> None:
        self.options = self.Options() if options is None else options
        self.seed = seed

    def anew(self) -> Method:
        """Return the same method for another fit."""
        return type(self)(self.options, self.seed)

    @classmethod
    def wants_kept(cls, fit: Any, perturbation_key: str) -> bool:
        """Return whether the method works in the view that keeps the effects of optional covariates; raises if it cannot work."""
        return False

    def check(self, cells: PerturbedCells) -> None:
        """Raise ``ValueError`` if the method cannot work with these cells."""

    def follows_observed(self, cells: PerturbedCells) -> bool:
        """Return whether what it decodes may be corrected by the observed changes of cells with the target."""
        return self.in_latent_space

    def predict(self, cells: PerturbedCells, rows: np.ndarray, group: int, learn_from: Sequence[int]) -> Moved:
        """Predict control cells of a group from the treated cells of the groups ``learn_from`` only."""
        raise NotImplementedError


def unmoved(cells: PerturbedCells, rows: np.ndarray, change_g: np.ndarray) -> Moved:
    """Return the prediction that only changes the mean profile."""
    return Moved(cells.encoded[rows], covariates_of(cells, rows), change_g)


def covariates_of(cells: PerturbedCells, rows: np.ndarray) -> Covariates:
    """Return the covariates of some cells."""
    import torch

    return cells.covariates[torch.from_numpy(rows)]
