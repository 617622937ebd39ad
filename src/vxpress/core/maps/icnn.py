"""Optimal transport by a pair of convex networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vxpress.core.isolation import seeded
from vxpress.core.loop import copies, put, rise_and_fall
from vxpress.core.maps.base import LatentMap, Move, Pair, drawn
from vxpress.core.maps.bures import Affine, power
from vxpress.core.option import Options as NoOptions
from vxpress.core.option import option
from vxpress.core.progress import steps
from vxpress.core.whole_import import import_for_optimizers

HIDDEN, LAYERS = 64, 3
BATCH, INNER, LEARNING_RATE, BETAS, AVERAGING = 256, 4, 3e-3, (0.5, 0.9), 0.98
# factor of the initial weights of inputs: with that of torch, hidden units are nearly quadratic where the cells are
SHARPNESS = 4.0
# cells that move together
CHUNK = 8_192


@dataclass(frozen=True)
class IcnnOptions(NoOptions):
    """Options of the convex networks."""

    n_steps: int = option(
        300, "Number of training steps; each is one of the dual network and four of the map.", low=1, high=1_000_000
    )


class Icnn(LatentMap):
    """Move cells along the gradient of a convex network (CellOT; Makkuva et al. 2020, Bunne et al. 2023).

    The gradient of a convex function is the map of least mean squared distance between the populations that it connects. Two
    networks are trained against each other in minibatches. They begin at the map between normal distributions (``bures``),
    which is the gradient of a quadratic function, and not at random, so that hundreds of steps are enough instead of the
    100,000 of CellOT.
    """

    Options = IcnnOptions
    costly = True

    def learn(self, pairs: Sequence[Pair], generator: torch.Generator) -> Move:
        dual = Dual.beginning(Affine.between(pairs), generator)
        dual.train(pairs, self.options.n_steps, generator)
        return dual


class Convex(nn.Module):
    """A convex function of x: a quadratic form plus a network whose weights between hidden layers are not negative.

    At first it is the quadratic form x' A x / 2.
    """

    def __init__(self, a_dd: Tensor) -> None:
        super().__init__()
        d = len(a_dd)
        self.root_dd = nn.Parameter(power(a_dd, 0.5).float())
        self.inputs = nn.ModuleList(nn.Linear(d, HIDDEN) for _ in range(LAYERS))
        with torch.no_grad():
            for value in self.inputs.parameters():
                value.mul_(SHARPNESS)
        self.hidden = nn.ParameterList(torch.rand(HIDDEN, HIDDEN) * 2.0 / HIDDEN for _ in range(LAYERS - 1))
        self.out = nn.Parameter(torch.zeros(HIDDEN))

    def forward(self, x_nd: Tensor) -> Tensor:
        h = F.softplus(self.inputs[0](x_nd))
        for layer, weight in zip(list(self.inputs)[1:], self.hidden, strict=True):
            h = F.softplus(layer(x_nd) + h @ weight)
        return 0.5 * (x_nd @ self.root_dd).square().sum(1) + h @ self.out

    def gradient(self, x_nd: Tensor) -> Tensor:
        """Compute the gradient at each point, (n, d), as a function of the weights."""
        with torch.enable_grad():
            x_nd = x_nd.detach().requires_grad_()
            return torch.autograd.grad(self(x_nd).sum(), x_nd, create_graph=True)[0]

    @torch.no_grad()
    def project(self) -> None:
        """Set negative weights, with which the function need not be convex, to zero."""
        for weight in (*self.hidden, self.out):
            weight.clamp_min_(0.0)


@dataclass(frozen=True)
class Dual:
    """The map along the gradient of ``potential``, and its convex conjugate, in units of the spread of treated cells."""

    start: Affine
    potential: Convex
    conjugate: Convex

    @classmethod
    def beginning(cls, start: Affine, generator: torch.Generator) -> Dual:
        """Return the networks before training: an affine map."""
        with seeded(int(torch.randint(2**62, (1,), generator=generator))):
            potential, conjugate = Convex(start.a_dd), Convex(power(start.a_dd, -1.0))
        return cls(start, potential, conjugate)

    def __call__(self, x_nd: Tensor) -> Tensor:
        ends = [self.potential.gradient(x).detach() for x in (x_nd / self.start.spread).float().split(CHUNK)]
        return self.start.shift_d + self.start.spread * torch.cat(ends).double()

    def train(self, pairs: Sequence[Pair], n_steps: int, generator: torch.Generator) -> None:
        """Train both networks; the result is a running mean of the weights (Polyak & Juditsky 1992)."""
        sources = [(pair.source_nd / self.start.spread).float() for pair in pairs]
        targets = [((pair.target_nd - self.start.shift_d) / self.start.spread).float() for pair in pairs]
        weights = torch.tensor([pair.weight for pair in pairs])
        import_for_optimizers()
        optimizers = [
            torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=BETAS)
            for network in (self.potential, self.conjugate)
        ]
        parameters = list(self.potential.parameters())
        averages = copies(parameters)

        def draw() -> tuple[Tensor, Tensor]:
            group = int(torch.multinomial(weights, 1, generator=generator))
            return drawn(sources[group], BATCH, generator), drawn(targets[group], BATCH, generator)

        def descend(network: Convex, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
            own = list(network.parameters())
            for p, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
                p.grad = gradient
            optimizer.step()
            network.project()

        for step in steps(range(1, n_steps + 1), "learning the map"):
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * rise_and_fall(step, n_steps)
            for _inner in range(INNER):
                x_nd, _y = draw()
                moved = self.potential.gradient(x_nd)
                descend(self.potential, optimizers[0], (self.conjugate(moved) - (x_nd * moved).sum(1)).mean())
            x_nd, y_nd = draw()
            moved = self.potential.gradient(x_nd).detach()
            descend(self.conjugate, optimizers[1], self.conjugate(y_nd).mean() - self.conjugate(moved).mean())
            share = min(AVERAGING, step / (step + 10))
            torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1.0 - share)
        put(parameters, averages)
