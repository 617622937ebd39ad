from __future__ import annotations

import torch

from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Conditioner, Covariates

CODES = torch.tensor([[0, 0, 2], [1, 0, 0], [3, 0, 1]])
AGE = torch.tensor([[0.5, -1.0], [0.0, 2.0], [1.5, 0.0]])
COVARIATES = Covariates(CODES, AGE, torch.tensor([5, 6, 7]))


def _config(**settings: object) -> ModelConfig:
    return ModelConfig(n_genes=20, n_categories=(4, 1, 3), n_continuous=2, **settings)  # type: ignore[arg-type]


def test_one_hot_is_continuous_columns_then_indicators_without_the_constant_covariate() -> None:
    conditioner = Conditioner(_config())
    indicators = torch.cat((torch.eye(4)[CODES[:, 0]], torch.eye(3)[CODES[:, 2]]), dim=1)
    s_nc = conditioner(COVARIATES)
    assert conditioner.width == 2 + 4 + 3
    assert torch.equal(s_nc, torch.cat((AGE, indicators), dim=1))


def test_an_embedding_has_one_row_per_category_and_its_own_width() -> None:
    conditioner = Conditioner(_config(covariate_code="embedding", n_embedding=5))
    s_nc = conditioner(COVARIATES)
    assert conditioner.width == 2 + 5 + 5
    assert s_nc.shape == (3, conditioner.width)
    same = conditioner(Covariates(CODES[[1, 1, 1]], AGE[[1, 1, 1]]))
    assert torch.equal(same, s_nc[1].expand(3, -1))
    assert not torch.equal(s_nc[0, 2:7], s_nc[1, 2:7])


def test_without_covariates_the_condition_is_none() -> None:
    for config in (ModelConfig(n_genes=20), ModelConfig(n_genes=20, n_categories=(1, 1), has_batch=True)):
        conditioner = Conditioner(config)
        assert conditioner.width == 0
        assert conditioner(Covariates(torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 0))) is None


def test_continuous_columns_alone() -> None:
    s_nc = Conditioner(ModelConfig(n_genes=20, n_continuous=2))(COVARIATES)
    assert torch.equal(s_nc, AGE)


def test_with_batch_changes_the_batch_and_nothing_else() -> None:
    moved = COVARIATES.with_batch(2)
    assert moved.categorical_nk.tolist() == [[2, 0, 2], [2, 0, 0], [2, 0, 1]]
    assert torch.equal(moved.continuous_nc, AGE)
    assert moved.label_n is COVARIATES.label_n
    assert COVARIATES.categorical_nk[:, 0].tolist() == [0, 1, 3]


def test_rows_are_taken_together() -> None:
    rows = torch.tensor([2, 0, 2])
    taken = COVARIATES[rows]
    assert taken.categorical_nk.tolist() == CODES[rows].tolist()
    assert taken.continuous_nc.tolist() == AGE[rows].tolist()
    assert taken.label_n is not None
    assert taken.label_n.tolist() == [7, 5, 7]
    assert Covariates(CODES, AGE)[rows].label_n is None
