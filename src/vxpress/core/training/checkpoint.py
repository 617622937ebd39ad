"""When a training stores its state, and how it ends if the process is asked to stop.

A checkpoint holds the state after a step, so a training that continues from it has the bits of one that was never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from vxpress._signals import Stopped, StopRequests

if TYPE_CHECKING:
    from vxpress.core.training import Training

State = dict[str, Any]


class Store(Protocol):
    """Where the state of one training is kept."""

    def load(self) -> State | None:
        """Return the stored state; None if there is none."""

    def save(self, state: State) -> None:
        """Replace the stored state if possible; the training continues in either case."""


class Checkpoint:
    """The checkpoint of one training: written every ``seconds``, on a request to stop, and at the end."""

    def __init__(self, store: Store, seconds: float, requests: StopRequests) -> None:
        self.store, self.seconds, self.requests = store, seconds, requests
        self.last = time.monotonic()

    def save(self, state: State) -> None:
        """Store a state."""
        self.store.save(state)
        self.last = time.monotonic()

    def held(self) -> AbstractContextManager[None]:
        """Within the block, a request to stop waits until :meth:`after_step` or a part that :meth:`may_stop`."""
        return self.requests.held()

    def after_step(self, training: Training) -> None:
        """Store the state if it is time, or if the process is asked to stop; raise ``Stopped`` in that case."""
        stop = self.requests.received is not None
        if stop or time.monotonic() - self.last >= self.seconds:
            self.save(training.state_dict())
        if stop:
            raise self.requests.stopped()

    @contextmanager
    def may_stop(self, state: Callable[[], State]) -> Iterator[None]:
        """Let a request end the block at any point; ``state`` returns what is stored then."""
        try:
            with self.requests.at_once():
                yield
        except Stopped:
            self.save(state())
            # it says what has been stored meanwhile
            raise self.requests.stopped() from None
