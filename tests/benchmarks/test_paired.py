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
    ours, other = _method([0, 1, 2], [0.5, 0.6, 0.7]), _method([2, 1], [0.6, 0.4])
    assert paired.differences(ours, other, "purity") == pytest.approx({1: 0.2, 2: 0.1})


def test_a_score_that_was_not_computed_is_left_out(paired):
    ours, other = _method([0, 1], [0.5, None]), _method([0, 1], [0.4, 0.4])
    assert paired.differences(ours, other, "purity") == pytest.approx({0: 0.1})
    assert paired.paired(ours, other, "ARI best") is None


def test_one_value_is_paired_with_every_seed_only_without_randomness(paired):
    ours = _method([0, 1], [0.5, 0.7])
    assert len(paired.differences(ours, _method([0], [0.4], deterministic=True), "purity")) == 2
    assert len(paired.differences(ours, _method([0], [0.4]), "purity")) == 1


def test_the_interval_is_that_of_students_t(paired):
    # mean 2, standard error 1 / sqrt(3), and 4.302653 the quantile with two degrees of freedom
    found = paired.of_values([1.0, 2.0, 3.0])
    assert found.value == pytest.approx(2.0)
    assert found.half == pytest.approx(4.302653 / 3**0.5, rel=1e-5)
    assert found.low == pytest.approx(2.0 - found.half)
