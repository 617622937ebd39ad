"""Stages of a computation, as reported to a watcher."""

from __future__ import annotations

import threading

import pytest

from vxpress.core.progress import Stage, parts, stage, steps, watched


class Log:
    """Records the stages."""

    def __init__(self) -> None:
        self.open: list[Stage] = []
        self.seen: list[Stage] = []

    def begin(self, stage: Stage) -> None:
        self.open.append(stage)
        self.seen.append(stage)

    def end(self, stage: Stage) -> None:
        self.open.remove(stage)


def test_steps_count_finished_items_and_end_with_the_last():
    log = Log()
    with watched(log):
        done = [log.open[0].done for _ in steps(range(3), "counting")]
    assert done == [0, 1, 2]
    assert [(s.what, s.total, s.done) for s in log.seen] == [("counting", 3, 3)]
    assert log.open == []


def test_a_stage_ends_if_its_loop_ends_early_or_fails():
    log = Log()
    with watched(log):
        for i in steps(range(3), "left"):
            if i:
                break
        assert log.open == []
        with pytest.raises(ZeroDivisionError):
            max(1 / i for i in steps([0], "failed"))
        assert log.open == []
        with pytest.raises(KeyboardInterrupt), stage("interrupted"):
            raise KeyboardInterrupt
    assert log.open == []


def test_a_generator_without_length_has_no_total_and_parts_count_their_own_steps():
    log = Log()
    with watched(log):
        assert list(steps(iter("ab"), "reading")) == ["a", "b"]
        for size, now in parts([2, 3], "cells", 5):
            now.done += size
    assert [(s.what, s.total, s.done) for s in log.seen] == [("reading", None, 2), ("cells", 5, 5)]


def test_a_watcher_sees_only_its_block_and_thread():
    log = Log()
    with watched(log):
        thread = threading.Thread(target=lambda: list(steps(range(2), "elsewhere")))
        thread.start()
        thread.join()
        with watched(None):
            list(steps(range(2), "hidden"))
    list(steps(range(2), "outside"))
    assert log.seen == []


def test_compilation_is_a_stage():
    numba = pytest.importorskip("numba")
    from vxpress.core.kernels import team  # noqa: F401 - its import registers a listener with numba

    @numba.njit
    def inner(x):
        return x + 1

    @numba.njit
    def outer(x):
        return inner(x) * 2

    log = Log()
    with watched(log):
        assert outer(1) == 4
        assert outer(2) == 6
    assert [s.what for s in log.seen] == ["compiling"]
    assert log.open == []
    # a function of a module of this package
    inner.py_func.__module__ = outer.py_func.__module__ = "vxpress.core.kernels.some"
    with watched(log):
        assert outer(1.0) == 4.0
    assert [s.what for s in log.seen] == ["compiling", "compiling, once per installation"]
