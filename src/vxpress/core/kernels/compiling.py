"""Report numba's compilation as a stage of the computation that waits for it, and keep the garbage collector off meanwhile."""

from __future__ import annotations

import gc
import threading
from contextlib import ExitStack
from typing import Any

from numba.core import event

from vxpress.core.progress import stage

OURS, OTHERS = "compiling, once per installation", "compiling"


class NoCollection:
    """Keeps the garbage collector off while any thread compiles.

    Compilation creates millions of objects, and each collection among them visits all that the process has imported: without
    them it takes three quarters of the time.
    """

    def __init__(self) -> None:
        self.lock, self.compiling, self.was_on = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self.lock:
            if self.compiling == 0:
                self.was_on = gc.isenabled()
                gc.disable()
            self.compiling += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.compiling -= 1
            if self.compiling == 0 and self.was_on:
                gc.enable()


no_collection = NoCollection()


class _Stages(event.Listener):  # type: ignore[misc]  # numba carries no types
    """Reports the outermost of nested compilations of a thread as a stage."""

    def __init__(self) -> None:
        self.of_thread = threading.local()

    def on_start(self, event: Any) -> None:
        depth = getattr(self.of_thread, "depth", 0)
        self.of_thread.depth = depth + 1
        if depth == 0:
            function = getattr(event.data["dispatcher"], "py_func", None)
            ours = str(getattr(function, "__module__", "")).startswith("vxpress.")
            opened = ExitStack()
            opened.enter_context(stage(OURS if ours else OTHERS))
            if ours:
                opened.enter_context(no_collection)
            self.of_thread.opened = opened

    def on_end(self, event: Any) -> None:
        self.of_thread.depth = max(0, getattr(self.of_thread, "depth", 0) - 1)
        opened = getattr(self.of_thread, "opened", None)
        if self.of_thread.depth == 0 and opened is not None:
            self.of_thread.opened = None
            opened.close()


event.register("numba:compile", _Stages())
