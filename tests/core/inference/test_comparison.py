"""Differences of held-out likelihoods: intervals have their coverage, and small differences stay undecided."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vxpress.core.inference.comparison import Scores, difference, ranking, verdict


def scores(
    rng: np.random.Generator, mean: float, *, n_fits: int, n: int, seed_sd: float, cells_n: np.ndarray
) -> Scores:
    """Simulate fits whose seeds shift all cells, on cells that are easy or hard for every model."""
    many = mean + cells_n + seed_sd * rng.normal(size=(n_fits, 1)) + rng.normal(size=(n_fits, n))
    return Scores(many, many - 0.01)


@pytest.mark.parametrize(("n_a", "n_b", "seed_sd"), [(1, 1, 0.0), (3, 3, 0.2), (5, 2, 0.1), (4, 4, 0.0)])
def test_the_interval_covers_variation_between_seeds_and_cells(n_a: int, n_b: int, seed_sd: float) -> None:
    rng, n, truth, hits, runs = np.random.default_rng(0), 200, 0.3, 0, 1500
    for _ in range(runs):
        cells_n = 50 * rng.normal(size=n)
        a = scores(rng, truth, n_fits=n_a, n=n, seed_sd=seed_sd, cells_n=cells_n)
        b = scores(rng, 0.0, n_fits=n_b, n=n, seed_sd=seed_sd, cells_n=cells_n)
        found = difference(a, b)
        hits += found.low <= truth <= found.high
    # at least the nominal coverage, within the noise of the runs, and not much more if only cells vary
    assert hits / runs > 0.95 - 3 * np.sqrt(0.95 * 0.05 / runs)
    assert hits / runs < (0.97 if n_a == 1 else 1)


def test_one_fit_each_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 300)) + rng.normal(size=300) * 10
    found = difference(Scores(a[None], a[None]), Scores(b[None], b[None]))
    expected = stats.ttest_rel(a, b).confidence_interval()
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-9)
    back = difference(Scores(b[None], b[None]), Scores(a[None], a[None]))
    np.testing.assert_allclose([back.estimate, back.low, back.high], [-found.estimate, -found.high, -found.low])


def test_seeds_alone_are_welchs_t_test() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(5, 1)), 3 * rng.normal(size=(3, 1))
    found = difference(*(Scores(np.repeat(x, 10, 1), np.repeat(x, 10, 1)) for x in (a, b)))
    expected = stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False).confidence_interval()
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-9)


def test_differences_below_the_gap_of_the_bounds_are_undecided() -> None:
    rng = np.random.default_rng(3)
    base_n = rng.normal(size=(1, 400))
    tight, loose = Scores(base_n, base_n - 0.1), Scores(base_n - 1, base_n - 3)
    assert difference(tight, loose).low > 0
    assert verdict(difference(loose, tight)) == "undecided"
    better = Scores(base_n - 1, base_n - 1.5)
    assert verdict(difference(better, tight)) == "worse"
    assert verdict(None) == "best"
    noisy = Scores(base_n - 1 + 100 * rng.normal(size=(1, 400)), base_n)
    assert verdict(difference(noisy, tight)) == "undecided"


def test_equal_scores_single_cells_and_infinite_scores_are_undecided() -> None:
    values = np.array([[1.0, 2.0, 3.0]])
    same = Scores(values, values)
    found = difference(same, same)
    assert (found.estimate, found.low, found.high, found.decided) == (0, 0, 0, False)
    one = difference(Scores(values[:, :1], values[:, :1]), Scores(values[:, 1:2], values[:, 1:2]))
    assert np.isinf([one.low, one.high]).all()
    assert not one.decided
    with np.errstate(invalid="ignore"):
        lost = Scores(np.array([[1.0, -np.inf, 3.0]]), values)
        assert ranking([lost, same]) == [1, 0]
        assert not difference(lost, same).decided
