"""The small training loop: take steps, keep the best state, and end without gain.

It fits parts of a model whose rest is frozen: weights of new categories, the readout, a prior.  An interrupt (Ctrl-C)
is not handled here, because an unfinished part is of no use; :mod:`vxpress.core.training` trains the model itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

# share of the steps in which the learning rate rises, and its share of the peak at the end
WARM_UP, END_SHARE = 0.05, 0.01

Batch = TypeVar("Batch")
State = TypeVar("State")


@dataclass(frozen=True)
class Kept(Generic[State]):
    """The state with the lowest loss, its loss and step (0 for the initial state), and the number of steps taken."""

    state: State
    loss: float
    step: int
    n_steps: int


def keep_best(
    batches: Iterable[Batch],
    step: Callable[[int, Batch], None],
    judge: Callable[[], float],
    state: Callable[[], State],
    *,
    start: float = math.inf,
    due: Callable[[int], bool] = lambda _: True,
    patience: float = math.inf,
) -> Kept[State]:
    """Call ``step`` with its number, from 1, and each batch; return the best state.

    After every step that is ``due``, ``judge`` computes the loss, and ``state`` copies what is kept if the loss is lower
    than ever.  ``start`` is the loss of the initial state.  After ``patience`` steps without gain the loop ends.
    """
    best, best_step, kept, done = start, 0, state(), 0
    for done, batch in enumerate(batches, 1):
        step(done, batch)
        if not due(done):
            continue
        loss = judge()
        if loss < best:
            best, best_step, kept = loss, done, state()
        elif done - best_step >= patience:
            break
    return Kept(kept, best, best_step, done)


def rise_and_fall(step: int, n_steps: int) -> float:
    """Compute the learning rate at a step as a share of its peak: a short rise, then half a cosine."""
    rise = max(1.0, WARM_UP * n_steps)
    if step <= rise:
        return step / rise
    fall = (1 + math.cos(math.pi * (step - rise) / max(1.0, n_steps - rise))) / 2
    return END_SHARE + (1.0 - END_SHARE) * fall


def shuffled(rows: Tensor, order: torch.Generator) -> Tensor:
    """Return the rows in random order; ``order`` is a generator on the CPU."""
    return rows[torch.randperm(len(rows), generator=order).to(rows.device)]


def copies(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return copies of some weights."""
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def put(parameters: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Copy values into weights."""
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)
