"""The cells that one of several processes visits in an epoch."""

from __future__ import annotations

import heapq
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vxpress.core.data.sampler import ByBlock, Sampler, spread

# blocks of each process below which whole blocks would divide the cells unevenly
MIN_BLOCKS = 8


def dealt(sampler: Sampler, rank: int, world: int) -> Dealt:
    """Return the share of process ``rank`` of ``world``: whole blocks if the order is by blocks, else a part of each minibatch."""
    if type(sampler) is ByBlock and len(sampler.blocks) >= MIN_BLOCKS * world:
        return BlocksByRank(sampler, rank, world)
    return ByRank(sampler, rank, world)


class Dealt(Sampler):
    """The share of one of several processes: disjoint shares that together are all cells, in equally many minibatches.

    All processes need an equal ``sampler``, with the same seed.
    """

    def __init__(self, sampler: Sampler, rank: int, world: int) -> None:
        super().__init__(sampler.rows, sampler.n_minibatches)
        if not 0 <= rank < world:
            msg = f"rank={rank} of world={world} processes was given; a rank from 0 to world - 1 is expected."
            raise ValueError(msg)
        # no part of one cell, which has no variance for batch norm
        if len(sampler.rows) // max(1, sampler.n_minibatches) < 2 * world:
            msg = (
                f"{len(sampler.rows)} cells in {sampler.n_minibatches} minibatches are too few for {world} processes: each needs at "
                "least 2 cells of every minibatch. Use larger minibatches (batch_size=) or fewer processes."
            )
            raise ValueError(msg)
        self.sampler, self.rank, self.world = sampler, rank, world

    @property
    def kind(self) -> str:
        return f"{super().kind} of {self.sampler.kind}"

    @abstractmethod
    def n_cells(self, i: int) -> int:
        """Return how many cells the minibatch ``i`` of the last epoch has, in all processes together."""

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)


class ByRank(Dealt):
    """A part of each minibatch of another sampler: the sum of the gradients of all processes is that of one process."""

    def epoch(self) -> Sequence[Tensor]:
        return [part.tensor_split(self.world)[self.rank] for part in self.sampler.epoch()]

    def n_cells(self, i: int) -> int:
        return _size(len(self.rows), self.n_minibatches, i)


class BlocksByRank(Dealt):
    """Whole blocks of an order by blocks, dealt anew in every epoch: no process reads what another one reads.

    The blocks are dealt in random order, each to the process that has the fewest cells so far. Every process mixes its blocks
    through a buffer of its own and divides them into the same number of minibatches. Their sizes differ between processes
    by the cells of a block in the whole epoch.
    """

    sampler: ByBlock

    def epoch(self) -> Sequence[Tensor]:
        sampler = self.sampler
        order = sampler.permutation(len(sampler.blocks)).tolist()
        # of this process alone: all processes have to draw equally many numbers from the common generator
        seed = int(torch.randint(2**62, (1,), generator=sampler.generator))
        mixing = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0]))
        blocks = sorted(self._deal(order))
        mixed = []
        for some in spread(len(blocks), sampler.buffer, mixing):
            together = torch.cat([sampler.blocks[blocks[i]] for i in some])
            mixed.append(together[torch.randperm(len(together), generator=mixing)])
        return torch.cat(mixed).to(self.rows.device).tensor_split(self.n_minibatches)

    def _deal(self, order: list[int]) -> list[int]:
        """Return the blocks of this process; keep the numbers of cells of all of them."""
        self.sizes, hands = [0] * self.world, [list[int]() for _ in range(self.world)]
        fewest = [(0, rank) for rank in range(self.world)]
        for block in order:
            n_cells, to = fewest[0]
            hands[to].append(block)
            self.sizes[to] = n_cells + len(self.sampler.blocks[block])
            heapq.heapreplace(fewest, (self.sizes[to], to))
        return hands[self.rank]

    def n_cells(self, i: int) -> int:
        return sum(_size(n, self.n_minibatches, i) for n in self.sizes)


def _size(n: int, n_parts: int, i: int) -> int:
    """Return the size of part ``i`` of ``n`` items that are divided evenly."""
    return n // n_parts + (i < n % n_parts)
