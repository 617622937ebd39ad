"""The progress bar of a call: its present stage and how far this has progressed."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from scanpy import settings
from tqdm import TqdmWarning

from vxpress.core.progress import Stage, parts, watched

with warnings.catch_warnings():
    # in a notebook without ipywidgets the bar is drawn as text
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

# public functions that report stages of their own take these from here too
__all__ = ["parts", "progress_bar"]

# seconds until the bar appears, and between two updates
DELAY, REDRAW = 5.0, 0.2
# the same if lines cannot be overwritten, as in a log file
DELAY_OF_LINES, EVERY_LINE = 30.0, 30.0
WITH_TOTAL = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
WITHOUT_TOTAL = "{desc} {elapsed}{postfix}"


@contextmanager
def progress_bar(call: str, progress: bool | None) -> Iterator[None]:  # noqa: FBT001 - the value of a keyword
    """Show the stages of this block under the name of the call.

    ``progress`` is the argument of the user: ``None`` shows a bar after five seconds, unless scanpy's verbosity is 0;
    ``True`` shows it at once, ``False`` never.
    """
    if not (progress is None or isinstance(progress, bool)):
        msg = f"progress={progress!r} was given; pass True, False or None."
        raise ValueError(msg)
    stream = sys.stderr
    if progress is False or (progress is None and settings.verbosity < 1) or stream is None:
        with watched(None):
            yield
        return
    display = Display(call, stream, at_once=progress is True)
    display.start()
    try:
        with watched(display):
            yield
    finally:
        display.close()


class Display:
    """One line on ``stream``, or a widget in a notebook, drawn by a separate thread so that it updates during long steps.

    The line names the stages down to the first that counts its steps, and shows its bar. While this stage waits for a stage
    that does not count steps, such as compilation, that stage is shown. Between stages the line is cleared, so that it does
    not mix with log messages.
    """

    def __init__(self, call: str, stream: TextIO, *, at_once: bool) -> None:
        self.call, self.stream = call, stream
        self.stages: list[tuple[Stage, float]] = []
        self.started = time.time()
        self.lock, self.over = threading.Lock(), threading.Event()
        self.bar: Any = None
        self.counted: Stage | None = None
        # streams of a notebook can overwrite lines, although they are not terminals
        self.in_place = stream.isatty() or type(stream).__module__.startswith("ipykernel.")
        self.every = REDRAW if self.in_place else EVERY_LINE
        self.delay = 0.0 if at_once else DELAY if self.in_place else DELAY_OF_LINES

    def start(self) -> None:
        """Start drawing in another thread."""
        threading.Thread(target=self._run, name="vxpress-progress", daemon=True).start()

    def close(self) -> None:
        """Remove the line."""
        self.over.set()
        with self.lock, suppress(Exception):
            if self.bar is not None:
                self.bar.close()
            self.bar = None

    def begin(self, stage: Stage) -> None:
        """Take note of a stage."""
        self.stages.append((stage, time.time()))

    def end(self, stage: Stage) -> None:
        """Forget a stage, and clear the line if it was the one shown."""
        since = next((since for entry, since in self.stages if entry is stage), time.time())
        # time spent in stages without a count, such as compilation, does not belong to the steps of the outer stage
        waited = time.time() - since if stage.total is None else 0.0
        self.stages = [(entry, begun + waited) for entry, begun in self.stages if entry is not stage]
        if self.bar is not None and (stage is self.counted or not self.stages):
            with self.lock, suppress(Exception):
                if self.bar is not None:
                    self.bar.clear()

    def _run(self) -> None:
        if self.over.wait(self.delay):
            return
        # if drawing fails, for example on a closed stream, it stops; the computation continues
        with suppress(Exception):
            while not self.over.is_set():
                with self.lock:
                    if not self.over.is_set():
                        self.draw()
                self.over.wait(self.every)

    def draw(self) -> None:
        """Draw the line for the present state."""
        stages = list(self.stages)
        if not stages and self.bar is not None:
            return
        at = next((i for i, (stage, _) in enumerate(stages) if stage.total is not None), len(stages))
        named = [entry for i, entry in enumerate(stages) if i <= at or entry[0].total is None]
        innermost, since = named[-1] if named else (None, self.started)
        counted = innermost if innermost is not None and innermost.total is not None else None
        desc = ": ".join([self.call, *(stage.what for stage, _ in named)])
        total, done = (None, 0) if counted is None else (counted.total, counted.done)
        note = "" if counted is None else counted.note
        bar_format = WITHOUT_TOTAL if counted is None else WITH_TOTAL
        if not self.in_place:
            elapsed = time.time() - since
            line = tqdm.format_meter(
                done, total, elapsed, prefix=desc, bar_format=bar_format, ncols=100, ascii=True, postfix=note
            )
            self.stream.write(f"{line}\n")
            self.stream.flush()
            return
        if self.bar is None:
            # the delay prevents a first drawing without content
            self.bar = tqdm(
                total=total or 1, leave=False, dynamic_ncols=True, file=self.stream, bar_format=bar_format, delay=1e-9
            )
        if counted is not self.counted and _is_widget(type(self.bar)):
            self.bar.reset(total=total or 1)
        self.counted = counted
        self.bar.total, self.bar.n, self.bar.start_t, self.bar.bar_format = total or 1, done, since, bar_format
        self.bar.set_description_str(desc, refresh=False)
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.refresh()


def _is_widget(kind: type) -> bool:
    """Return whether a kind of bar is a notebook widget."""
    return kind.__module__ == "tqdm.notebook" or any(base.__module__ == "tqdm.notebook" for base in kind.__mro__)
