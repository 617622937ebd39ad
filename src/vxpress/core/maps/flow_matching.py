"""Flow matching from control to treated cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vxpress.core.isolation import seeded
from vxpress.core.loop import copies, put, rise_and_fall
from vxpress.core.maps.base import LatentMap, Move, Pair, drawn
from vxpress.core.maps.bures import Affine
from vxpress.core.maps.sinkhorn import pot
from vxpress.core.option import Options as NoOptions
from vxpress.core.option import option
from vxpress.core.progress import steps
from vxpress.core.velocity import FAR, NEAR, Velocity, follow
from vxpress.core.whole_import import import_for_optimizers

BATCH, LEARNING_RATE, AVERAGING, MAX_NORM = 256, 2e-3, 0.99, 5.0
# noise that smooths the velocity: this factor times the number of cells to the power -1/3, at most MAX_NOISE; in units of
# the spread of treated cells
NOISE, MAX_NOISE = 5.7, 2.0
# angles and lengths of the steps of the solver, and the cells that move together
SOLVER_STEPS, CHUNK = 10, 8_192
STEPS = [(NEAR + (FAR - NEAR) * i / SOLVER_STEPS, (FAR - NEAR) / SOLVER_STEPS) for i in range(SOLVER_STEPS)]


@dataclass(frozen=True)
class FlowOptions(NoOptions):
    """Options of flow matching."""

    n_steps: int = option(500, "Number of training steps.", low=1, high=1_000_000)


class FlowMatching(LatentMap):
    """Follow a learned velocity field from control to treated cells (Lipman et al. 2023; Tong et al. 2024).

    In every step, control and treated cells of a minibatch are paired by optimal transport, and a network learns the
    velocity of the straight lines between them. Both are of the same group. The flow begins where the map between normal
    distributions (``bures``) ends: the network is initialised to zero and learns what an affine map leaves over.
    """

    Options = FlowOptions
    costly = True

    def learn(self, pairs: Sequence[Pair], generator: torch.Generator) -> Move:
        flow = Flow.beginning(Affine.between(pairs), generator)
        flow.train(pairs, self.options.n_steps, generator)
        return flow


@dataclass(frozen=True)
class Flow:
    """An affine map, then the flow along a velocity field, around the mean of treated cells and in units of their spread."""

    start: Affine
    network: Velocity

    @classmethod
    def beginning(cls, start: Affine, generator: torch.Generator) -> Flow:
        """Return the flow that does not move cells yet."""
        with seeded(int(torch.randint(2**62, (1,), generator=generator))):
            network = Velocity(len(start.shift_d), 0)
        return cls(start, network)

    @torch.no_grad()
    def __call__(self, x_nd: Tensor) -> Tensor:
        ends = [follow(x, STEPS, self.velocity) for x in self.scaled(self.start(x_nd)).split(CHUNK)]
        return self.start.shift_d + self.start.spread * torch.cat(ends).double()

    def scaled(self, y_nd: Tensor) -> Tensor:
        """Return positions as the network takes them."""
        return ((y_nd - self.start.shift_d) / self.start.spread).float()

    def velocity(self, x_nd: Tensor, phi: float) -> Tensor:
        """Return the change of positions (n, d) by unit of the angle."""
        return self.network(x_nd, self.network.context(torch.full((1,), phi), None)) / (FAR - NEAR)

    def train(self, pairs: Sequence[Pair], n_steps: int, generator: torch.Generator) -> None:
        """Learn the velocity; the result is a running mean of the weights (Polyak & Juditsky 1992)."""
        sources = [self.scaled(self.start(pair.source_nd)) for pair in pairs]
        targets = [self.scaled(pair.target_nd) for pair in pairs]
        weights = torch.tensor([pair.weight for pair in pairs])
        parameters = list(self.network.parameters())
        averages = copies(parameters)
        import_for_optimizers()
        optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
        n = min(sum(map(len, sources)), sum(map(len, targets)))
        noise = min(MAX_NOISE, NOISE * n ** (-1.0 / 3.0))
        for step in steps(range(1, n_steps + 1), "learning the map"):
            group = int(torch.multinomial(weights, 1, generator=generator))
            loss = self._loss(
                *paired(drawn(sources[group], BATCH, generator), drawn(targets[group], BATCH, generator)),
                noise,
                generator,
            )
            for setting in optimizer.param_groups:
                setting["lr"] = LEARNING_RATE * rise_and_fall(step, n_steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            optimizer.step()
            share = min(AVERAGING, step / (step + 10))
            torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1.0 - share)
        put(parameters, averages)
        self.network.requires_grad_(requires_grad=False)

    def _loss(self, x_nd: Tensor, y_nd: Tensor, noise: float, generator: torch.Generator) -> Tensor:
        """Compute the mean squared error of the velocity; both ends of a line are moved by the same noise."""
        n = len(x_nd)
        moved_nd = noise * torch.randn(x_nd.shape, generator=generator)
        x_nd, y_nd = x_nd + moved_nd, y_nd + moved_nd
        t_n1 = (torch.randperm(n, generator=generator)[:, None] + torch.rand(n, 1, generator=generator)) / n
        context = self.network.context(NEAR + (FAR - NEAR) * t_n1[:, 0], None)
        return (self.network(torch.lerp(x_nd, y_nd, t_n1), context) - (y_nd - x_nd)).square().sum(1).mean()


def paired(x_nd: Tensor, y_nd: Tensor) -> tuple[Tensor, Tensor]:
    """Order two samples of the same size such that the sum of squared distances of pairs is smallest."""
    cost = torch.cdist(x_nd.double(), y_nd.double()).square().numpy()
    plan = pot().emd([], [], cost)
    return x_nd, y_nd[torch.from_numpy(np.argmax(plan, axis=1))]
