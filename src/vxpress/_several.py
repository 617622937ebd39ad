"""The command under torchrun, which runs it in several processes: the first one reports and writes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


def process_name() -> str:
    """Return the name of this process for messages; empty if it is the only one."""
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return "" if size == "1" else f" (process {rank} of {size})"


def processes_here() -> int:
    """Return how many of the processes are on this machine."""
    found = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(found)) if found.isdecimal() else 1


def in_any_process(flag: bool, settings: Mapping[str, Any]) -> bool:  # noqa: FBT001 - as World.any
    """Return whether any process passes True; all of them have to call it."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return flag
    from vxpress.bridge.fits.processes import in_all_processes
    from vxpress.bridge.read.prepare import resolve_device

    with in_all_processes(resolve_device(settings.get("device", "auto"))) as world:
        return world.any(flag)


def is_first_process(settings: Mapping[str, Any]) -> bool:
    """Wait until all processes are here; return whether this is the first one.

    From here on, a process that is lost ends the others, also while they read the data.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from vxpress.bridge.fits.processes import in_all_processes
    from vxpress.bridge.read.prepare import resolve_device

    with in_all_processes(resolve_device(settings.get("device", "auto"))) as world:
        return world.first
