"""Decode cells as if they had another of the labels that a fit was given."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from vxpress._names import find_name
from vxpress.bridge.fits.annotator import LabelModel
from vxpress.bridge.read.columns import get_categories
from vxpress.core.annotation.novelty import Normals
from vxpress.core.blocks import Z
from vxpress.core.covariates import Covariates
from vxpress.core.inference.posterior import Encoded


@dataclass(frozen=True)
class Relabelling:
    """The label ``key`` of all cells set to ``value``.

    Labels do not enter the decoder, so the latent positions move: by the mean position of the labelled cells of the fit
    with this label, less that of the cell's own label (as scGen moves cells; Lotfollahi et al. 2019). ``code_n`` are the
    labels of the cells, ``mean_cd`` the mean positions.
    """

    key: str
    value: str
    target: int
    code_n: np.ndarray
    mean_cd: np.ndarray
    categorical: bool = True

    @classmethod
    def find(cls, labels: LabelModel, encoded: Encoded, obs: pd.DataFrame, value: Hashable) -> Relabelling:
        """Return the change for these cells; one without a label in ``obs`` has that of the nearest distribution of labelled cells."""
        name = find_name(value, labels.names)
        if name is None:
            msg = f"value={value!r} is not a label of {labels.key!r} in the fit, which knows {list(labels.names)}. Choose one of these."
            raise ValueError(msg)
        known = labels.annotator.labelled
        normals = Normals.of(known.z_md.astype(np.float64), known.code_m)
        code_n = normals.nearest(encoded.mean_nd.astype(np.float64))
        if labels.key in obs:
            found = get_categories(obs, labels.key, argument="key_covariate", gaps=True)
            own_n = np.append(found.among(labels.names), -1)[found.code_n]
            code_n = np.where(own_n >= 0, own_n, code_n)
        return cls(labels.key, name, labels.names.index(name), code_n, normals.mean_cd)

    def apply(self, covariates: Covariates) -> Covariates:
        """Return the same covariates, which do not hold the label."""
        return covariates

    def weights(self, covariates: Covariates) -> np.ndarray:
        """Weigh each cell by whether it has the label, float64 (n,)."""
        return (self.code_n == self.target).astype(np.float64)

    def move(self, encoded: Encoded) -> Encoded:
        """Return the cells at their positions under the new label, with the same variances."""
        shift_nd = self.mean_cd[self.target] - self.mean_cd[self.code_n]
        return replace(encoded, mean=encoded.mean | {Z: (encoded.mean_nd + shift_nd).astype(np.float32)})
