"""Cells far from all labels, or in a group without labelled cells, are unusual; labelled cells are judged by the others."""

from __future__ import annotations

import numpy as np
import pytest

from vxpress.core.annotation.novelty import Labelled, as_in_labelled, novelty


def _groups(centres: list[list[float]], n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([np.array(centre) + rng.normal(size=(n, 2)) for centre in centres])


def _labelled(seed: int = 0) -> Labelled:
    z = _groups([[-6, 0], [6, 0]], 60, seed)
    return Labelled(z, np.repeat([0, 1], 60), np.arange(120) % 5, np.zeros(120, dtype=np.int64), np.repeat([0, 1], 60))


def test_a_group_between_the_labels_is_found_although_it_is_not_far_out() -> None:
    z = _groups([[-6, 0], [6, 0], [0, 0]], 60, 1)
    score_n, score_m = novelty(z, (z[:, 0] > 0).astype(int), _labelled())
    assert np.median(score_n[120:]) > np.quantile(score_m, 0.95)
    # known cells have the scores of labelled ones
    assert abs(np.median(score_n[:120]) - np.median(score_m)) < 0.5


def test_with_many_cells_neighbors_are_searched_in_a_part_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    z = _groups([[-6, 0], [6, 0], [0, 0]], 200, 1)
    best = (z[:, 0] > 0).astype(int)
    whole, _ = novelty(z, best, _labelled())
    monkeypatch.setattr("vxpress.core.annotation.novelty.MAX_CONTEXT", 200)
    part, _ = novelty(z, best, _labelled())
    assert np.corrcoef(whole, part)[0, 1] > 0.95


def test_one_cell_can_be_judged() -> None:
    score_n, _ = novelty(np.array([[0.0, 30.0]]), np.array([1]), _labelled())
    near_n, score_m = novelty(np.array([[-6.0, 0.0]]), np.array([0]), _labelled())
    assert score_n[0] > score_m.max()
    assert near_n[0] < np.quantile(score_m, 0.9)


def test_a_shift_of_a_whole_batch_without_labels_is_no_novelty() -> None:
    rng = np.random.default_rng(0)
    known, shifted = rng.normal(size=400), 3.0 + rng.normal(size=400)
    shifted[:20] = 9.0
    score, batch = np.r_[known, shifted], np.repeat([0, 1], 400)
    out = as_in_labelled(score, batch, known, np.zeros(400, dtype=np.int64))
    np.testing.assert_array_equal(out[:400], known)
    assert abs(np.median(out[420:])) < 0.15
    assert out[400:420].min() > 4.0
    # a few cells say nothing about their batch
    few = as_in_labelled(shifted[:10], np.ones(10, dtype=np.int64), known, np.zeros(400, dtype=np.int64))
    np.testing.assert_array_equal(few, shifted[:10])
