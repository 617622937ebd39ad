"""Differences between methods are paired by seed."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not (BENCHMARKS / "_paired.py").exists():
    pytest.skip("benchmarks are part of the repository, not of the package", allow_module_level=True)


@pytest.fixture(scope="module")
def paired():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield import_module("_paired")
    finally:
        sys.path.remove(str(BENCHMARKS))


def _method(seeds, values, *, deterministic=False):
    return {"seeds": seeds, "deterministic": deterministic, "scores": {"purity": values}}


def test_seeds_are_matched_by_number(paired):
    found = paired.paired(_method([0, 1], [0.5, 0.7]), _method([1, 0], [0.6, 0.4]), "purity")
    # both differences are 0.1, so the interval has no width
    assert found.value == pytest.approx(0.1)
    assert found.half == pytest.approx(0.0, abs=1e-9)


def test_a_score_that_was_not_computed_is_left_out(paired):
    ours, other = _method([0, 1], [0.5, None]), _method([0, 1], [0.4, 0.4])
    assert paired.by_seed(ours, "purity") == {0: 0.5}
    assert paired.paired(ours, other, "purity").value == pytest.approx(0.1)
    assert paired.paired(ours, other, "ARI best") is None


def test_one_value_is_paired_with_every_seed_only_without_randomness(paired):
    ours = _method([0, 1], [0.5, 0.7])
    assert paired.paired(ours, _method([0], [0.4], deterministic=True), "purity").value == pytest.approx(0.2)
    single = paired.paired(ours, _method([0], [0.4]), "purity")
    assert single.value == pytest.approx(0.1)
    assert single.n == 1


def test_fewer_seeds_of_the_other_method_give_the_interval_of_two_samples(paired):
    from scipy import stats

    a, b = [0.5, 0.7, 0.6, 0.65], [0.4, 0.5]
    found = paired.paired(_method([0, 1, 2, 3], a), _method([0, 1], b), "purity")
    expected = stats.ttest_ind(a, b).confidence_interval(0.95)
    assert found.low == pytest.approx(expected.low)
    assert found.value + found.half == pytest.approx(expected.high)


def test_the_mean_over_data_sets_uses_seeds_that_all_have(paired):
    pairs = [
        (_method([0, 1], [0.5, 0.7]), _method([0], [0.4], deterministic=True)),
        (_method([0, 1, 2], [0.1, 0.3, 9.0]), _method([0], [0.0], deterministic=True)),
    ]
    found = paired.averaged(pairs, ["purity", "purity"])
    assert found.value == pytest.approx(0.2)
    assert found.n == 2


def test_the_interval_is_that_of_students_t(paired):
    # mean 2, standard error 1 / sqrt(3), and 4.302653 the quantile with two degrees of freedom
    found = paired.of_values([1.0, 2.0, 3.0])
    assert found.value == pytest.approx(2.0)
    assert found.half == pytest.approx(4.302653 / 3**0.5, rel=1e-5)
    assert found.low == pytest.approx(2.0 - found.half)
