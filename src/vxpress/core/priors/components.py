"""Mixtures of diagonal normal distributions, for any source of their parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vxpress.core.config import PriorConfig
from vxpress.core.option import option
from vxpress.core.priors.base import Prior, StoredOptions


def component_log_prob(z: Tensor, loc_kd: Tensor, scale_kd: Tensor) -> Tensor:
    """Compute the log density of points (..., d) under every component, (..., k), in double precision.

    It is summed over dimensions, because a component is one distribution of the whole vector. Squares are expanded,
    which is accurate enough in double precision and avoids an array (..., k, d).
    """
    z, loc_kd, scale_kd = z.double(), loc_kd.double(), scale_kd.double()
    precision_kd = scale_kd.square().reciprocal()
    square = z.square() @ precision_kd.t() - 2.0 * (z @ (loc_kd * precision_kd).t())
    constant_k = (loc_kd.square() * precision_kd).sum(-1) + 2.0 * scale_kd.log().sum(-1)
    return -0.5 * (square + constant_k + z.shape[-1] * math.log(2 * math.pi))


@dataclass(frozen=True)
class ComponentOptions(StoredOptions):
    """Options of a mixture: its number of components."""

    n_components: int = option(50, low=1, high=100_000)


class ComponentPrior(Prior):
    """Mixture sum_k w_k N(z; m_k, s_k^2); conditions share the components and have separate weights."""

    Options = ComponentOptions
    options: ComponentOptions

    def __init__(self, config: PriorConfig, n_latent: int, n_inputs: int = 0) -> None:
        super().__init__(config, n_latent, n_inputs)
        self.logits_ck = nn.Parameter(torch.zeros(max(1, config.n_conditions), self.options.n_components))

    def components(self) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations, each (k, d)."""
        raise NotImplementedError

    def log_weights(self) -> Tensor:
        """Compute log weights, (k,), without given conditions.

        For a conditional prior, those of its mixture over conditions.
        """
        log_ck = self.logits_ck.double().log_softmax(-1)
        if not self.config.n_conditions:
            return log_ck[0]
        return (log_ck + self.log_share_c.double()[:, None]).logsumexp(0)

    def log_prob(self, z: Tensor, condition_n: Tensor | None = None) -> Tensor:
        """Compute the log density of points (..., d), with shape (...); ``condition_n`` is broadcast to that shape."""
        log_prob = component_log_prob(z, *self.components())
        if condition_n is None or not self.config.n_conditions:
            log_weight = self.log_weights()
        else:
            log_weight = self.logits_ck.double().log_softmax(-1)[condition_n.expand(z.shape[:-1])]
        return (log_prob + log_weight).logsumexp(-1).to(z.dtype)

    @torch.no_grad()
    def conditional_sample(self, n: int, generator: torch.Generator, condition_n: Tensor | None) -> Tensor:
        loc_kd, scale_kd = (part.to(generator.device) for part in self.components())
        weight_ck = self.logits_ck.double().softmax(-1).to(generator.device)
        if condition_n is None:
            k = torch.multinomial(weight_ck[0], n, replacement=True, generator=generator)
        else:
            k = torch.multinomial(weight_ck[condition_n], 1, generator=generator).squeeze(-1)
        eps_nd = torch.randn(n, self.n_latent, generator=generator, device=generator.device)
        return torch.addcmul(loc_kd[k], scale_kd[k], eps_nd)

    @torch.no_grad()
    def variance(self) -> Tensor:
        """Compute the variance of every dimension, (d,), in closed form."""
        loc_kd, scale_kd = self.components()
        weight_k1 = self.log_weights().exp()[:, None].to(loc_kd)
        mean_d = (weight_k1 * loc_kd).sum(0)
        return (weight_k1 * (scale_kd.square() + (loc_kd - mean_d).square())).sum(0)

    @torch.no_grad()
    def start_weights(self, label_n: Tensor, condition_n: Tensor | None) -> None:
        """Set the weights of each condition to the shares of its cells in the components ``label_n``."""
        n_rows, n_components = self.logits_ck.shape
        code = torch.zeros_like(label_n) if condition_n is None else condition_n
        counts = torch.bincount(code * n_components + label_n, minlength=n_rows * n_components)
        # no weight is zero, so that each component can gain weight later
        self.logits_ck.copy_((counts.view(n_rows, n_components).to(self.logits_ck) + 0.01).log())


def k_means(z_nd: Tensor, n_centres: int, generator: torch.Generator, n_rounds: int = 20) -> tuple[Tensor, Tensor]:
    """Compute k-means centres (k, d) and the label of each point, (n,).

    Lloyd's algorithm starts from k-means++ (Arthur & Vassilvitskii 2007). A centre that loses all its points does not
    move.
    """
    n = len(z_nd)
    first = torch.randint(n, (1,), generator=generator, device=generator.device)
    centres = z_nd[first]
    nearest = torch.cdist(z_nd, centres).square().squeeze(-1)
    for _ in range(n_centres - 1):
        weight = nearest if bool(nearest.sum() > 0) else torch.ones_like(nearest)
        chosen = torch.multinomial(weight, 1, generator=generator)
        centres = torch.cat((centres, z_nd[chosen]))
        nearest = torch.minimum(nearest, (z_nd - z_nd[chosen]).square().sum(-1))
    for _ in range(n_rounds):
        label_n = torch.cdist(z_nd, centres).argmin(-1)
        counts = torch.bincount(label_n, minlength=n_centres)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, label_n, z_nd)
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return centres, torch.cdist(z_nd, centres).argmin(-1)


def conditional_k_means(
    z_nd: Tensor, condition_n: Tensor | None, n_centres: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Run :func:`k_means` within each condition.

    Its number of centres is proportional to the root of its cells, at least 1.
    """
    if condition_n is None:
        return k_means(z_nd, n_centres, generator)
    counts = torch.bincount(condition_n)
    present = torch.nonzero(counts).squeeze(-1)
    if len(present) > n_centres:
        msg = f"{n_centres} components are too few for {len(present)} conditions: each condition needs at least one."
        raise ValueError(msg)
    root = counts[present].double().sqrt()
    share = 1 + (root / root.sum() * (n_centres - len(present))).floor().long()
    share[root.argmax()] += n_centres - share.sum()
    centres: list[Tensor] = []
    label_n = torch.empty_like(condition_n)
    for code, k in zip(present.tolist(), share.tolist(), strict=True):
        own = condition_n == code
        found, label = k_means(z_nd[own], k, generator)
        label_n[own] = label + sum(len(part) for part in centres)
        centres.append(found)
    return torch.cat(centres), label_n
