"""When a training stores its state, and how it ends if the process is asked to stop.

A checkpoint holds the state after a step, so a training that continues from it has the bits of one that was never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from vxpress._signals import Stopped, StopRequests
from vxpress.core.parallel import GradientSum, World

if TYPE_CHECKING:
    from vxpress.core.training import Training

State = dict[str, Any]


class Store(Protocol):
    """Where the state of one training is kept."""

    def load(self) -> State | None:
        """Return the stored state; None if there is none."""

    def save(self, state: State) -> None:
        """Replace the stored state if possible; the training continues in either case."""


# on a GPU, steps between two looks at what other processes ask for, which wait for the device
LOOK = 50


class Checkpoint:
    """The checkpoint of one training: written every ``seconds``, on a request to stop, and at the end.

    With several processes, all of them store at the same step, as soon as any of them wants to, and the first one writes.
    """

    def __init__(self, store: Store, seconds: float, requests: StopRequests) -> None:
        self.store, self.seconds, self.requests = store, seconds, requests
        self.last = time.monotonic()

    def load(self, world: World) -> State | None:
        """Return the stored state, as the first process reads it; None if there is none."""
        return world.once(self.store.load)

    def save(self, world: World, state: State) -> None:
        """Store a state, which all processes have."""
        if world.first:
            self.store.save(state)
        self.last = time.monotonic()

    def held(self) -> AbstractContextManager[None]:
        """Within the block, a request to stop waits until :meth:`after_step` or a part that :meth:`may_stop`."""
        return self.requests.held()

    def after_step(self, training: Training) -> None:
        """Store the state if it is time, or if the process is asked to stop; raise ``Stopped`` in that case."""
        stop = self.requests.received is not None
        due = stop or time.monotonic() - self.last >= self.seconds
        if training.whole is not None:
            due = self._any(training.whole, training, due=due)
        if due:
            self.save_and_stop(training.world, training.state_dict())

    def save_and_stop(self, world: World, state: State) -> None:
        """Store a state, and end the training in all processes if one of them is asked to stop."""
        self.save(world, state)
        if world.any(self.requests.received is not None):
            raise self.requests.stopped()

    def _any(self, whole: GradientSum, training: Training, *, due: bool) -> bool:
        """Return whether any process asked for a checkpoint before this step; what this one asks travels with the next."""
        if training.device.type == "cuda" and training.outcome.n_steps % LOOK == 0:
            whole.read_requests()
        whole.requests.save = due
        return whole.requested.save

    @contextmanager
    def may_stop(self, training: Training, state: Callable[[], State]) -> Iterator[None]:
        """Let a request end the block at any point; ``state`` returns what is stored then.

        With several processes, which exchange messages in the block, it goes on to its end.
        """
        if training.world.several:
            yield
            return
        try:
            with self.requests.at_once():
                yield
        except Stopped:
            self.save(training.world, state())
            # it says what has been stored meanwhile
            raise self.requests.stopped() from None
