"""What is believed of z before a cell is seen.  A new prior is one class and one line in :data:`PRIORS`."""

from __future__ import annotations

from vxpress.core.priors.base import DiagonalNormal, Prior, gaussian_kl
from vxpress.core.priors.standard_normal import StandardNormal

PRIORS: dict[str, type[Prior]] = {"normal": StandardNormal}

__all__ = ["PRIORS", "DiagonalNormal", "Prior", "StandardNormal", "gaussian_kl"]
