"""A fit that several processes share: torchrun starts a script in each of them, and all call the fit with the same cells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from scanpy import logging as logg
from scanpy import settings

from vxpress.core.parallel import World, current_world, within, world_from_environment
from vxpress.core.threads import decided


@contextmanager
def in_all_processes(device: torch.device, n_threads: int | None = None) -> Iterator[World]:
    """Run a fit in the world that torchrun has started, with a number of threads if one is given; only the first process logs.

    Ctrl-C takes effect in all processes together. With one process, nothing changes.
    """
    world = world_from_environment(device)
    if not world.several:
        with decided(n_threads):
            yield world
        return
    verbosity = settings.verbosity
    try:
        if not world.first:
            settings.verbosity = 0
        with decided(n_threads), within(world), world.interrupts_held(), world.fit():
            yield world
    finally:
        settings.verbosity = verbosity


def agreed_generators(*generators: np.random.Generator) -> tuple[np.random.Generator, ...]:
    """Return the random generators of the first process, which may have been seeded from the system."""
    world = current_world()
    return tuple(world.agreed(generators)) if world.several else generators


def announce() -> None:
    """Log how many processes share the fit, if there are several."""
    if current_world().several:
        logg.info(f"    {current_world().size} processes share the training")
