"""Flow matching from noise to z."""

from __future__ import annotations

import torch
from torch import Tensor

from vxpress.core.priors.gaussian_path import GaussianPath
from vxpress.core.velocity import FAR, NEAR


class FlowMatching(GaussianPath):
    """Flow matching on the linear path t z + (1 - t) eps with uniform t (Lipman et al. 2023).

    The loss is the mean squared error of the velocity z - eps. In the coordinates shared with diffusion this error is
    |v - f|^2 / (t^2 + (1 - t)^2).
    """

    n_steps, learning_rate = 1500, 5e-3

    def angles(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return angles that are uniform in t = 1 / (1 + tan(phi)), between the ends of the path."""
        first, last = (1.0 / (1.0 + torch.tensor(end, device=u.device).tan()) for end in (FAR, NEAR))
        t = first + (last - first) * u
        return ((1.0 - t) / t).atan(), 1.0 / (t.square() + (1.0 - t).square())

    def bound_weight(self, phi: Tensor) -> Tensor:
        """Compute cot(phi) divided by the density of the angles, dt / dphi = (cos + sin)^-2."""
        first, last = (1.0 / (1.0 + torch.tensor(end, device=phi.device).tan()) for end in (FAR, NEAR))
        return (last - first) * (phi.cos() + phi.sin()).square() / phi.tan()
