from __future__ import annotations

import numpy as np
import pytest
import torch

from vxpress.core.data import ByBlock
from vxpress.core.data.windows import ENTRY, stretches, window_ends

BLOCK = 10


def _cut(parts: list[np.ndarray], limit: int) -> list[int]:
    return window_ends([part // BLOCK for part in parts], [ENTRY * len(part) for part in parts], limit)


def test_windows_are_cut_where_the_cells_of_a_shuffle_end() -> None:
    # 8 blocks are shuffled together, 80 cells; minibatches of 16 cells fall together with them
    parts = [part.numpy() for part in ByBlock(torch.arange(400), 25, 0, block=BLOCK, buffer=8).epoch()]
    assert _cut(parts, ENTRY * 100) == [5, 10, 15, 20, 25]


def test_a_minibatch_across_two_shuffles_belongs_to_the_second() -> None:
    parts = [part.numpy() for part in ByBlock(torch.arange(400), 17, 0, block=BLOCK, buffer=8).epoch()]
    ends = _cut(parts, ENTRY * 110)
    of_shuffle = (np.cumsum([len(part) for part in parts]) - 1) // 80
    assert ends == [*np.flatnonzero(np.diff(of_shuffle)) + 1, 17]


def test_cells_in_order_are_cut_into_small_windows_and_random_ones_into_large_ones() -> None:
    in_order = np.array_split(np.arange(4000), 400)
    assert np.diff([0, *_cut(in_order, ENTRY * 800)]).max() == 10
    shuffled = np.array_split(np.random.default_rng(0).permutation(4000), 400)
    assert np.diff([0, *_cut(shuffled, ENTRY * 800)])[:-1].min() > 70


@pytest.mark.parametrize("limit", [1, 100, 10_000, 10**9])
def test_windows_cover_all_minibatches_and_only_single_ones_are_larger(limit: int) -> None:
    rng = np.random.default_rng(limit)
    parts = [rng.integers(0, 500, size) for size in rng.integers(1, 40, 60)]
    ends = _cut(parts, limit)
    assert ends[-1] == 60
    assert (np.diff([0, *ends]) > 0).all()
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        assert end == start + 1 or ENTRY * sum(map(len, parts[start:end])) <= limit


def test_nothing_is_cut_into_no_window() -> None:
    assert window_ends([], [], 10) == []


def test_stretches_join_rows_with_small_gaps_up_to_a_length() -> None:
    rows = np.array([0, 1, 2, 5, 20, 21, 22, 23, 24, 25])
    found = [rows[part].tolist() for part in stretches(rows, 2, 4)]
    assert found == [[0, 1, 2], [5], [20, 21, 22, 23], [24, 25]]
    assert [rows[part].tolist() for part in stretches(rows, 0, 100)] == [[0, 1, 2], [5], [20, 21, 22, 23, 24, 25]]
    assert list(stretches(rows[:0], 2, 4)) == []
