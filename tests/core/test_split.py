from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vxpress.core.split import split_cells


@pytest.mark.parametrize(
    ("n", "fraction", "n_validation"), [(100, 0.1, 10), (5, 0.1, 1), (101, 0.25, 25), (50, 0.0, 0)]
)
def test_the_split_is_a_partition(n: int, fraction: float, n_validation: int) -> None:
    train_rows, validation_rows = split_cells(n, fraction, np.random.default_rng(0))
    assert len(validation_rows) == n_validation
    np.testing.assert_array_equal(np.sort(np.concatenate((train_rows, validation_rows))), np.arange(n))
    assert (np.diff(train_rows) > 0).all()
    assert (np.diff(validation_rows) > 0).all()


def test_the_split_depends_on_its_generator_and_all_cells_are_equally_likely() -> None:
    splits = [split_cells(20, 0.25, np.random.default_rng(seed))[1] for seed in range(2000)]
    np.testing.assert_array_equal(splits[3], split_cells(20, 0.25, np.random.default_rng(3))[1])
    counts = np.bincount(np.concatenate(splits), minlength=20)
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_split_keeps_a_training_cell(n: int) -> None:
    for fraction in (0.1, 0.5, 0.9):
        assert len(split_cells(n, fraction, np.random.default_rng(0))[0]) >= 1


# by category

SIZES = (300, 140, 57, 30, 9, 4, 1, 1)


def _codes(sizes: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))[:, None]


@pytest.mark.parametrize("seed", range(5))
def test_every_batch_has_its_share_and_rare_ones_are_only_trained_on(seed: int) -> None:
    codes = _codes(SIZES)
    n = len(codes)
    train, held_out = split_cells(n, 0.1, np.random.default_rng(seed), codes)
    assert len(held_out) == round(0.1 * n)
    found = np.bincount(codes[held_out, 0], minlength=len(SIZES))
    assert (found[4:] == 0).all()
    # one cell of each batch is always kept for training
    common = np.array(SIZES[:4]) - 1
    assert (np.abs(found[:4] - len(held_out) * common / common.sum()) < 1).all()
    np.testing.assert_array_equal(np.sort(np.concatenate((train, held_out))), np.arange(n))


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("n_categories", [(3,), (40,), (2, 60), (1, 5, 7), (150, 150)])
def test_every_category_keeps_a_training_cell(fraction: float, n_categories: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(n_categories))
    codes = np.stack([(rng.random(200) ** 2 * n).astype(np.int64) for n in n_categories], axis=1)
    train, held_out = split_cells(200, fraction, rng, codes)
    assert 1 <= len(held_out) <= round(fraction * 200)
    for code_n in codes.T:
        np.testing.assert_array_equal(np.unique(code_n[train]), np.unique(code_n))


def test_categories_within_a_batch_have_their_share_too() -> None:
    batch, donor = np.repeat([0, 1], [400, 600]), np.tile(np.arange(4), 250)
    codes = np.stack((batch, donor), axis=1)
    _, held_out = split_cells(1000, 0.1, np.random.default_rng(0), codes)
    found = np.bincount(4 * batch[held_out] + donor[held_out], minlength=8)
    assert (np.abs(found - np.repeat([10, 15], 4)) <= 1).all()


def test_mostly_rare_categories_do_not_use_up_the_common_one() -> None:
    codes = np.concatenate((np.zeros(100, np.int64), 1 + np.arange(900) // 5))[:, None]
    _, held_out = split_cells(1000, 0.1, np.random.default_rng(0), codes)
    assert len(held_out) == 100
    assert (codes[held_out, 0] == 0).sum() < 20


def test_cells_that_each_have_their_own_category_are_still_split() -> None:
    train, held_out = split_cells(20, 0.1, np.random.default_rng(0), np.arange(20)[:, None])
    assert (len(train), len(held_out)) == (18, 2)


def test_a_seed_means_the_same_split_and_no_common_cell_is_favoured() -> None:
    codes = _codes((14, 26, 3))
    splits = [split_cells(43, 0.2, np.random.default_rng(seed), codes)[1] for seed in range(3000)]
    np.testing.assert_array_equal(splits[5], split_cells(43, 0.2, np.random.default_rng(5), codes)[1])
    counts = np.bincount(np.concatenate(splits), minlength=43)
    assert (counts[codes[:, 0] == 2] == 0).all()
    for category in (0, 1):
        assert stats.chisquare(counts[codes[:, 0] == category]).pvalue > 1e-4


def test_without_categories_the_split_is_the_plain_one() -> None:
    plain, empty = (
        split_cells(50, 0.2, np.random.default_rng(1), codes) for codes in (None, np.zeros((50, 0), np.int64))
    )
    np.testing.assert_array_equal(plain[1], empty[1])
