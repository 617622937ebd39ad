"""The number of threads, on which no result depends.

The threads of torch divide sums, and also elementwise functions, among themselves, so the last digits depend on their
number.  Within :class:`OneThread`, torch therefore uses one.  What takes long is divided into parts that depend on
shapes alone, and several threads compute them: :mod:`vxpress.core.kernels.helpers` for compiled loops, :func:`share` for
operations of torch, :func:`in_order` for blocks of cells.  Their number follows the machine (:mod:`vxpress.core.load`),
unless somebody has decided it.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from itertools import chain, islice
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from vxpress.core import load

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# multiplications of a part of a product, and its least number of rows; smaller parts cost more than they save
PART = {torch.float32: 2**24, torch.bfloat16: 2**26}
MIN_ROWS, MAX_PARTS = 64, 16
# the most threads of a computation: no loop has more parts that are worth a thread
MOST = 64
CPU = torch.device("cpu")
# environment variable with the number of threads of every call
VARIABLE = "VXPRESS_NUM_THREADS"


class _OfThread(threading.local):
    """The number of threads that torch may use in this thread, while it uses one, and the number that was decided."""

    n: int | None = None
    decided: int | None = None


_of_thread = _OfThread()
_lock = threading.RLock()
_holders: set[object] = set()
_usual = 1
_pool: ThreadPoolExecutor | None = None


def _after_fork() -> None:
    """A forked process has one thread, and holds nothing."""
    global _of_thread, _lock, _holders, _pool
    _of_thread, _lock, _holders, _pool = _OfThread(), threading.RLock(), set(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def number() -> int:
    """Return how many threads a computation uses now.

    Within :class:`OneThread`, this is the number that was :func:`decided`, by default that of the environment. If there is
    none, it is the number of torch before the block, or that of the processors which are free now if it is lower.  Outside
    of such blocks it is ``torch.get_num_threads()``.
    """
    of_thread = _of_thread
    if of_thread.n is None:
        return torch.get_num_threads()
    if of_thread.decided is not None:
        return min(of_thread.decided, MOST)
    return 1 if of_thread.n == 1 else min(of_thread.n, load.free(), MOST)


@contextmanager
def decided(n: int | None) -> Iterator[None]:
    """Within this block, and :class:`OneThread`, computations of this thread use ``n`` threads; None changes nothing."""
    before = _of_thread.decided
    _of_thread.decided = before if n is None else n
    try:
        yield
    finally:
        _of_thread.decided = before


def in_environment() -> int | None:
    """Return the number of threads that the environment decides, None if it does not.

    Raises ``ValueError`` if it is not a whole number of at least 1.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        msg = (
            f"The environment variable {VARIABLE} is {text!r}; a whole number of at least 1 is expected, for example {VARIABLE}=2. "
            "Without it, the number of threads follows the machine."
        )
        raise ValueError(msg)
    return int(text)


class OneThread:
    """Within this block, torch uses one thread in the current thread; :func:`number` returns how many there are to share.

    torch has a number for each thread, and one for its products (MKL) and for new threads. The latter stays one until the
    last block of any thread ends.
    """

    def __init__(self) -> None:
        self.before: int | None = None
        self.decided: int | None = None

    def take(self) -> None:
        """Begin; within another block of the same thread this has no effect."""
        global _usual  # noqa: PLW0603 - one per process
        if _of_thread.n is not None:
            return
        environment = in_environment()
        with _lock:
            before = torch.get_num_threads()
            if not _holders:
                _usual = before
            elif before == 1:
                # a new thread, whose number torch has copied from that of the process
                before = _usual
            _holders.add(self)
            self.before = _of_thread.n = before
            self.decided = _of_thread.decided
            _of_thread.decided = environment if self.decided is None else self.decided
            torch.set_num_threads(1)
        if before > 1 and _of_thread.decided is None:
            load.begin()

    def release(self) -> None:
        """End; a second call has no effect."""
        if self.before is None:
            return
        with _lock:
            _of_thread.n, _of_thread.decided = None, self.decided
            _holders.discard(self)
            torch.set_num_threads(self.before)
            if _holders and self.before > 1:
                # sets the number of the process, but not that of this thread
                other = threading.Thread(target=torch.set_num_threads, args=(1,))
                other.start()
                other.join()
            self.before = None

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *error: object) -> None:
        self.release()


def same_bits(function: Callable[P, R]) -> Callable[P, R]:
    """Make the result of a function independent of the number of threads."""

    @functools.wraps(function)
    def in_one_thread(*args: P.args, **kwargs: P.kwargs) -> R:
        with OneThread():
            return function(*args, **kwargs)

    return in_one_thread


@torch.no_grad()
def share(work: Callable[[int], Any], n_parts: int, device: torch.device = CPU) -> None:
    """Call ``work`` for each part, 0 to ``n_parts - 1``; several threads take the next part until none is left.

    Parts are computed without gradients, and write to different memory. Threads that are late find less to do. On a GPU
    one thread calls all parts.
    """
    n_threads = min(number(), n_parts)
    # the mode belongs to this thread, and other threads could not write to its tensors
    if n_threads < 2 or device.type != "cpu" or torch.is_inference_mode_enabled():
        for i in range(n_parts):
            work(i)
        return
    parts = iter(range(n_parts))

    def some() -> None:
        one_thread_here()
        with torch.no_grad():
            for i in parts:
                work(i)

    with OneThread():
        waiting = [_workers().submit(copy_context().run, some) for _ in range(n_threads - 1)]
        try:
            some()
        finally:
            # after an error the other threads finish only their current parts
            for _ in parts:
                pass
            found = [None if worker.cancel() else worker.exception() for worker in waiting]
    for error in found:
        if error is not None:
            raise error


def in_order(work: Callable[[T], R], items: Iterable[T], device: torch.device = CPU) -> Generator[R, None, None]:
    """Yield ``work(item)`` for each item in order; several threads compute the results of the next items.

    Items are taken in the current thread, so they may come from a file or from a random number generator. At most as many
    as there are threads are taken ahead, which limits the memory. Results are computed without gradients; the first error
    of ``work`` is raised in the place of its result. With too few items, on a GPU and outside :class:`OneThread`, the
    current thread computes all results itself.
    """
    n_threads, rest = number(), iter(items)
    if _of_thread.n is None or n_threads < 2 or device.type != "cpu" or torch.is_inference_mode_enabled():
        yield from map(work, rest)
        return
    first = list(islice(rest, n_threads))
    if len(first) < n_threads:
        # the threads share the parts of each item instead
        yield from map(work, first)
        return
    ahead: deque[Future[R]] = deque()

    @torch.no_grad()
    def compute(item: T) -> R:
        one_thread_here()
        return work(item)

    try:
        for item in chain(first, rest):
            # with the settings of numpy of this thread
            ahead.append(_workers().submit(copy_context().run, compute, item))
            while len(ahead) >= number():
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        # after an error or an interrupt, only the results that are being computed are finished
        wait([one for one in ahead if not one.cancel()])


def one_thread_here() -> None:
    """Make torch use one thread in this thread, if it helps one that is within :class:`OneThread`.

    A new thread copies the number of the process, which is one, but only when it asks torch for it. Products of small
    matrices do not, and start as many threads of OpenMP as there are processors.
    """
    if torch.get_num_threads() != 1 and _holders:
        torch.set_num_threads(1)


def _workers() -> ThreadPoolExecutor:
    """Return the threads that help; they wait without using a processor."""
    global _pool  # noqa: PLW0603 - one per process
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(MOST, thread_name_prefix="vxpress", initializer=load.count_this_thread)
        return _pool


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Compute ``a @ b`` without gradients, in parts of rows of ``a`` that several threads compute."""
    n, size = len(a), a.shape[0] * a.shape[1] * b.shape[1]
    out = torch.empty(n, b.shape[1], dtype=a.dtype, device=a.device) if out is None else out
    n_parts = max(1, min(MAX_PARTS, size // PART.get(a.dtype, PART[torch.float32]), n // MIN_ROWS))
    if n_parts == 1 or a.device.type != "cpu":
        with torch.no_grad():
            return torch.mm(a, b, out=out)
    edges = [n * i // n_parts for i in range(n_parts + 1)]

    def multiply(i: int) -> None:
        part = slice(edges[i], edges[i + 1])
        torch.mm(a[part], b, out=out[part])

    share(multiply, n_parts)
    return out
