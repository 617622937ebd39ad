"""Threads that share the parts of a call."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
import weakref
from queue import SimpleQueue

import numpy as np
import pytest
from numba import njit

from vxpress.core import threads
from vxpress.core.kernels import helpers, parts
from vxpress.core.kernels.parts import finish, meet, take


@njit(nogil=True)
def _sums(board, x, partial, total):
    """Sum rows in one round; in the next one, take the differences of the sums from their mean."""
    part = take(board, 0)
    while part < len(x):
        partial[part] = x[part].sum()
        finish(board, 0)
        part = take(board, 0)
    meet(board, 0, len(x))
    part = take(board, 1)
    while part < len(x):
        total[part] = partial[part] - partial.mean()
        finish(board, 1)
        part = take(board, 1)
    meet(board, 1, len(x))


@njit(nogil=True)
def _take_one(board):
    return take(board, 0)


@njit(nogil=True)
def _wait(board):
    meet(board, 0, 1)


@njit(nogil=True)
def _finish_one(board):
    finish(board, 0)


def _shared(n_threads: int, n: int = 50) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(n, 400))
    out = np.full(n, np.nan)
    helpers.run(n_threads, _sums, 2, x, np.full(n, np.nan), out)
    return out


@pytest.mark.parametrize("n_threads", [2, 4, 40])
def test_every_part_is_done_before_the_next_round(n_threads: int) -> None:
    expected = _shared(1)
    assert np.isfinite(expected).all()
    for _ in range(50):
        np.testing.assert_array_equal(_shared(n_threads), expected)


def test_calls_of_several_threads_do_not_mix() -> None:
    expected = _shared(1)
    found: list[np.ndarray] = []

    def work() -> None:
        found.extend(_shared(3) for _ in range(30))

    working = [threading.Thread(target=work) for _ in range(3)]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join(60)
    assert len(found) == 90
    for out in found:
        np.testing.assert_array_equal(out, expected)


def test_an_error_of_a_helping_thread_is_raised() -> None:
    here = threading.current_thread()

    def fail_elsewhere(board: np.ndarray) -> None:
        if threading.current_thread() is not here:
            _take_one(board)
            msg = "no memory"
            raise MemoryError(msg)
        while not board.any():
            pass
        _wait(board)

    with pytest.raises(MemoryError, match="no memory"):
        helpers.run(2, fail_elsewhere, 1)
    np.testing.assert_array_equal(_shared(2), _shared(1))


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (3, 3), (40, helpers.MOST)])
def test_memory_is_taken_for_no_more_threads_than_a_call_has(n: int, expected: int) -> None:
    with threads.decided(n), threads.OneThread():
        assert helpers.number() == expected


@pytest.mark.parametrize("n_before", [0, 1])
def test_an_interrupt_while_threads_are_called_leaves_no_part_undone(
    monkeypatch: pytest.MonkeyPatch, n_before: int
) -> None:
    x, out = np.random.default_rng(0).normal(size=(50, 400)), np.full(50, np.nan)
    expected = _shared(3)

    class Interrupted(SimpleQueue):
        def put(self, item: helpers._Call, block: bool = True, timeout: float | None = None) -> None:
            super().put(item)
            raise KeyboardInterrupt

    class Helper:
        calls = Interrupted()

    monkeypatch.setattr(helpers, "_helpers", [*helpers._helpers[:n_before], Helper()])
    with pytest.raises(KeyboardInterrupt):
        helpers.run(n_before + 2, _sums, 2, x, np.full(50, np.nan), out)
    np.testing.assert_array_equal(out, expected)
    # a thread that comes late has nothing left to do
    out[:] = np.nan
    Helper.calls.get().help()
    assert np.isnan(out).all()


def test_threads_do_not_go_on_with_a_call_that_failed_here() -> None:
    here, started, done = threading.current_thread(), threading.Event(), threading.Event()
    taken: list[int] = []

    def fail_here(board: np.ndarray) -> None:
        if threading.current_thread() is here:
            raise KeyboardInterrupt
        started.wait(10)
        taken.append(_take_one(board))
        done.set()

    with pytest.raises(KeyboardInterrupt):
        helpers.run(2, fail_here, 1)
    started.set()
    assert done.wait(10)
    assert taken[0] >= parts.OVER


def test_a_plan_that_is_gone_keeps_its_frames_for_threads_that_are_late() -> None:
    class Memory:
        pass

    memory, go = Memory(), threading.Event()
    alive, here = weakref.ref(memory), threading.current_thread()

    def wait_elsewhere(board: np.ndarray) -> None:
        if threading.current_thread() is not here:
            go.wait(10)

    helpers.run(2, wait_elsewhere, 1, kept=memory)
    del memory
    assert alive() is not None
    go.set()
    deadline = time.monotonic() + 10
    while alive() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive() is None


@pytest.mark.skipif(sys.platform == "win32", reason="a thread cannot sleep for so short a time")
def test_a_thread_that_waits_long_sleeps() -> None:
    spent: list[float] = []
    board = parts.board(1)
    _wait(parts.board(1) + 1)

    def wait() -> None:
        start = time.thread_time()
        _wait(board)
        spent.append(time.thread_time() - start)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.3)
    _finish_one(board)
    waiting.join()
    assert spent[0] < 0.15


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_starts_threads_of_its_own() -> None:
    expected = _shared(2)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply_async(_shared, (2,)).get(60), expected)
