"""Base class of the priors of z."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vxpress.core.config import PriorConfig
from vxpress.core.normal import DiagonalNormal
from vxpress.core.option import Options as NoOptions
from vxpress.core.option import option

# the posterior q(z) of log1p counts (k, genes) at the average over the first known categories of each covariate
Encode = Callable[[Tensor, Tensor], DiagonalNormal]
# log1p counts (k, genes) of the cells with these row numbers
Examples = Callable[[Tensor], Tensor]
# draws from which the variance of a prior without a closed form is estimated
VARIANCE_DRAWS = 2048


@dataclass(frozen=True)
class StoredOptions(NoOptions):
    """What every prior of the package stores, also those without components."""

    n_components: int = option(50, low=1, high=100_000, internal=True)
    from_cells: bool = option(False, internal=True)


class Prior(nn.Module):
    """Prior p(z), or p(z | condition) if ``config.n_conditions`` is not 0; all values are in nats.

    ``condition_n`` are codes from 0. Without them, a conditional prior is the mixture over conditions, a proper density
    of z. Its weights are the shares of the conditions among the cells it was fitted to, ``log_share_c``.

    ``n_inputs`` is the number of genes that the encoder reads; 0 for a prior that is learned alone.

    Subclasses implement the density in :meth:`conditional_log_prob` and sampling in :meth:`conditional_sample`. This
    class handles conditions that are not given.
    """

    analytic: ClassVar[bool] = False
    """Whether :meth:`kl` is exact and per dimension; otherwise it is a one-sample estimate at ``z_nd``, (n, 1)."""
    cheap: ClassVar[bool] = True
    """Whether the density and its gradient are cheap enough for every training step.

    Otherwise :meth:`kl` uses a bound.
    """
    invertible: ClassVar[bool] = False
    """Whether :meth:`to_base` and :meth:`from_base` map z to draws of N(0, I) and back (without conditions)."""

    Options: ClassVar[type[NoOptions]] = NoOptions
    """The options of this prior, a frozen dataclass; ``options`` of the instance holds them."""
    alone_components: ClassVar[tuple[int, int]] = (50, 10)
    """When the prior is learned alone: largest number of components, and number of cells needed for each."""
    capturable: ClassVar[bool] = False
    """Whether a step can be captured as a CUDA graph: it never waits for the device and draws no noise itself."""
    n_steps: ClassVar[int] = 500
    learning_rate: ClassVar[float] = 5e-3
    """Steps and peak learning rate of a fit of the prior alone (``vx.tl.fit_prior``), if it has parameters."""

    log_share_c: Tensor
    options: Any

    def __init__(self, config: PriorConfig, n_latent: int, n_inputs: int = 0) -> None:
        super().__init__()
        self.config, self.options, self.n_latent, self.n_inputs = config, config.options, n_latent, n_inputs
        if config.n_conditions:
            self.register_buffer("log_share_c", torch.full((config.n_conditions,), -math.log(config.n_conditions)))

    @classmethod
    def alone(cls, config: PriorConfig) -> PriorConfig:
        """Return the settings of this prior when it is learned alone, on a frozen model."""
        return config

    # density and draws

    def log_prob(self, z: Tensor, condition_n: Tensor | None = None) -> Tensor:
        """Compute the log density of points (..., d), with shape (...); ``condition_n`` is broadcast to that shape."""
        if not self.config.n_conditions:
            return self.conditional_log_prob(z, None)
        if condition_n is not None:
            return self.conditional_log_prob(z, condition_n.expand(z.shape[:-1]))
        parts = []
        for c in range(self.config.n_conditions):
            code = torch.full(z.shape[:-1], c, dtype=torch.int64, device=z.device)
            parts.append(self.conditional_log_prob(z, code) + self.log_share_c[c])
        return torch.stack(parts).logsumexp(0)

    def sample(self, n: int, generator: torch.Generator, condition_n: Tensor | None = None) -> Tensor:
        """Draw points (n, d) on the generator's device; conditions that are not given are drawn from their shares."""
        if self.config.n_conditions and condition_n is None:
            shares = self.log_share_c.exp().to(generator.device)
            condition_n = torch.multinomial(shares, n, replacement=True, generator=generator)
        return self.conditional_sample(n, generator, condition_n if self.config.n_conditions else None)

    def conditional_log_prob(self, z: Tensor, condition_n: Tensor | None) -> Tensor:
        """Compute :meth:`log_prob`.

        ``condition_n`` has the shape of the result, or is None in a prior without conditions.
        """
        raise NotImplementedError

    def conditional_sample(self, n: int, generator: torch.Generator, condition_n: Tensor | None) -> Tensor:
        """Draw points as :meth:`sample` does; ``condition_n`` (n,) is None in a prior without conditions."""
        raise NotImplementedError

    def to_base(self, z_nd: Tensor) -> Tensor:
        """Map z to points of the base distribution N(0, I), (n, d)."""
        raise NotImplementedError

    def from_base(self, base_nd: Tensor) -> Tensor:
        """Invert :meth:`to_base`."""
        raise NotImplementedError

    def kl(self, q: DiagonalNormal, z_nd: Tensor, condition_n: Tensor | None = None) -> Tensor:
        """Compute KL(q || p) per cell, in columns whose sum it is.

        ``z_nd`` are draws of q, for priors without closed form.
        """
        return (q.log_prob(z_nd) - self.log_prob(z_nd, condition_n))[..., None]

    def kl_bound(
        self, q: DiagonalNormal, z_nd: Tensor, generator: torch.Generator, condition_n: Tensor | None = None
    ) -> Tensor:
        """Estimate an upper bound on KL(q || p), (n,), for priors that are not ``cheap``."""
        raise NotImplementedError

    @torch.no_grad()
    def variance(self) -> Tensor:
        """Compute the variance of every dimension, (d,)."""
        device = next((value.device for value in self.state_dict().values()), torch.device("cpu"))
        generator = torch.Generator(device=device).manual_seed(0)
        return self.sample(VARIANCE_DRAWS, generator).var(0)

    # learning

    def bind(self, encode: Encode, known_k: Tensor) -> None:
        """Connect to the encoder of a model; ``known_k`` is the number of categories of each covariate."""

    def start_from(self, examples: Examples, rows: Tensor, generator: torch.Generator) -> None:
        """Initialise for training together with the model, from the training cells ``rows``."""

    def start_from_posteriors(self, q: DiagonalNormal, condition_n: Tensor | None, generator: torch.Generator) -> None:
        """Initialise from the posteriors of training cells, for a fit of the prior alone."""

    def loss(self, z_nd: Tensor, condition_n: Tensor | None, generator: torch.Generator) -> Tensor:
        """Compute the loss of a fit of the prior alone, (n,): by default the negative log density."""
        return -self.log_prob(z_nd, condition_n)

    def training_state(self) -> dict[str, Tensor]:
        """Return what training changes besides weights and buffers; nothing, unless a prior draws noise itself."""
        return {}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Continue training from a stored :meth:`training_state`."""

    def set_shares(self, condition_n: Tensor) -> None:
        """Set the shares of the conditions to those among these cells."""
        counts = torch.bincount(condition_n, minlength=self.config.n_conditions).double()
        self.log_share_c.copy_((counts / counts.sum()).log())


class StandardisedPrior(Prior):
    """A prior that learns the density of (z - centre) / spread."""

    Options = StoredOptions
    centre_d: Tensor
    spread_d: Tensor

    def __init__(self, config: PriorConfig, n_latent: int, n_inputs: int = 0) -> None:
        super().__init__(config, n_latent, n_inputs)
        self.register_buffer("centre_d", torch.zeros(n_latent))
        self.register_buffer("spread_d", torch.ones(n_latent))

    def standardise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return standardised points, and the log volume change of the standardisation."""
        return (z - self.centre_d) / self.spread_d, -self.spread_d.log().sum()

    @torch.no_grad()
    def start_from_posteriors(self, q: DiagonalNormal, condition_n: Tensor | None, generator: torch.Generator) -> None:
        """Standardise by the moments of the aggregate posterior."""
        self.centre_d.copy_(q.loc.mean(0))
        variance_d = q.scale.square().mean(0) + q.loc.var(0, correction=0)
        self.spread_d.copy_(variance_d.clamp_min(1e-6).sqrt())
