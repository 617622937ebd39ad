"""Priors that transform noise to z along a path of Gaussian corruptions: shared code of diffusion and flow matching.

With standardised z, noise eps ~ N(0, I) and an angle phi from nearly 0 to nearly pi / 2, cells are corrupted to

    x = cos(phi) z + sin(phi) eps,    with velocity    v = dx / dphi = cos(phi) eps - sin(phi) z

(the variance-preserving path; Salimans & Ho 2022).  A network predicts v from x and phi.  If z is N(0, I), the best
prediction is 0, so a network with a last layer of zeros is exactly this prior.  With the prediction f(x, phi):

- Cells are drawn by following dx / dphi = f from noise at the far end to the near end.
- log p(z) = log N(x_far; 0, I) + integral of div f along the reverse path. This is exact up to the error of the solver
  (probability flow; Song et al. 2021): the divergence is the exact trace of the network's derivatives, not an estimate.
- A bound on log p(z) needs no solver: E|eps - eps_hat|^2 over the log signal-to-noise ratio (Kingma et al. 2021).

The linear path t z + (1 - t) eps of flow matching is this path with tan(phi) = (1 - t) / t, up to a factor that depends
on t: both have the same log signal-to-noise ratios, hence the same densities, bounds and flows.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from vxpress.core.config import PriorConfig
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors.base import Examples, StandardisedPrior
from vxpress.core.velocity import FAR, HIDDEN, NEAR, STAGES, Velocity, follow, weighted

# steps of the solver (fourth order), and how much shorter they are near z
SOLVER_STEPS, NEAR_POWER = 10, 1.2
# numbers in the derivatives that are held at once (32 MB)
HELD = 2**23


class GaussianPath(StandardisedPrior):
    """Base class of diffusion and flow matching, which differ in the angles of training and in their weights."""

    cheap = False

    def __init__(self, config: PriorConfig, n_latent: int, n_inputs: int = 0) -> None:
        super().__init__(config, n_latent, n_inputs)
        self.velocity = Velocity(n_latent, config.n_conditions)
        # of the bound, when trained together with the model
        self.noise: torch.Generator | None = None

    # what subclasses define

    def angles(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map uniform numbers in [0, 1] to angles, and return their weights of |v - f|^2 in :meth:`loss`."""
        raise NotImplementedError

    def bound_weight(self, phi: Tensor) -> Tensor:
        """Compute the weight of |v - f|^2 whose mean over :meth:`angles` is the integral of cot(phi) |v - f|^2 dphi."""
        raise NotImplementedError

    # density and draws

    def conditional_log_prob(self, z: Tensor, condition_n: Tensor | None) -> Tensor:
        """Compute the log density by the flow, in chunks.

        It has no gradient, because a gradient would need the memory of all steps.
        """
        flat = z.reshape(-1, self.n_latent)
        codes = None if condition_n is None else condition_n.reshape(-1)
        step = max(1, HELD // (self.n_latent * HIDDEN))
        with torch.no_grad():
            found = [
                self._flow_log_prob(flat[at : at + step], None if codes is None else codes[at : at + step])
                for at in range(0, len(flat), step)
            ]
        return torch.cat(found).view(z.shape[:-1]).to(z.dtype)

    def _flow_log_prob(self, z_nd: Tensor, condition_n: Tensor | None) -> Tensor:
        x, log_volume = self.standardise(z_nd.to(self.centre_d.dtype))
        gathered = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for phi, step in _steps(forward=True):
            moves: list[Tensor] = []
            divergences: list[Tensor] = []
            for shift, share in STAGES:
                at = x if not moves else torch.add(x, moves[-1], alpha=share * step)
                context = self._context(phi + shift * step, condition_n, x.device)
                move, divergence = self.velocity.with_divergence(at, context)
                moves.append(move)
                divergences.append(divergence)
            x = x + step / 6.0 * weighted(moves)
            gathered = gathered + step / 6.0 * weighted(divergences).double()
        log_far = -0.5 * (x.double().square() + math.log(2 * math.pi)).sum(-1)
        return log_far + gathered + log_volume

    @torch.no_grad()
    def conditional_sample(self, n: int, generator: torch.Generator, condition_n: Tensor | None) -> Tensor:
        x = torch.randn(n, self.n_latent, generator=generator, device=generator.device)
        x = follow(
            x, _steps(forward=False), lambda at, phi: self.velocity(at, self._context(phi, condition_n, x.device))
        )
        return torch.addcmul(self.centre_d, x, self.spread_d)

    def _context(self, phi: float, condition_n: Tensor | None, device: torch.device) -> Tensor:
        return self.velocity.context(torch.full((1,), phi, device=device), condition_n)

    # learning

    def start_from(self, examples: Examples, rows: Tensor, generator: torch.Generator) -> None:
        """Start as N(0, I), since the network is zero; seed the noise of the bound."""
        seed = int(torch.randint(2**62, (1,), generator=generator))
        self.noise = torch.Generator(device=rows.device).manual_seed(seed)

    def training_state(self) -> dict[str, Tensor]:
        return {} if self.noise is None else {"noise": self.noise.get_state()}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        self.noise = None
        if "noise" in state:
            self.noise = torch.Generator(device=self.centre_d.device)
            self.noise.set_state(state["noise"].cpu())

    def loss(self, z_nd: Tensor, condition_n: Tensor | None, generator: torch.Generator) -> Tensor:
        """Compute the squared error of the velocity at one angle per cell, weighted as the subclass defines, (n,)."""
        x_nd, _ = self.standardise(z_nd)
        phi, weight = self.angles(_spread_out(len(x_nd), generator, x_nd.device))
        eps = torch.empty_like(x_nd).normal_(generator=generator)
        return weight * self._error(x_nd, eps, phi, condition_n)

    def _error(self, x_nd: Tensor, eps: Tensor, phi: Tensor, condition_n: Tensor | None) -> Tensor:
        cos, sin = phi.cos()[:, None], phi.sin()[:, None]
        found = self.velocity(cos * x_nd + sin * eps, self.velocity.context(phi, condition_n))
        return (cos * eps - sin * x_nd - found).square().sum(-1)

    def bound(self, z_nd: Tensor, condition_n: Tensor | None, generator: torch.Generator) -> Tensor:
        """Estimate an upper bound on -log p(z) without bias, (n,), with one angle per cell.

        The bound is the sum of the reconstruction from the near end, the divergence at the far end and the integral
        between (Kingma et al. 2021, eqs. 11 to 18). The mean error for f = 0 is integrated exactly; only the rest is
        estimated.
        """
        x_nd, log_volume = self.standardise(z_nd)
        d = self.n_latent
        phi, _ = self.angles(_spread_out(len(x_nd), generator, x_nd.device))
        eps = torch.empty_like(x_nd).normal_(generator=generator)
        rest = self._error(x_nd, eps, phi, condition_n) - (phi.cos()[:, None] * eps).square().sum(-1)
        integral = self.bound_weight(phi) * rest + d * _NOISE_INTEGRAL
        near = d * (0.5 * math.log(2 * math.pi * math.e) + math.log(math.tan(NEAR)))
        variance = math.sin(FAR) ** 2
        far = 0.5 * (math.cos(FAR) ** 2 * x_nd.square().sum(-1) + d * (variance - 1.0 - math.log(variance)))
        return integral + near + far - log_volume

    def kl(self, q: DiagonalNormal, z_nd: Tensor, condition_n: Tensor | None = None) -> Tensor:
        """Estimate an upper bound on KL(q || p), (n, 1): the solver would be too expensive in every step.

        In evaluation mode every call uses the same noise, so that epochs are comparable.
        """
        fixed = torch.Generator(device=z_nd.device).manual_seed(0)
        if not self.training:
            return self.kl_bound(q, z_nd, fixed, condition_n)[..., None]
        if self.noise is None:
            self.noise = fixed
        return self.kl_bound(q, z_nd, self.noise, condition_n)[..., None]

    def kl_bound(
        self, q: DiagonalNormal, z_nd: Tensor, generator: torch.Generator, condition_n: Tensor | None = None
    ) -> Tensor:
        """Estimate an upper bound on KL(q || p), (n,), with one angle per cell."""
        entropy_n = (q.scale.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        return self.bound(z_nd, condition_n, generator) - entropy_n


# integral of cot(phi) cos(phi)^2 between the ends
_NOISE_INTEGRAL = math.log(math.sin(FAR) / math.sin(NEAR)) - 0.5 * (math.sin(FAR) ** 2 - math.sin(NEAR) ** 2)


def _steps(*, forward: bool) -> list[tuple[float, float]]:
    """Return angles and signed lengths of the solver's steps, from z to noise or back."""
    at = [NEAR + (FAR - NEAR) * (i / SOLVER_STEPS) ** NEAR_POWER for i in range(SOLVER_STEPS + 1)]
    at = at if forward else at[::-1]
    return [(a, b - a) for a, b in itertools.pairwise(at)]


def _spread_out(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw one uniform number from each of n equal parts of [0, 1], in random order, one for each cell."""
    order = torch.randperm(n, generator=generator, device=device)
    return (order + torch.rand(n, generator=generator, device=device)) / n
