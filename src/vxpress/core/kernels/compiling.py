"""Report numba's compilation as a stage of the computation that waits for it."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

from numba.core import event

from vxpress.core.progress import Stage, stage

OURS, OTHERS = "compiling, once per installation", "compiling"


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
            opened: AbstractContextManager[Stage] = stage(OURS if ours else OTHERS)
            opened.__enter__()
            self.of_thread.opened = opened

    def on_end(self, event: Any) -> None:
        self.of_thread.depth = max(0, getattr(self.of_thread, "depth", 0) - 1)
        opened = getattr(self.of_thread, "opened", None)
        if self.of_thread.depth == 0 and opened is not None:
            self.of_thread.opened = None
            opened.__exit__(None, None, None)


event.register("numba:compile", _Stages())
