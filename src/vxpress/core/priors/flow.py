"""A normalising flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vxpress.core.config import PriorConfig
from vxpress.core.isolation import on_device
from vxpress.core.priors.base import StandardisedPrior

TRANSFORMS, HIDDEN, BINS = 3, (64, 64), 8


class Flow(StandardisedPrior):
    """Autoregressive rational-quadratic splines (Durkan et al. 2019) of the standardised z, from zuko.

    The condition is the context of the networks.  The flow is initialised to the identity, a normal distribution.
    """

    invertible = True
    n_steps, learning_rate = 600, 2e-3

    def __init__(self, config: PriorConfig, n_latent: int, n_inputs: int = 0) -> None:
        super().__init__(config, n_latent, n_inputs)
        import zuko

        # masks are computed from values, and "meta" tensors have no values
        with on_device("cpu"):
            self.flow = zuko.flows.NSF(
                n_latent, config.n_conditions, bins=BINS, transforms=TRANSFORMS, hidden_features=HIDDEN
            )
        for module in self.flow.modules():
            # masks and orders are determined by the settings, so they are not stored in files
            module._non_persistent_buffers_set.update(module._buffers)
        for transform in self.flow.transform.transforms:
            for value in _last_layer(transform).parameters():
                nn.init.zeros_(value)

    def conditional_log_prob(self, z: Tensor, condition_n: Tensor | None) -> Tensor:
        standard, log_volume = self.standardise(z.to(self.centre_d.dtype))
        found: Tensor = self.flow(self._context(condition_n)).log_prob(standard)
        return (found + log_volume).to(z.dtype)

    @torch.no_grad()
    def conditional_sample(self, n: int, generator: torch.Generator, condition_n: Tensor | None) -> Tensor:
        eps_nd = torch.randn(n, self.n_latent, generator=generator, device=generator.device)
        z_nd: Tensor = self.flow(self._context(condition_n)).transform.inv(eps_nd)
        return torch.addcmul(self.centre_d, z_nd, self.spread_d)

    @torch.no_grad()
    def to_base(self, z_nd: Tensor) -> Tensor:
        base_nd: Tensor = self.flow(None).transform(self.standardise(z_nd)[0])
        return base_nd

    @torch.no_grad()
    def from_base(self, base_nd: Tensor) -> Tensor:
        return torch.addcmul(self.centre_d, self.flow(None).transform.inv(base_nd), self.spread_d)

    def _context(self, condition_n: Tensor | None) -> Tensor | None:
        if condition_n is None:
            return None
        return nn.functional.one_hot(condition_n, self.config.n_conditions).to(self.centre_d.dtype)


def _last_layer(transform: Any) -> nn.Module:
    """Return the layer that outputs the parameters of the splines."""
    if hasattr(transform, "hyper"):
        return [layer for layer in transform.hyper if hasattr(layer, "weight")][-1]
    return transform  # with one dimension and no context there are only parameters
