"""The gradient of a minibatch that is divided among processes: one exchange of messages for each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vxpress.core.parallel.exchange import Exchange
from vxpress.core.parallel.world import Requests, World

# numbers that travel with a gradient: the loss and two requests
N_NUMBERS = 3


def n_extra(agreed: Sequence[Tensor]) -> int:
    """Return how many values travel with a gradient: those of some small tensors, and a few numbers."""
    return sum(value.numel() for value in agreed) + N_NUMBERS


class GradientSum:
    """Replaces the gradient of this process's part of a minibatch by that of the whole minibatch.

    ``message`` is memory for all that is exchanged: the gradient of the mean loss of the part, and after it :func:`n_extra`
    values. ``agreed`` are small tensors, the running statistics of batch norms, which become means over the processes. All
    are weighted with the numbers of cells.

    ``requests`` are those of this process. After a step, ``requested`` are those of any process, also if the step had several
    exchanges; on a GPU they are read only by :meth:`read_requests`, which waits for the device.
    """

    def __init__(
        self, world: World, message: Tensor, agreed: Sequence[Tensor], exchange: Exchange | None = None
    ) -> None:
        self.world, self.message, self.agreed = world, message, list(agreed)
        self.exchange = Exchange(world) if exchange is None else exchange
        n = len(message) - n_extra(self.agreed)
        self.gradient, self.extra, self.numbers = message[:n], message[n:-N_NUMBERS], message[-N_NUMBERS:]
        self.requests, self.requested = Requests(), Requests()
        self.asked = torch.zeros(2, device=message.device)
        # cells of the whole minibatch; set before every step
        self.n_cells = 1

    @torch.no_grad()
    def __call__(self, loss: Tensor, n_cells: int) -> Tensor:
        """Sum the gradient of a part of ``n_cells`` cells over the processes, in place; return the loss of the whole."""
        share = n_cells / self.n_cells
        if self.agreed:
            torch.cat([value.reshape(-1) for value in self.agreed], out=self.extra)
        stop = self.requests.stop or self.world.interrupted
        self.numbers.zero_()
        self.numbers[0] = loss
        if stop or self.requests.save:
            self.numbers[1:] = torch.tensor([stop, self.requests.save], dtype=self.message.dtype)
        self.message.mul_(share)
        self.exchange.sum_(self.message)
        places = self.extra.split([value.numel() for value in self.agreed])
        for value, mean in zip(self.agreed, places, strict=True):
            value.copy_(mean.view_as(value))
        self.asked += self.numbers[1:]
        if self.message.device.type == "cpu":
            self.read_requests()
        return self.numbers[0].clone()

    def mean(self, part: Tensor, n_cells: int) -> Tensor:
        """Return the mean over a minibatch, given that over ``n_cells`` of its cells; the gradient is that of the latter."""
        share = n_cells / self.n_cells
        return part + (self.world.sum_(part.detach() * share) - part.detach())

    def read_requests(self) -> None:
        """Add to ``requested``; those of this process are then fulfilled or not, but no longer open."""
        stop, save = (bool(value) for value in self.asked.tolist())
        self.requested = Requests(stop=stop or self.requested.stop, save=save or self.requested.save)
        self.asked.zero_()
        self.requests = replace(self.requests, stop=False, save=False)
