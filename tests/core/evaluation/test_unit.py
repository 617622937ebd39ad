"""Scores of one unit: no spurious agreement through shared controls, ceilings, and halves of cells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

from vxpress.core.evaluation.blocks import Sums, deal, halves, resamples
from vxpress.core.evaluation.inputs import Cells, Change, Settings
from vxpress.core.evaluation.intervals import mean_over, over_cells, over_groups, standard_error, verdict
from vxpress.core.evaluation.measures import MEASURES, goodness, spearman_brown
from vxpress.core.evaluation.unit import Scored, score_unit

SMALL = Settings((10,), 20, 4, 4, 100, shared_controls=False)


def _cells(rng: np.random.Generator, n: int, mean_g: np.ndarray) -> sparse.csr_matrix:
    spread_g = np.resize([0.5, 1.5, 1.0, 0.7], len(mean_g))
    return sparse.csr_matrix(rng.normal(mean_g, spread_g, size=(n, len(mean_g))))


def _value(scored: Scored, name: str, measure: str, genes: str = "all") -> float:
    return float(scored.scores[name][genes, measure][0])


def test_blocks_have_equal_size_and_halves_are_halves_of_blocks() -> None:
    rng = np.random.default_rng(0)
    assert np.bincount(deal(82, rng)).tolist() == [11, 11, 10, 10, 10, 10, 10, 10]
    assert len(np.unique(deal(5, rng))) == 4
    ways = halves(8, 100, rng)
    assert len(ways) == 35
    assert (ways.sum(1) == 4).all()
    assert len(np.unique(np.concatenate([ways, ~ways]), axis=0)) == 70
    assert halves(2, 10, rng).tolist() == [[True, False]]


def test_sums_of_blocks_are_those_of_the_weighted_cells() -> None:
    rng = np.random.default_rng(1)
    x = sparse.random(30, 7, 0.4, format="csr", random_state=1)
    block, weight = deal(30, rng), resamples(30, 5, rng)
    sums, half = Sums.of(x, block, 8, weight), halves(8, 1, rng)[0]
    np.testing.assert_allclose(sums.mean(), (weight @ x) / weight.sum(1)[:, None])
    w = weight * half[block]
    np.testing.assert_allclose(sums.mean(half), (w @ x) / w.sum(1)[:, None])
    assert (weight[0] == 1).all()
    assert (weight.sum(1) == 30).all()


def test_shared_controls_correlate_an_unrelated_prediction_with_the_change_and_split_ones_do_not() -> None:
    rng = np.random.default_rng(2)
    base = np.full(300, 3.0)
    found: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(12):
        observed, control = _cells(rng, 200, base), _cells(rng, 24, base)
        # predicts the same cells whatever the controls are, and there is no change at all
        prediction = Cells("p", _cells(rng, 200, base), np.repeat(np.arange(24), 9)[:200])
        for shared, values in found.items():
            settings = Settings((10,), 2, 4, 2, 30, shared_controls=shared)
            values.append(
                _value(score_unit(observed, control, [prediction], settings, rng, rng), "p", "pearson_change")
            )
    assert np.mean(found[True]) > 0.7
    assert abs(np.mean(found[False])) < 0.1


def test_predicted_cells_that_are_moved_controls_score_as_their_change() -> None:
    rng = np.random.default_rng(3)
    change = np.where(rng.random(80) < 0.3, rng.normal(0, 0.5, 80), 0.0)
    observed, control = _cells(rng, 60, 3 + change), _cells(rng, 50, np.full(80, 3.0))
    moved = sparse.csr_matrix(control.toarray() + change)
    twice = np.repeat(np.arange(50), 2)
    scored = score_unit(
        observed,
        control,
        [
            Change("change", change),
            Cells("all", moved, np.arange(50)),
            Cells("shuffled", moved[::-1], np.arange(50)[::-1]),
            Cells("twice", moved[twice], twice),
            Cells("some", moved[:30], np.arange(30)),
        ],
        SMALL,
        rng,
        rng,
    )
    for measure in ("pearson_change", "weighted_r2_change", "slope_change"):
        for name in ("all", "shuffled", "twice", "some"):
            np.testing.assert_allclose(scored.scores[name]["all", measure], scored.scores["change"]["all", measure])
    for measure in ("r2_mean", "r2_sd", "energy_distance", "mmd"):
        for name in ("all", "shuffled"):
            np.testing.assert_allclose(
                scored.scores[name]["all", measure], scored.scores["change"]["all", measure], rtol=1e-6, atol=1e-9
            )


def test_the_ceiling_is_the_score_of_a_repeated_experiment() -> None:
    rng = np.random.default_rng(4)
    change = np.where(rng.random(200) < 0.2, rng.normal(0, 0.6, 200), 0.0)
    base = np.full(200, 3.0)
    names = [(g, m) for g in ("all", "top10") for m in MEASURES if m != "rank"]
    ceiling: dict[tuple[str, str], list[float]] = {}
    repeated: dict[tuple[str, str], list[float]] = {}
    for _ in range(12):
        observed, control = _cells(rng, 64, base + change), _cells(rng, 64, base)
        again = Cells("again", _cells(rng, 64, base + change))
        scored = score_unit(observed, control, [again], SMALL, rng, rng)
        for key in names:
            if key in scored.ceiling:
                ceiling.setdefault(key, []).append(scored.ceiling[key])
                repeated.setdefault(key, []).append(scored.scores["again"][key][0])
    assert len(ceiling) > 20
    for key, values in ceiling.items():
        # ten genes of two lists have few standard deviations to agree on
        scale = {"deg_overlap": 0.12, "r2_sd": 0.2}.get(key[1], 0.06)
        assert np.mean(values) == pytest.approx(np.mean(repeated[key]), abs=scale), key


def test_without_any_change_the_ceiling_of_the_correlation_is_near_zero() -> None:
    rng = np.random.default_rng(5)
    base = np.full(200, 3.0)
    found = [
        score_unit(_cells(rng, 60, base), _cells(rng, 60, base), [Change("c", base)], SMALL, rng, rng).ceiling
        for _ in range(10)
    ]
    for genes in ("all", "top10"):
        assert abs(np.mean([ceiling[genes, "pearson_change"] for ceiling in found])) < 0.15


def test_the_difference_of_two_predictions_is_covered_by_its_interval() -> None:
    rng = np.random.default_rng(6)
    change, base = rng.normal(0, 0.3, 40), np.full(40, 3.0)
    predictions = [Change("good", 0.8 * change), Change("poor", 0.3 * change)]
    settings = Settings((10,), 60, 3, 2, 10, shared_controls=False)
    gains, errors = [], []
    for _ in range(60):
        scored = score_unit(_cells(rng, 40, base + change), _cells(rng, 40, base), predictions, settings, rng, rng)
        gain = np.subtract(*(scored.scores[name]["all", "r2_change"] for name in ("good", "poor")))
        gains.append(gain[0])
        errors.append(standard_error(gain[1:], 40))
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.25)


def test_genes_without_any_value_and_few_cells_give_finite_scores() -> None:
    rng = np.random.default_rng(7)
    empty = np.zeros((10, 5))
    observed = sparse.csr_matrix(np.concatenate([rng.normal(3, 1, (10, 20)), empty], 1))
    control = sparse.csr_matrix(np.concatenate([rng.normal(2, 1, (10, 20)), empty], 1))
    scored = score_unit(
        observed, control, [Change("c", np.ones(25))], Settings((50,), 20, 4, 4, 100, shared_controls=False), rng, rng
    )
    assert np.isfinite(_value(scored, "c", "weighted_r2_change"))
    assert _value(scored, "c", "deg_overlap", "top50") == pytest.approx(20 / 25)


def test_goodness_orders_scores_from_worse_to_better() -> None:
    assert goodness("r2_change", np.array([0.1, 0.9])).argmax() == 1
    assert goodness("mmd", np.array([0.1, 0.9])).argmax() == 0
    assert goodness("slope_change", np.array([0.4, 1.1, 1.8])).argmax() == 1


def test_spearman_brown_keeps_chance_and_certainty() -> None:
    np.testing.assert_allclose(spearman_brown(np.array([0.0, 0.5, 1.0, -0.2])), [0.0, 2 / 3, 1.0, -0.2])
    np.testing.assert_allclose(spearman_brown(np.array([0.5, 0.75, 1.0]), 0.5), [0.5, 0.5 + 0.5 * 2 / 3, 1.0])


def test_the_mean_over_groups_varies_as_groups_do_and_at_least_as_cells_do() -> None:
    value = np.array([0.2, 0.5, 0.8, np.nan])
    expected = stats.t.interval(0.95, 2, loc=0.5, scale=0.3 / np.sqrt(3))
    assert over_groups(value, 0.01, 50, 0.95) == pytest.approx((0.5, *expected))
    assert over_groups(np.full(3, 0.5), 0.3, 50, 0.95)[1] < 0.0
    one = over_cells(np.array([0.5, 0.5]), 0.1, 30, 0.95)
    assert one == pytest.approx((0.5, *stats.t.interval(0.95, 30, loc=0.5, scale=0.1)))
    assert over_groups(np.array([0.5]), 0.1, 30, 0.95) == pytest.approx(one)
    assert [verdict(0.1, 0.2), verdict(-0.1, 0.2), verdict(-0.2, -0.1), verdict(np.nan, np.nan)] == [
        "better",
        "undecided",
        "worse",
        "undecided",
    ]


def test_no_prediction_is_found_better_than_none_where_nothing_changes() -> None:
    """Genes chosen by their noise would favour whatever has the sign of the noise, were they scored on the same cells."""
    rng = np.random.default_rng(8)
    settings = Settings((10,), 30, 2, 2, 10, shared_controls=False)
    keys = [("all", "weighted_r2_change"), ("top10", "r2_change"), ("all", "pearson_change")]
    wrong = {(key, how): 0 for key in keys for how in ("same cells", "other cells")}
    n = 60
    for _ in range(n):
        base = np.full(120, 3.0)
        predictions = [Change("small", rng.normal(0, 0.02, 120)), Change("none", rng.normal(0, 1e-6, 120))]
        scored = score_unit(_cells(rng, 40, base), _cells(rng, 40, base), predictions, settings, rng, rng)
        for key in keys:
            for how, scores in (("same cells", scored.scores), ("other cells", scored.comparable)):
                gain = np.subtract(*(scores[name][key] for name in ("small", "none")))
                wrong[key, how] += bool(gain[0] > 1.96 * standard_error(gain[1:], 40))
    assert all(wrong[key, "other cells"] <= 5 for key in keys)
    assert wrong[keys[1], "same cells"] > 10


def test_the_error_of_a_mean_is_that_of_independent_groups_and_larger_if_they_share_resamples() -> None:
    rng = np.random.default_rng(9)
    alone = [np.append(1.0, rng.normal(size=4000)) for _ in range(4)]
    values, error = mean_over([*alone, np.full(4001, np.nan)], 10**6)
    assert np.nanmean(values) == 1.0
    assert error == pytest.approx(0.5, rel=0.05)
    assert mean_over([alone[0]] * 4, 10**6)[1] == pytest.approx(1.0, rel=0.05)
