"""The worth of a covariate: unbiased, with an interval that covers, and a p-value that is uniform without an effect."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts
from vxpress.core.inference.association import determined
from vxpress.core.inference.covariate_worth import Groups, covariate_worth
from vxpress.core.inference.permutation import Exchange, Permuted, compare
from vxpress.core.model import VAE, build


def worth_of(score_nc: np.ndarray, code_n: np.ndarray, rng: np.random.Generator, max_pairs: int = 4096) -> Permuted:
    """The worth if the scores under all categories are known, (n, categories)."""
    groups = Groups.of(code_n[:, None], 0, rng, 512, max_pairs)
    score_nm = np.take_along_axis(score_nc[groups.rows], groups.category_hm[groups.group_n], axis=1)
    return compare(score_nm, Exchange(groups.column_n, groups.group_n), rng)


@pytest.mark.parametrize(("n_categories", "max_pairs"), [(2, 4096), (12, 240)])
@pytest.mark.parametrize("effect", [0.0, 0.6])
def test_worth_is_unbiased_covered_by_its_interval_and_p_uniform(n_categories, max_pairs, effect):
    rng = np.random.default_rng(n_categories)
    found, expected = [], effect * (1 - 1 / n_categories)
    for _ in range(300):
        code_n = rng.permutation(np.arange(60) % n_categories)
        # cells and categories differ in level, which is no effect of knowing the category
        score_nc = rng.normal(0, 50, (60, 1)) + rng.normal(0, 2, n_categories) + rng.normal(size=(60, n_categories))
        score_nc[np.arange(60), code_n] += effect * rng.exponential(size=60)
        found.append(worth_of(score_nc, code_n, rng, max_pairs))
    mean, p = np.array([one.mean for one in found]), np.array([one.p for one in found])
    # pairs are drawn without the own cell, whose category others of its category share
    np.testing.assert_allclose(mean.mean(), expected, atol=4 * mean.std() / np.sqrt(300) + 0.02 * effect)
    assert 0.9 < np.mean([one.low <= expected <= one.high for one in found]) < 0.99
    if effect == 0.0:
        assert 0.02 < (p < 0.05).mean() < 0.09
        assert abs(p.mean() - 0.5) < 0.07
    else:
        assert (p < 0.05).mean() > 0.8


def test_the_mean_is_over_all_exchanges_of_the_categories():
    rng = np.random.default_rng(0)
    code_n, score_nc = np.array([0, 0, 1, 1, 2]), rng.normal(size=(5, 3))
    own = score_nc[np.arange(5), code_n].mean()
    others = np.mean([score_nc[np.arange(5), code_n[list(order)]].mean() for order in permutations(range(5))])
    # an exchange leaves one cell in five in its place
    np.testing.assert_allclose(worth_of(score_nc, code_n, rng).mean, (own - others) * 5 / 4)


def test_without_any_difference_p_is_still_uniform():
    p = [worth_of(np.zeros((20, 2)), np.arange(20) % 2, np.random.default_rng(i)).p for i in range(200)]
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.1
    assert abs(np.mean(p) - 0.5) < 0.08


def test_categories_are_exchanged_only_between_cells_with_the_same_other_categories():
    rng = np.random.default_rng(0)
    codes_nk = rng.integers(0, [3, 4], (90, 2))
    groups = Groups.of(codes_nk, 0, rng, 512, 4096)
    assert len(np.unique(groups.rows)) == len(groups.rows)
    for h in range(len(groups.category_hm)):
        rows = groups.rows[groups.group_n == h]
        assert len(np.unique(codes_nk[rows, 1])) == 1
        assert len(np.unique(codes_nk[rows, 0])) > 1
    np.testing.assert_array_equal(
        groups.category_hm[groups.group_n, groups.column_n], codes_nk[groups.rows, 0], strict=True
    )
    # the first covariate is determined by the second: nothing can be exchanged
    nested_nk = np.stack((codes_nk[:, 1] // 2, codes_nk[:, 1]), axis=1)
    assert worth_of(np.zeros((90, 2)), np.zeros(90, dtype=int), rng).n_cells == 0
    assert len(Groups.of(nested_nk, 0, rng, 512, 4096).rows) == 0
    assert len(Groups.of(nested_nk, 1, rng, 512, 4096).rows) > 80


@pytest.mark.parametrize("n_categories", [2, 60])
def test_the_cost_is_limited(n_categories):
    rng = np.random.default_rng(0)
    groups = Groups.of(rng.integers(0, n_categories, (5000, 1)), 0, rng, 512, 4096)
    assert 380 < len(groups.rows) <= 512
    assert len(groups.rows) * groups.category_hm.shape[1] <= 4096


def _cells(effect: float) -> tuple[VAE, Cells]:
    """300 cells in two batches and two lanes; the batch changes the decoded shares by ``effect``, the lane does not."""
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(np.stack((np.arange(300) % 2, rng.integers(0, 2, 300)), axis=1))
    config = ModelConfig(
        n_genes=30, n_latent=2, n_hidden=4, norm="none", condition_output=True, n_categories=(2, 2), has_batch=True
    )
    model = build(config, 0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.decoder.log_dispersion.fill_(5.0)
        shift = effect * torch.from_numpy(rng.normal(size=30)).float()
        model.decoder.location.weight[:, -4] = shift
    log_library = torch.full((300, 1), np.log(200.0), dtype=torch.float32)
    share_n = torch.softmax((codes[:, :1] == 0) * shift, dim=1)
    counts = torch.from_numpy(rng.poisson(200 * share_n.numpy())).float()
    return model, Cells(Counts.from_dense(counts), log_library, Covariates(codes, torch.zeros(300, 0)))


def test_a_model_that_knows_the_effect_of_the_batch_finds_its_worth():
    model, cells = _cells(0.3)
    batch, lane = covariate_worth(model, cells, np.arange(300), seed=0)
    own = cells.batch(torch.arange(300))
    other = cells.batch(torch.arange(300))
    other = type(other)(
        other.counts,
        other.rows,
        other.log_library_n1,
        other.covariates.with_category(0, 1 - own.covariates.categorical_nk[:, 0]),
    )
    point = {"z": torch.zeros(300, 2)}
    gain = (model.log_likelihood(point, own)["rna"] - model.log_likelihood(point, other)["rna"]).detach().numpy()
    # another cell is of the other batch in half of the cases
    assert batch.p == pytest.approx(0.001)
    assert batch.low < gain.mean() / 2 < batch.high
    np.testing.assert_allclose(batch.mean, gain.mean() / 2, rtol=0.1)
    assert lane.low <= 0 <= lane.high
    assert abs(lane.mean) < 1e-4
    before = cells.covariates.categorical_nk.clone()
    assert covariate_worth(model, cells, np.arange(300), seed=0)[0] == batch
    assert torch.equal(cells.covariates.categorical_nk, before)


def test_nothing_to_compare_is_nan_not_an_error():
    model, cells = _cells(0.0)
    for rows in (np.array([3]), np.array([0, 2])):
        found = covariate_worth(model, cells, rows, seed=0)[0]
        assert found.n_cells == 0
        assert np.isnan([found.mean, found.low, found.high, found.p]).all()


def test_how_far_one_variable_determines_another():
    rng = np.random.default_rng(0)
    donor = rng.integers(0, 8, 4000)
    condition = donor // 4
    assert determined(condition, donor) == 1.0
    # two conditions tell apart one bit of three
    np.testing.assert_allclose(determined(donor, condition), 1 / 3, atol=0.01)
    # chance is subtracted: many categories of few cells
    few = [determined(rng.integers(0, 5, 400), rng.integers(0, 40, 400)) for _ in range(20)]
    assert np.mean(few) < 0.02
    assert np.isnan(determined(np.zeros(10), np.arange(10)))
    assert determined(np.array([0, 1, 0, 1]), np.zeros(4)) == 0.0
