"""A Gaussian mixture whose parameters are learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vxpress.core.config import PriorConfig
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors.base import Examples
from vxpress.core.priors.components import ComponentPrior, conditional_k_means

# the least variance of a posterior: a component cannot become a spike
MIN_VARIANCE = 1e-4
# initial distance of the components from the origin, in standard deviations, when trained together with the model
START_SPREAD = 0.7


class Mixture(ComponentPrior):
    """Mixture sum_k w_k N(z; m_k, diag s_k^2) (Dilokthanakul et al. 2016; Tomczak & Welling 2018, section 4.1)."""

    n_steps, learning_rate = 400, 5e-3

    def __init__(self, config: PriorConfig, n_latent: int, n_inputs: int = 0) -> None:
        super().__init__(config, n_latent, n_inputs)
        self.loc_kd = nn.Parameter(torch.zeros(self.options.n_components, n_latent))
        self.log_scale_kd = nn.Parameter(torch.zeros(self.options.n_components, n_latent))

    def components(self) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations, each (k, d)."""
        return self.loc_kd, ((2.0 * self.log_scale_kd).exp() + MIN_VARIANCE).sqrt()

    @torch.no_grad()
    def start_from(self, examples: Examples, rows: Tensor, generator: torch.Generator) -> None:
        """Start with separate components that together approximate N(0, I): before training, z has no information."""
        start = torch.randn(self.loc_kd.shape, generator=generator)
        self.loc_kd.copy_(START_SPREAD * start)
        self.log_scale_kd.fill_(0.5 * torch.tensor(1.0 - START_SPREAD**2).log())

    @torch.no_grad()
    def start_from_posteriors(self, q: DiagonalNormal, condition_n: Tensor | None, generator: torch.Generator) -> None:
        """Start from k-means of posterior draws, within each condition if there are conditions."""
        z_nd = q.draw(generator)
        centres, label_n = conditional_k_means(z_nd, condition_n, self.options.n_components, generator)
        self.loc_kd.copy_(centres)
        spread = z_nd.var(0)
        for k in range(len(centres)):
            own = z_nd[label_n == k]
            # the variance of few points is uncertain: a tenth of the variance of all points is mixed in
            variance = 0.9 * own.var(0) + 0.1 * spread if len(own) > 1 else spread
            self.log_scale_kd[k] = 0.5 * variance.clamp_min(1e-6).log()
        self.start_weights(label_n, condition_n)
