"""The processes of a fit, and what they exchange; here for one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import numpy as np
from torch import Tensor

from vxpress.core.parallel.exchange import Exchange

T = TypeVar("T")


class RankError(RuntimeError):
    """A process of the fit was lost, does not answer, or does something else than the others; the message names it."""


@dataclass
class Requests:
    """What a process wants to happen after the current step, at the same step in all processes.

    ``stop`` ends the training as Ctrl-C does. ``save`` asks for a checkpoint.
    """

    stop: bool = False
    save: bool = False


class World:
    """The processes of a fit: this class is the world of one process, in which every call returns what it was given.

    ``rank`` is the number of this process, from 0, and ``size`` the number of processes. Every method is collective: all
    processes have to call it, in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files, messages and progress."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there is more than one process."""
        return self.size > 1

    def part(self, n: int) -> slice:
        """Return which of ``n`` items this process works on; the parts of all processes follow one another.

        Not collective.
        """
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def sum_(self, values: Tensor) -> Tensor:
        """Replace a tensor by its sum over all processes, with the same bits in all of them, and return it."""
        return values

    def exchange(self) -> Exchange:
        """Return how the messages of a training are summed."""
        return Exchange(self)

    def copy_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the first process."""

    def collect_(self, arrays: Iterable[np.ndarray]) -> None:
        """Complete arrays (n, ...) of which each process has computed the rows :meth:`part` (n)."""

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes by rank, in every process; they have to be picklable."""
        return [value]

    def once(self, make: Callable[[], T]) -> T:
        """Return what ``make`` returns in the first process, where alone it is called; its errors are raised in all of them.

        An interrupt (Ctrl-C) counts as an error, so that all processes handle it at the same place.
        """
        return make()

    def agreed(self, value: T) -> T:
        """Return the value of the first process."""
        return value

    def any(self, flag: bool) -> bool:  # noqa: FBT001 - the only argument
        """Return whether any process passes True."""
        return flag

    def barrier(self) -> None:
        """Wait for all processes."""

    def fit(self) -> AbstractContextManager[None]:
        """Within this block, an error that is raised in this process alone also ends the waiting of the others; not collective."""
        return nullcontext()

    # interrupts

    def interrupts_held(self) -> AbstractContextManager[object]:
        """Within this block, interrupts wait for a point that all processes reach together; not collective."""
        return nullcontext()

    @property
    def interrupted(self) -> bool:
        """Whether this process has received an interrupt (Ctrl-C) that waits for the others; not collective."""
        return False

    def interrupt(self) -> NoReturn:
        """Raise ``KeyboardInterrupt``, which all processes have agreed on."""
        raise KeyboardInterrupt

    def raise_if_interrupted(self) -> None:
        """Raise ``KeyboardInterrupt`` in all processes if any of them has received an interrupt."""


SINGLE = World()
