"""Entropic optimal transport between cells, extended to new cells."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from vxpress.core.maps.base import LatentMap, Move, Pair
from vxpress.core.option import Options as NoOptions
from vxpress.core.option import option

# cells of each kind in one problem, largest number of problems, and numbers of a cost matrix that are held at once
SIZE, MAX_PROBLEMS, HELD = 1_000, 4, 2**20
# the tolerance is the norm of the error of the masses, whose own norm is the root of one by the number of cells
MAX_ITERATIONS, TOLERANCE = 300, 1e-4
# default regularisation: CELLS divided by the number of cells, within a range
LEAST, MOST, CELLS = 0.05, 0.5, 15.0


@dataclass(frozen=True)
class SinkhornOptions(NoOptions):
    """Options of entropic optimal transport."""

    epsilon: float | None = option(
        None,
        """Strength of the entropic regularisation, as a share of the median squared distance between control and treated
        cells. With a smaller one, cells follow single treated cells more closely, and the solution takes longer. By
        default 0.05, and up to 0.5 with fewer than 300 cells.""",
        low=1e-4,
        high=100.0,
    )
    unbalanced: float | None = option(
        None,
        """Allow control and treated cells to be left out where they have no counterpart, as when cell types are not in
        the same proportions: the price of a change of mass (Kullback-Leibler divergence from the cells' uniform
        weights), as a share of the median squared distance. By default all cells are transported.""",
        low=1e-4,
        high=1e4,
    )
    debiased: bool = option(
        True,
        """Whether to add what the map of the control cells to themselves takes away: averages of treated cells vary less
        than treated cells do (Pooladian et al. 2022).""",
    )


@dataclass(frozen=True)
class Averages:
    """Averages of target points with weights v_j exp(-|x - y_j|^2 / epsilon), the entropic map (Pooladian & Niles-Weed 2021).

    At the points of the problem it is the barycentric projection of the transport plan.
    """

    target_nd: Tensor
    log_v_n: Tensor
    epsilon: float

    def __call__(self, x_nd: Tensor) -> Tensor:
        step = max(1, HELD // len(self.target_nd))
        bias_n = self.log_v_n - self.target_nd.square().sum(1) / self.epsilon
        scaled_dn = 2.0 / self.epsilon * self.target_nd.T
        # |x|^2 is the same for all targets
        moved_nd = torch.empty_like(x_nd)
        for x, moved in zip(x_nd.split(step), moved_nd.split(step), strict=True):
            torch.mm(torch.addmm(bias_n, x, scaled_dn).softmax(1), self.target_nd, out=moved)
        return moved_nd


class Sinkhorn(LatentMap):
    """Move each cell to a weighted average of treated cells, by entropic optimal transport (Cuturi 2013), solved with POT.

    New cells move by the same weights as functions of the position. With many cells, the map is the mean of the maps of a
    few subsamples of both populations.
    """

    Options = SinkhornOptions
    costly = True

    def learn(self, pairs: Sequence[Pair], generator: torch.Generator) -> Move:
        most = max(sum(len(pair.source_nd) for pair in pairs), sum(len(pair.target_nd) for pair in pairs))
        maps = [self._solved(pairs, generator) for _ in range(min(MAX_PROBLEMS, -(-most // SIZE)))]

        def move(x_nd: Tensor) -> Tensor:
            return sum((one(x_nd) / len(maps) for one in maps), torch.zeros_like(x_nd))

        return move

    def _solved(self, pairs: Sequence[Pair], generator: torch.Generator) -> Move:
        source_nd, a_n = subsample([pair.source_nd for pair in pairs], pairs, generator)
        target_nd, b_n = subsample([pair.target_nd for pair in pairs], pairs, generator)
        cost = _squared(source_nd, target_nd)
        unit = float(cost.median().clamp_min(1e-12))
        epsilon = self.options.epsilon or min(MOST, max(LEAST, CELLS / min(len(a_n), len(b_n))))
        forward = Averages(target_nd, self._log_v(cost / unit, a_n, b_n, epsilon), epsilon * unit)
        if not self.options.debiased:
            return forward
        to_itself = self._log_v(_squared(source_nd, source_nd) / unit, a_n, a_n, epsilon)
        itself = Averages(source_nd, to_itself, epsilon * unit)
        return lambda x_nd: x_nd + forward(x_nd) - itself(x_nd)

    def _log_v(self, cost: Tensor, a_n: Tensor, b_n: Tensor, epsilon: float) -> Tensor:
        """Solve one problem; return the logarithm of the scaling of the columns."""
        ot, price = pot(), self.options.unbalanced
        arrays = (a_n.numpy(), b_n.numpy(), cost.numpy(), epsilon)
        settings = {"log": True, "numItermax": MAX_ITERATIONS, "stopThr": TOLERANCE}
        if price is None:
            log = ot.bregman.sinkhorn_stabilized(*arrays, warn=False, **settings)[1]
        else:
            log = ot.unbalanced.sinkhorn_unbalanced_translation_invariant(*arrays, price, **settings)[1]
            # the plan is relative to the product of the masses
            log["logv"] = log["logv"] + b_n.log().numpy()
        return torch.from_numpy(log["logv"])


def _squared(x_nd: Tensor, y_md: Tensor) -> Tensor:
    square = x_nd.square().sum(1)[:, None] + y_md.square().sum(1) - 2.0 * x_nd @ y_md.T
    return square.clamp_min(0.0)


def subsample(
    groups: Sequence[Tensor], pairs: Sequence[Pair], generator: torch.Generator, size: int = SIZE
) -> tuple[Tensor, Tensor]:
    """Draw at most about ``size`` cells of some groups; return them and their masses, whose sum per group is its weight."""
    total = sum(len(x_nd) for x_nd in groups)
    cells, masses = [], []
    for x_nd, pair in zip(groups, pairs, strict=True):
        n = len(x_nd) if total <= size else min(len(x_nd), max(1, round(pair.weight * size)))
        cells.append(x_nd if n == len(x_nd) else x_nd[torch.randperm(len(x_nd), generator=generator)[:n]])
        masses.append(torch.full((n,), pair.weight / n, dtype=torch.float64))
    mass_n = torch.cat(masses)
    return torch.cat(cells), mass_n / mass_n.sum()


def pot() -> ModuleType:
    """Import POT when it is needed, without the array libraries that are not in use: TensorFlow takes seconds to import."""
    if "ot" in sys.modules:
        return sys.modules["ot"]
    with _without_backends():
        import ot
    return ot


@contextmanager
def _without_backends() -> Iterator[None]:
    names = {"jax": "JAX", "tensorflow": "TENSORFLOW", "cupy": "CUPY"}
    switches = [f"POT_BACKEND_DISABLE_{name}" for module, name in names.items() if module not in sys.modules]
    added = [switch for switch in switches if switch not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for switch in added:
            os.environ.pop(switch, None)
