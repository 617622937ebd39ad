"""The order in which a training visits its cells.

Every sampler visits each cell once per epoch, in ``n_minibatches`` minibatches whose sizes differ by at most one cell.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# rows that are read together, and how many such blocks are mixed at a time
BLOCK, BUFFER = 256, 16


def number_of_minibatches(n: int, batch_size: int) -> int:
    """Return how many minibatches of at most ``batch_size`` of n cells an epoch has.

    None has a single cell, which has no variance for batch norm; then a minibatch may be larger.
    """
    return min(math.ceil(n / batch_size), max(1, n // 2))


def spread(n: int, most: int, generator: torch.Generator) -> list[list[int]]:
    """Divide the numbers from 0 to n - 1 at random into groups of at most ``most``, each of which is spread over all numbers.

    With k groups, each gets one of the first k numbers, one of the next k numbers, and so on.
    """
    if n == 0:
        return []
    k = math.ceil(n / most)
    group = torch.rand(math.ceil(n / k), k, generator=generator).argsort(1).view(-1)[:n]
    return [part.tolist() for part in group.argsort(stable=True).split(group.bincount(minlength=k).tolist())]


class Sampler(ABC):
    """The order of ``rows`` (n,), the numbers of the cells in their source.

    ``state_dict`` holds everything that decides the epochs to come, as tensors and numbers.
    """

    def __init__(self, rows: Tensor, n_minibatches: int) -> None:
        self.rows, self.n_minibatches = rows, n_minibatches

    @property
    def kind(self) -> str:
        """Name of the order, with the settings that decide it besides rows and seed."""
        return type(self).__name__

    @abstractmethod
    def epoch(self) -> Sequence[Tensor]:
        """Return the rows of each minibatch of the next epoch."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state between two epochs."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""


class _Random(Sampler):
    """A sampler with a random generator on the CPU, which is its whole state."""

    def __init__(self, rows: Tensor, n_minibatches: int, seed: int) -> None:
        super().__init__(rows, n_minibatches)
        self.generator = torch.Generator().manual_seed(seed)

    def permutation(self, n: int) -> Tensor:
        """Return the numbers from 0 to n - 1 in random order."""
        return torch.randperm(n, generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())


class Shuffled(_Random):
    """All cells in random order: the best order for learning, if any cell can be read as fast as any other."""

    def epoch(self) -> Sequence[Tensor]:
        return self.rows[self.permutation(len(self.rows)).to(self.rows.device)].tensor_split(self.n_minibatches)


class ByBlock(_Random):
    """Blocks of neighbouring cells in random order, mixed through a buffer: for counts that are read from a disk.

    A block holds the cells whose row numbers share the quotient by ``block``, so it is one contiguous read. At most ``buffer``
    blocks are read, their cells are shuffled together and visited, then come the next ones. A source that keeps the
    last ``buffer`` blocks it has read therefore reads every block once per epoch.

    The blocks that are mixed come from everywhere (:func:`spread`). If neighbours on the disk resemble each other, for example because
    batches were concatenated, what is mixed therefore still has the composition of all cells, and so have its minibatches.
    ``places`` are the numbers of all rows on the disk, if these are other ones.
    """

    def __init__(
        self,
        rows: Tensor,
        n_minibatches: int,
        seed: int,
        *,
        block: int = BLOCK,
        buffer: int = BUFFER,
        places: Tensor | None = None,
    ) -> None:
        super().__init__(rows, n_minibatches, seed)
        if block < 1 or buffer < 1:
            msg = f"block={block!r} and buffer={buffer!r} were given; both have to be at least 1."
            raise ValueError(msg)
        rows = rows.cpu()
        place, order = (rows if places is None else places[rows]).sort(stable=True)
        ordered = rows[order]
        _, sizes = (place // block).unique_consecutive(return_counts=True)
        self.blocks, self.block, self.buffer = ordered.split(sizes.tolist()), block, buffer

    @property
    def kind(self) -> str:
        return f"{super().kind}, {self.block} rows, {self.buffer} blocks"

    def epoch(self) -> Sequence[Tensor]:
        mixed = []
        for some in spread(len(self.blocks), self.buffer, self.generator):
            together = torch.cat([self.blocks[b] for b in some])
            mixed.append(together[self.permutation(len(together))])
        rows = torch.cat(mixed) if mixed else self.rows.cpu()
        return rows.to(self.rows.device).tensor_split(self.n_minibatches)
