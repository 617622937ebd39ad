"""Base class of the maps from control to treated cells in the latent space.

Cells are described relative to the mean of the control cells of their group: a map is learned on z - centre, and moves a
cell to centre + move(z - centre). So what is learned on some groups can be applied to another one at its own place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vxpress.core.option import Options as NoOptions

# moved positions (n, d) of given ones, both relative to the centre of their group
Move = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pair:
    """Control and treated cells of one group, float64 (n, d) and (m, d), relative to ``centre_d``, the mean of the controls.

    The cells are not matched. ``weight`` says how much the group counts where a map is learned from several; the weights
    add up to one.
    """

    source_nd: Tensor
    target_nd: Tensor
    centre_d: Tensor
    weight: float = 1.0


class LatentMap:
    """A map that moves control cells to where treated cells are.

    Subclasses implement :meth:`learn`. This class handles groups: cells of a group with treated cells move by a map that
    is learned from this group alone. Cells of other groups move by a map that is learned from all groups with treated
    cells, each with the same weight however many cells it has. A map is learned when cells of its group are first
    moved, and does not depend on the order of calls.
    """

    Options: ClassVar[type[NoOptions]] = NoOptions
    """The options of this map, a frozen dataclass; ``options`` of the instance holds them."""
    costly: ClassVar[bool] = False
    """Whether it takes seconds to learn the map of one group, so that checks leave few groups out."""

    options: Any

    def __init__(self, options: NoOptions | None = None) -> None:
        self.options = self.Options() if options is None else options

    # what subclasses define

    def learn(self, pairs: Sequence[Pair], generator: torch.Generator) -> Move:
        """Learn from one or several groups how control cells move, and return the map.

        The map takes and returns float64 positions (n, d) relative to the mean of the control cells of their group.
        """
        raise NotImplementedError

    def weights(self, centre_d: Tensor) -> Tensor | None:
        """Return the weights of the groups with treated cells for a group without, by the mean of its control cells.

        ``None`` gives all groups the same weight.
        """
        return None

    # learning and moving

    def fit(
        self,
        source_nd: Tensor,
        target_nd: Tensor,
        source_group_n: Tensor | None,
        target_group_n: Tensor | None,
        generator: torch.Generator,
    ) -> None:
        """Store control and treated cells, (n, d) and (m, d), with codes of their groups from 0, int64 (n,) and (m,).

        Groups may have control cells only. Without codes, all cells are one group. Raises ``ValueError`` if no group has
        both control and treated cells.
        """
        source_nd, target_nd = _positions("source_nd", source_nd), _positions("target_nd", target_nd)
        if source_nd.shape[1] != target_nd.shape[1]:
            msg = (
                f"Control cells have {source_nd.shape[1]} dimensions and treated cells {target_nd.shape[1]}; the same "
                "latent space is expected."
            )
            raise ValueError(msg)
        source_n, target_n = _codes(source_group_n, len(source_nd)), _codes(target_group_n, len(target_nd))
        controls = sorted(set(source_n.tolist()))
        self._centres = {code: source_nd[source_n == code].mean(0) for code in controls}
        self._pairs: dict[int, Pair] = {}
        for code in sorted(set(target_n.tolist()) & set(controls)):
            centre_d = self._centres[code]
            source, target = source_nd[source_n == code] - centre_d, target_nd[target_n == code] - centre_d
            self._pairs[code] = Pair(source, target, centre_d)
        if not self._pairs:
            msg = "No group has both control and treated cells; at least one is needed to learn how cells move."
            raise ValueError(msg)
        self._moves: dict[int, Move] = {}
        self._seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))

    @torch.no_grad()
    def __call__(self, z_nd: Tensor, group_n: Tensor | None = None) -> Tensor:
        """Move cells (n, d), float64; ``group_n`` are codes of their groups, int64 (n,).

        Codes without treated cells, among them -1, move by what was learned from all groups with treated cells. Cells
        of a code without control cells count as relative to the nearest centre of a group.
        Without codes, cells are of the only group, or of none of several.
        """
        z_nd = _positions("z_nd", z_nd)
        if group_n is None:
            group_n = torch.full((len(z_nd),), next(iter(self._pairs)) if len(self._centres) == 1 else -1)
        moved_nd = torch.empty_like(z_nd)
        for code in sorted(set(group_n.tolist())):
            rows = torch.nonzero(group_n == code)[:, 0]
            moved_nd[rows] = self.moved(z_nd[rows], code)
        return moved_nd

    def moved(self, z_nd: Tensor, code: int) -> Tensor:
        """Move cells of one group."""
        if code in self._centres:
            centre_nd = self._centres[code].expand_as(z_nd)
        else:
            centres = torch.stack(list(self._centres.values()))
            centre_nd = centres[torch.cdist(z_nd, centres).argmin(1)]
        return centre_nd + self._move(code)(z_nd - centre_nd)

    @property
    def pairs(self) -> list[Pair]:
        """The groups with treated cells, all with the same weight."""
        return [replace(pair, weight=1.0 / len(self._pairs)) for pair in self._pairs.values()]

    def _move(self, code: int) -> Move:
        """Return the map of a group; learn it if it is new."""
        pairs, slot = self.pairs, -1
        if code in self._pairs:
            pairs, slot = [self._pairs[code]], code
        elif code in self._centres and (weights := self.weights(self._centres[code])) is not None:
            pairs = [replace(pair, weight=float(w)) for pair, w in zip(pairs, weights, strict=True)]
            slot = code
        if slot not in self._moves:
            generator = torch.Generator().manual_seed((self._seed + slot) % 2**63)
            with torch.enable_grad():
                self._moves[slot] = self.learn(pairs, generator)
        return self._moves[slot]


def drawn(x_nd: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw n cells with replacement."""
    return x_nd[torch.randint(len(x_nd), (n,), generator=generator)]


def _positions(name: str, z_nd: Tensor) -> Tensor:
    z_nd = z_nd.detach().to("cpu", torch.float64)
    if z_nd.ndim != 2 or not bool(torch.isfinite(z_nd).all()):
        found = f"shape {tuple(z_nd.shape)}" if z_nd.ndim != 2 else "NaN or infinite values"
        msg = f"{name} has {found}; finite positions of cells are expected, (cells, dimensions)."
        raise ValueError(msg)
    return z_nd


def _codes(group_n: Tensor | None, n: int) -> Tensor:
    if group_n is None:
        return torch.zeros(n, dtype=torch.int64)
    if len(group_n) != n:
        msg = f"{len(group_n)} codes of groups were given for {n} cells; one per cell is expected."
        raise ValueError(msg)
    return group_n.detach().cpu()
