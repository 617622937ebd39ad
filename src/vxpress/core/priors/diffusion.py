"""A diffusion model of z."""

from __future__ import annotations

import torch
from torch import Tensor

from vxpress.core.priors.gaussian_path import GaussianPath
from vxpress.core.velocity import FAR, NEAR


class Diffusion(GaussianPath):
    """Latent diffusion (Vahdat et al. 2021) with the cosine schedule and velocity prediction (Salimans & Ho 2022).

    Angles are drawn uniformly, all with the same weight.
    """

    n_steps, learning_rate = 1500, 5e-3

    def angles(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return angles that are uniform between the ends."""
        return NEAR + (FAR - NEAR) * u, torch.ones_like(u)

    def bound_weight(self, phi: Tensor) -> Tensor:
        """Compute cot(phi) divided by the density of the angles."""
        return (FAR - NEAR) / phi.tan()
