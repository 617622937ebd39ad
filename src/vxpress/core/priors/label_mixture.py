"""A Gaussian mixture with components of its own for each label, learned from cells of which some have no label."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vxpress.core.config import PriorConfig
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors.components import component_log_prob, k_means
from vxpress.core.priors.mixture import Mixture

# initial share of the cells of none of the labels, if some cells have no label, and otherwise
OTHERS, NO_OTHERS = 0.1, 1e-3


class LabelMixture(Mixture):
    """Mixture sum_c w_c sum_k v_ck N(z; m_ck, diag s_ck^2) over labels c, the last of which stands for none of the labels.

    A cell with a label is distributed as the components of this label, a cell without one (the last condition) as the whole
    mixture: the responsibilities for its label are free (Kingma et al. 2014, in closed form). The weights w_c are learned from
    the cells without a label, or are the shares of the labels if all cells have one. Without conditions it is a plain mixture.
    """

    n_steps, learning_rate = 400, 1e-2

    def __init__(self, config: PriorConfig, n_latent: int, n_inputs: int = 0) -> None:
        super().__init__(config, n_latent, n_inputs)
        if not config.n_conditions:
            return
        self.n_each = max(1, self.options.n_components // config.n_conditions)
        n_components = self.n_each * config.n_conditions
        self.loc_kd = nn.Parameter(torch.zeros(n_components, n_latent))
        self.log_scale_kd = nn.Parameter(torch.zeros(n_components, n_latent))
        # of the components of each condition
        self.logits_ck = nn.Parameter(torch.zeros(config.n_conditions, self.n_each))
        del self.log_share_c
        self.log_share_c = nn.Parameter(torch.full((config.n_conditions,), -math.log(config.n_conditions)))

    @property
    def none(self) -> int:
        """The condition of cells without a label."""
        return self.config.n_conditions - 1

    def log_weights(self) -> Tensor:
        """Compute log weights of all components in the mixture over labels, (k,)."""
        if not self.config.n_conditions:
            return super().log_weights()
        share_c1 = self.log_share_c.double().log_softmax(0)[:, None]
        return (self.logits_ck.double().log_softmax(-1) + share_c1).flatten()

    def log_prob(self, z: Tensor, condition_n: Tensor | None = None) -> Tensor:
        """Compute the log density of points (..., d); ``condition_n`` is broadcast, the last condition has its own components."""
        by_component = component_log_prob(z, *self.components())
        if condition_n is None or not self.config.n_conditions:
            return (by_component + self.log_weights()).logsumexp(-1).to(z.dtype)
        parts = by_component.unflatten(-1, (self.config.n_conditions, self.n_each))
        by_label = (parts + self.logits_ck.double().log_softmax(-1)).logsumexp(-1)
        code = condition_n.expand(z.shape[:-1])[..., None]
        return by_label.gather(-1, code).squeeze(-1).to(z.dtype)

    def loss(self, z_nd: Tensor, condition_n: Tensor | None, generator: torch.Generator) -> Tensor:
        """Compute the negative log density: of the label's components, or of the mixture for cells without a label."""
        if condition_n is None:
            return -self.log_prob(z_nd)
        return -torch.where(condition_n == self.none, self.log_prob(z_nd), self.log_prob(z_nd, condition_n))

    @torch.no_grad()
    def conditional_sample(self, n: int, generator: torch.Generator, condition_n: Tensor | None) -> Tensor:
        if condition_n is None:
            return super().conditional_sample(n, generator, None)
        loc_kd, scale_kd = (part.to(generator.device) for part in self.components())
        weight_ck = self.logits_ck.double().softmax(-1).to(generator.device)
        k = torch.multinomial(weight_ck[condition_n], 1, generator=generator).squeeze(-1) + condition_n * self.n_each
        eps_nd = torch.randn(n, self.n_latent, generator=generator, device=generator.device)
        return torch.addcmul(loc_kd[k], scale_kd[k], eps_nd)

    @torch.no_grad()
    def set_shares(self, condition_n: Tensor) -> None:
        """Start from the shares of the labels among the cells that have one."""
        counts = torch.bincount(condition_n, minlength=self.config.n_conditions).double()
        others = OTHERS if bool(counts[-1] > 0) else NO_OTHERS
        labelled = counts[:-1] / counts[:-1].sum()
        self.log_share_c.copy_(
            torch.cat((labelled.clamp_min(1e-6) * (1 - others), labelled.new_tensor([others]))).log()
        )
        # without cells of unknown label nothing is known that could change them
        self.log_share_c.requires_grad_(others == OTHERS)

    @torch.no_grad()
    def start_from_posteriors(self, q: DiagonalNormal, condition_n: Tensor | None, generator: torch.Generator) -> None:
        """Start from k-means within each label; the components of no label from cells without one, or from all cells."""
        if condition_n is None:
            super().start_from_posteriors(q, None, generator)
            return
        z_nd = q.draw(generator)
        spread_d = z_nd.var(0)
        for c in range(self.config.n_conditions):
            own_nd = z_nd[condition_n == c]
            own_nd = own_nd if len(own_nd) else z_nd
            centres, nearest_n = k_means(own_nd, self.n_each, generator)
            at = slice(c * self.n_each, (c + 1) * self.n_each)
            self.loc_kd[at] = centres
            within_d = (own_nd - centres[nearest_n]).square().mean(0)
            # few cells say little about the spread of their label
            share = len(own_nd) / (len(own_nd) + self.n_each * 10.0)
            self.log_scale_kd[at] = 0.5 * (share * within_d + (1 - share) * 0.3 * spread_d).clamp_min(1e-6).log()
            counts = torch.bincount(nearest_n, minlength=self.n_each)
            self.logits_ck[c] = (counts + 1.0).log()
