"""Set one covariate of a fit to another value in all cells."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch

from vxpress._names import find_name
from vxpress.bridge.read.covariates import CovariateTable, warn_far
from vxpress.bridge.read.perturbations import Condition
from vxpress.core.covariates import Covariates
from vxpress.core.inference.posterior import Encoded
from vxpress.core.inference.support import closeness


@dataclass(frozen=True)
class Intervention:
    """Covariate ``key``, the ``position``-th of its kind, set to ``value``: the name of a category, or a number.

    ``code`` is the input of the model: the code of the category, or the standardised number. For the perturbation, it is
    ``dose``, in units of the highest doses of the fit.
    """

    key: str
    position: int
    value: str | float
    code: float
    categorical: bool
    dose: tuple[float, ...] | None = None

    @classmethod
    def find(cls, table: CovariateTable, key: str, value: Condition) -> Intervention:
        """Return the intervention after checking it against the covariates of the fit."""
        if table.perturbations is not None and key == table.perturbations.key:
            dose_p = table.perturbations.condition(value, "value")
            dose = tuple(map(float, table.perturbations.scaled(dose_p)))
            return cls(key, 0, table.perturbations.name_of(dose_p), 0.0, categorical=True, dose=dose)
        categorical, continuous = [name for name, _ in table.categorical], [name for name, _ in table.continuous]
        if key in categorical and key in continuous:
            msg = f"key_covariate={key!r} is both a categorical and a continuous covariate of the fit. Fit again with one of the two."
            raise ValueError(msg)
        if key in categorical:
            i = categorical.index(key)
            names = table.categorical[i][1]
            name = find_name(value, names)
            if name is None:
                msg = f"value={value!r} is not a category of {key!r} in the fit, which knows {list(names)}. Choose one of these."
                raise ValueError(msg)
            return cls(key, i, name, names.index(name), categorical=True)
        if key not in continuous:
            known = [*categorical, *continuous]
            known += [] if table.perturbations is None else [table.perturbations.key]
            msg = (
                f"key_covariate={key!r} is not a covariate of the fit (it has {known or 'none'}). Only covariates of the "
                "decoder can be changed: fit with batch_key=, categorical_covariate_keys= or continuous_covariate_keys=; and labels "
                "of a fit with labels_key= and unlabeled_category=."
            )
            raise KeyError(msg)
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real) or not np.isfinite(float(value)):
            msg = f"value={value!r} was given for the continuous covariate {key!r}; a finite number in its own units is expected."
            raise ValueError(msg)
        c = continuous.index(key)
        _, scale = table.continuous[c]
        warn_far(key, scale, np.array([float(value)]), "value= is")
        return cls(key, c, float(value), float(scale.standardise(np.array(float(value)))), categorical=False)

    def apply(self, covariates: Covariates) -> Covariates:
        """Return the covariates with the new value in all cells."""
        if self.dose is not None:
            return covariates.with_doses(torch.tensor(self.dose))
        if self.categorical:
            return covariates.with_category(self.position, int(self.code))
        return covariates.with_value(self.position, self.code)

    def move(self, encoded: Encoded) -> Encoded:
        """Return the same latent positions: covariates enter the decoder."""
        return encoded

    def weights(self, covariates: Covariates) -> np.ndarray:
        """Weigh each cell by how close it is to the value, float64 (n,).

        It is 1 or 0 for a category, a kernel for a number, and for the same perturbations the product of the ratios of doses.
        """
        if self.dose is not None and covariates.dose_np is not None:
            dose_np, wanted_p = covariates.dose_np.double().numpy(), np.array(self.dose)
            low, high = np.minimum(dose_np, wanted_p), np.maximum(dose_np, wanted_p)
            return np.asarray(np.where(high > 0, low / np.where(high > 0, high, 1.0), 1.0).prod(1))
        if self.categorical:
            return (covariates.categorical_nk[:, self.position].numpy() == int(self.code)).astype(np.float64)
        return closeness(covariates.continuous_nc[:, self.position].numpy().astype(np.float64), self.code)
