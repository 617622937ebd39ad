"""P-values of labels are uniform for the right label, within every label that has enough held-out cells."""

from __future__ import annotations

import numpy as np
import pytest

from vxpress.core.annotation.sets import fewest, grouped_ranks, label_p_values, ranks, strata


def _predictions(n: int, share: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels, and log probabilities that favour the right one, more so for the first labels."""
    rng = np.random.default_rng(seed)
    code = rng.choice(len(share), n, p=share)
    logits = rng.normal(size=(n, len(share)))
    logits[np.arange(n), code] += 2.0 - 0.5 * code
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), code


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_sets_hold_the_right_label_with_the_nominal_rate_for_each_label(alpha: float) -> None:
    share = np.array([0.5, 0.3, 0.2])
    covered = np.zeros((20, 3))
    for seed in range(20):
        known, code_m = _predictions(300, share, seed)
        new, code_n = _predictions(2_000, share, 100 + seed)
        p = label_p_values(new, known, code_m, alpha, np.random.default_rng(seed))
        inside = p[np.arange(len(code_n)), code_n] > alpha
        covered[seed] = [inside[code_n == c].mean() for c in range(3)]
    np.testing.assert_allclose(covered.mean(0), 1 - alpha, atol=0.02)


def test_rare_labels_are_compared_with_one_another_or_with_all() -> None:
    assert fewest(0.05) == 19
    assert fewest(0.1) == 9
    code = np.repeat([0, 1, 2, 3], [40, 12, 10, 0])
    rows = strata(code, 4, 0.05)
    np.testing.assert_array_equal(rows[0], code == 0)
    for label in (1, 2, 3):
        np.testing.assert_array_equal(rows[label], (code == 1) | (code == 2))
    few = strata(code[:45], 4, 0.05)
    assert few[1].all()


def test_ranks_break_ties_over_the_whole_range() -> None:
    p = ranks(np.zeros(4_000), np.zeros(9), np.random.default_rng(0))
    assert p.min() < 0.01
    assert p.max() > 0.99
    assert ranks(np.array([-1.0]), np.arange(99.0), np.random.default_rng(0))[0] < 0.01


def test_values_are_ranked_within_their_group_if_it_is_large_enough() -> None:
    among, group = np.r_[np.arange(20.0), 100 + np.arange(3.0)], np.repeat([0, 1], [20, 3])
    p = grouped_ranks(
        np.array([10.0, 100.5]), np.array([0, 1]), among, group, smallest=5, draw=lambda n: np.full(n, 0.5)
    )
    np.testing.assert_allclose(p, [(10 + 0.5 * 2) / 21, (21 + 0.5) / 24])
