"""Frames give compiled jobs the arrays that were written to them, and nothing else."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from vxpress.core.kernels.compiling import NoCollection
from vxpress.core.kernels.frames import Frame, Layout, Plan, job

LAYOUT = Layout()
ROW: Any = LAYOUT.array("f4", 1)
TABLE: Any = LAYOUT.array("f4", 2)
CUBE: Any = LAYOUT.array("i4", 3)
FACTOR: Any = LAYOUT.number("f4")
TIMES: Any = LAYOUT.number("i8")
OTHER: Any = LAYOUT.frame()


@job
def _fill(frame, part, thread):
    """Write to one row of the table of another frame: the row of this one, scaled, plus a number of the cube."""
    row, table, cube = ROW(frame), TABLE(OTHER(frame)), CUBE(frame)
    for j in range(row.size):
        table[part, j] += FACTOR(frame) * row[j] * TIMES(frame) + cube[part, j, cube.shape[2] - 1]


@job
def _double(frame, part, thread):
    table = TABLE(frame)
    for j in range(table.shape[1]):
        table[part, j] *= 2.0


def _frames(n: int) -> tuple[Frame, Frame, np.ndarray]:
    rng = np.random.default_rng(0)
    frame, other = Frame(LAYOUT), Frame(LAYOUT)
    other[TABLE] = np.zeros((n, 5), np.float32)
    cube = rng.integers(0, 9, (n, 5, 3)).astype(np.int32)
    frame.update({ROW: np.arange(5, dtype=np.float32), CUBE: cube, FACTOR: 0.5, TIMES: 3, OTHER: other})
    return frame, other, 1.5 * np.arange(5) + cube[:, :, 2]


@pytest.mark.parametrize("n_threads", [1, 3])
def test_jobs_follow_each_other_for_every_part_and_rounds_for_all(n_threads: int) -> None:
    n = 40
    frame, other, once = _frames(n)
    Plan([([(_fill, frame), (_double, other)], n)], [([(_fill, frame)], n // 2), ([(_double, other)], 0)]).run(
        n_threads
    )
    expected = 2 * once
    expected[: n // 2] += once[: n // 2]
    np.testing.assert_array_equal(other[TABLE], expected)


def test_arrays_of_a_frame_can_be_replaced_and_stay_alive() -> None:
    frame, other, once = _frames(4)
    plan = Plan([([(_fill, frame)], 4)])
    plan.run(1)
    other[TABLE] = np.ones((4, 5), np.float32)
    frame[TIMES] = 0
    plan.run(1)
    np.testing.assert_array_equal(other[TABLE], 1 + once - 1.5 * np.arange(5))


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 3)), np.zeros(3, np.float32), np.zeros((3, 2), np.float32).T, np.zeros((4, 4), np.float32)[:, :2]],
)
def test_an_array_of_another_kind_is_refused(array: np.ndarray) -> None:
    frame = Frame(LAYOUT)
    with pytest.raises(TypeError, match="contiguous float32 array of 2 dimensions"):
        frame[TABLE] = array


@pytest.mark.parametrize("on", [True, False])
def test_the_garbage_collector_is_as_before_once_all_threads_have_compiled(on: bool) -> None:
    before = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        one = NoCollection()
        with one:
            with one:
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled() == on
    finally:
        (gc.enable if before else gc.disable)()
