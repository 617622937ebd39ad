"""The world of a process, as torchrun or another launcher describes it by environment variables."""

from __future__ import annotations

import os

import torch

from vxpress.core.parallel.world import SINGLE, World

NAMES = "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"

_opened: dict[str, World] = {}


def world_size() -> int:
    """Return how many processes were started together; 1 unless a launcher says otherwise."""
    found = os.environ.get("WORLD_SIZE", "1")
    return int(found) if found.isdecimal() else 1


def local_rank() -> int | None:
    """Return the number of this process on its machine, which is also that of its GPU; None with one process."""
    found = os.environ.get("LOCAL_RANK", "")
    return int(found) if world_size() > 1 and found.isdecimal() else None


def world_from_environment(device: torch.device | str = "cpu") -> World:
    """Return the world that torchrun has started, for computations on this type of device; collective.

    With one process, this is :data:`SINGLE`. The connections stay open until the process ends. ``RuntimeError`` is raised if
    the environment is incomplete, and :class:`RankError` if a process does not arrive.
    """
    if world_size() <= 1:
        return SINGLE
    missing = [name for name in NAMES if not os.environ.get(name)]
    if missing:
        msg = (
            f"WORLD_SIZE={world_size()} asks for several processes, but {', '.join(missing)} is not set. Start them with "
            "torchrun --standalone --nproc-per-node N script.py, or run one process (unset WORLD_SIZE)."
        )
        raise RuntimeError(msg)
    kind = torch.device(device).type
    if kind not in _opened:
        from vxpress.core.parallel.processes import open_world

        _opened[kind] = open_world(kind)
    return _opened[kind]
