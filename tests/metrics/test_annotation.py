"""The calibration error is that of its definition."""

from __future__ import annotations

import numpy as np
import pytest

import vxpress as vx


def test_it_is_the_distance_between_confidence_and_accuracy() -> None:
    prob = np.tile([0.8, 0.2], (10, 1))
    right = np.r_[np.zeros(6, dtype=int), np.ones(4, dtype=int)]
    assert vx.metrics.expected_calibration_error(prob, right) == pytest.approx(0.2)
    # two bins, one right as often as it says
    both = np.concatenate([prob, np.tile([0.5, 0.5], (10, 1))])
    assert vx.metrics.expected_calibration_error(both, np.r_[right, np.arange(10) % 2]) == pytest.approx(0.1)


def test_calibrated_predictions_have_almost_none() -> None:
    rng = np.random.default_rng(0)
    prob = rng.dirichlet(np.ones(4), size=20_000)
    labels = (prob.cumsum(1) > rng.random((20_000, 1))).argmax(1)
    assert vx.metrics.expected_calibration_error(prob, labels) < 0.02


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="whole number for each cell"):
        vx.metrics.expected_calibration_error(np.ones((3, 2)) / 2, np.array([0, 1]))
