"""A shift of all cells by the difference of means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vxpress.core.maps.base import LatentMap, Move, Pair
from vxpress.core.option import Options as NoOptions
from vxpress.core.option import option


@dataclass(frozen=True)
class ShiftOptions(NoOptions):
    """Options of the shift."""

    local: Literal["auto", "none", "groups", "cells"] = option(
        "auto",
        """How the groups with treated cells are weighted for a group without: ``"none"`` gives them the same weight
        (scGen), ``"groups"`` weights them by the distance of their control cells' mean from that of the group, and
        ``"cells"`` by the distance of their control cells' mean from each cell. ``"auto"`` is ``"groups"`` if that
        predicts the difference of each group with treated cells better from the others, else ``"none"``.""",
    )


class Shift(LatentMap):
    """Add the mean of treated cells minus the mean of control cells of the same group (Lotfollahi et al. 2019).

    A group without treated cells moves by the mean difference of the other groups.
    """

    Options = ShiftOptions

    def learn(self, pairs: Sequence[Pair], generator: torch.Generator) -> Move:
        shift_d = sum((pair.weight * difference(pair) for pair in pairs), torch.zeros(()))
        return lambda x_nd: x_nd + shift_d

    def weights(self, centre_d: Tensor) -> Tensor | None:
        local = self.options.local
        if local == "none" or (local == "auto" and not near_groups_are_alike(self.pairs)):
            return None
        return nearness(centre_d[None], self.pairs)[0]

    def moved(self, z_nd: Tensor, code: int) -> Tensor:
        if self.options.local != "cells" or code in self._pairs:
            return super().moved(z_nd, code)
        pairs = self.pairs
        return z_nd + nearness(z_nd, pairs) @ torch.stack([difference(pair) for pair in pairs])


def difference(pair: Pair) -> Tensor:
    """Return the mean of treated cells minus the mean of control cells, (d,)."""
    return pair.target_nd.mean(0) - pair.source_nd.mean(0)


def near_groups_are_alike(pairs: Sequence[Pair]) -> bool:
    """Return whether near groups predict the difference of a group better than all groups alike, for three or more."""
    if len(pairs) < 3:
        return False
    alike = near = 0.0
    for pair in pairs:
        others = [other for other in pairs if other is not pair]
        differences = torch.stack([difference(other) for other in others])
        weights = nearness(pair.centre_d[None], others)[0]
        alike += float((differences.mean(0) - difference(pair)).square().sum())
        near += float((weights @ differences - difference(pair)).square().sum())
    return near < alike


def nearness(z_nd: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """Weight groups by a Gaussian kernel between points and the centres of the groups, (n, groups).

    The bandwidth of each point is its distance from the nearest centre, so a centre twice as far as the nearest counts 0.22
    times as much.
    """
    square_ng = torch.cdist(z_nd, torch.stack([pair.centre_d for pair in pairs])).square()
    nearest_n1 = square_ng.amin(1, keepdim=True).clamp_min(1e-12)
    return (-0.5 * square_ng / nearest_n1).softmax(1)
