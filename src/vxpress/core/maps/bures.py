"""The optimal transport map between normal distributions, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vxpress.core.maps.base import LatentMap, Move, Pair
from vxpress.core.option import Options as NoOptions
from vxpress.core.option import option

# smallest eigenvalue of a covariance, as a share of the largest
MIN_EIGENVALUE = 1e-9


@dataclass(frozen=True)
class BuresOptions(NoOptions):
    """Options of the map between normal distributions."""

    shrinkage: float | None = option(
        None,
        """How far the covariances of control and treated cells are moved towards their common mean, from 0 to 1. By
        default each is estimated (Ledoit & Wolf 2004): the fewer cells and the less both differ, the more.
        0 maps mean and covariance of the control cells exactly to those of the treated cells, if there are more cells of
        each than dimensions.""",
        low=0.0,
        high=1.0,
    )


class Bures(LatentMap):
    """Map a normal distribution with the moments of the control cells to one with those of the treated cells.

    The map is affine, y = m1 + A (x - m0) with A = S0^-1/2 (S0^1/2 S1 S0^1/2)^1/2 S0^-1/2. It is the map of least mean
    squared distance between both normal distributions. With several groups, the covariances are those within groups.
    """

    Options = BuresOptions

    def learn(self, pairs: Sequence[Pair], generator: torch.Generator) -> Move:
        return Affine.between(pairs, self.options.shrinkage)


@dataclass(frozen=True)
class Affine:
    """The map y = shift + A x of control cells, whose mean is the origin; ``a_dd`` is symmetric and positive definite.

    ``spread`` is the root mean square of the standard deviations of treated cells.
    """

    shift_d: Tensor
    a_dd: Tensor
    spread: float

    def __call__(self, x_nd: Tensor) -> Tensor:
        return self.shift_d + x_nd @ self.a_dd

    @classmethod
    def between(cls, pairs: Sequence[Pair], shrinkage: float | None = None) -> Affine:
        """Return the optimal map between normal distributions with the mean moments of some groups."""
        shift_d = torch.stack([pair.weight * pair.target_nd.mean(0) for pair in pairs]).sum(0)
        source, target = shrunk_covariances(pairs, shrinkage)
        return cls(shift_d, optimal(source, target), float(target.diagonal().mean().clamp_min(1e-12).sqrt()))


def optimal(source_dd: Tensor, target_dd: Tensor) -> Tensor:
    """Return the symmetric positive semidefinite A with A S0 A = S1, for positive definite S0."""
    root, inverse = power(source_dd, 0.5), power(source_dd, -0.5)
    return inverse @ power(root @ target_dd @ root, 0.5) @ inverse


def power(s_dd: Tensor, exponent: float) -> Tensor:
    """Raise a symmetric positive semidefinite matrix to a power; negligible eigenvalues count as small ones."""
    value, vector = torch.linalg.eigh(0.5 * (s_dd + s_dd.T))
    floor = (MIN_EIGENVALUE * value[-1]).clamp_min(1e-30)
    return (vector * value.clamp_min(floor) ** exponent) @ vector.T


@dataclass(frozen=True)
class Spread:
    """Covariance within groups, the expected square of its error in all entries together, and the number of cells."""

    s_dd: Tensor
    error: float
    n: float

    @classmethod
    def within(cls, groups: Sequence[Tensor], weights: Sequence[float]) -> Spread:
        """Average the covariances of some groups; a group of one cell adds nothing."""
        d = groups[0].shape[1]
        s_dd, error, total, n = torch.zeros(d, d, dtype=torch.float64), 0.0, 0.0, 0
        for x_nd, weight in zip(groups, weights, strict=True):
            if len(x_nd) < 2:
                continue
            apart_nd = x_nd - x_nd.mean(0)
            own = apart_nd.T @ apart_nd / (len(x_nd) - 1)
            fourth = float(apart_nd.square().sum(1).square().mean())
            square = float(own.square().sum())
            # of a few cells, the estimate is too small: at least that of normal cells
            normal = (square + float(own.diagonal().sum()) ** 2) / (len(x_nd) - 1)
            error += weight**2 * max((fourth - square) / len(x_nd), normal)
            s_dd, total, n = s_dd + weight * own, total + weight, n + len(x_nd)
        if total == 0.0:
            return cls(s_dd, 0.0, 0)
        return cls(s_dd / total, error / total**2, n)

    def towards(self, other_dd: Tensor, share: float | None) -> Spread:
        """Shrink towards another matrix, by default by the share that minimises the expected squared error."""
        if share is None:
            gap = float((self.s_dd - other_dd).square().sum())
            share = min(1.0, self.error / gap) if gap > 0 else 1.0
        return Spread((1.0 - share) * self.s_dd + share * other_dd, self.error, self.n)


def shrunk_covariances(pairs: Sequence[Pair], shrinkage: float | None) -> tuple[Tensor, Tensor]:
    """Return the covariances within groups of control and treated cells, shrunk towards their mean.

    Their mean itself is shrunk towards a multiple of the identity, so that it can be inverted with fewer cells than
    dimensions. If both are shrunk completely, they are equal, and the map between them is a shift.
    """
    weights = [pair.weight for pair in pairs]
    source = Spread.within([pair.source_nd for pair in pairs], weights)
    target = Spread.within([pair.target_nd for pair in pairs], weights)
    n, d = source.n + target.n, len(source.s_dd)
    if n == 0:
        return torch.eye(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    if min(source.n, target.n) <= d:
        shrinkage = None
    if shrinkage == 0.0:
        return source.s_dd, target.s_dd
    a, b = source.n / n, target.n / n
    both = Spread(a * source.s_dd + b * target.s_dd, a**2 * source.error + b**2 * target.error, n)
    sphere = both.s_dd.diagonal().mean().clamp_min(1e-12) * torch.eye(d, dtype=torch.float64)
    common = both.towards(sphere, None)
    # a population without two cells has no covariance of its own
    first, second = (spread.towards(common.s_dd, shrinkage if spread.n else 1.0).s_dd for spread in (source, target))
    return first, second
