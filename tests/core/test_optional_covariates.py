"""Categorical covariates whose category can be hidden from the networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vxpress.core import rule
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.covariates import Conditioner, Covariates
from vxpress.core.data import Cells
from vxpress.core.inference.posterior import encode, encode_views, hidden
from vxpress.core.model import VAE, build
from vxpress.core.noise import Noise
from vxpress.core.objectives import elbo
from vxpress.core.query.fine_tuning import fine_tune
from vxpress.core.query.surgery import extend
from vxpress.core.training import Training, train
from vxpress.core.training.training import with_some_hidden

MakeCells = Callable[..., Cells]

CODES = torch.tensor([[0, 0, 2], [1, 0, 0], [3, 0, 1]])
AGE = torch.tensor([[0.5, -1.0], [0.0, 2.0], [1.5, 0.0]])
COVARIATES = Covariates(CODES, AGE)
SIZES = {"n_genes": 20, "n_categories": (4, 1, 3), "n_continuous": 2}
MODEL = {"n_genes": 20, "n_latent": 3, "n_hidden": 12, "n_categories": (3,), "has_batch": True}


def _model(cells: Cells, **settings: Any) -> VAE:
    model = build(ModelConfig(**MODEL | settings), 0)
    model.start_from(cells, torch.arange(len(cells)))
    return model


def _batches(cells: Cells) -> np.ndarray:
    return cells.covariates.categorical_nk[:, 0].numpy()


@pytest.mark.parametrize("code", ["one-hot", "embedding"])
def test_a_hidden_category_has_zeros_in_its_own_columns_only(code: str) -> None:
    conditioner = Conditioner(ModelConfig(**SIZES, optional=(2,), covariate_code=code, n_embedding=5))
    width = 3 if code == "one-hot" else 5
    shown = conditioner(COVARIATES)
    found = conditioner(conditioner.hide(COVARIATES, torch.tensor([True, False, True])))
    assert shown[:, -width:].abs().sum(1).all()
    assert torch.equal(found[:, -width:], shown[:, -width:] * torch.tensor([[0.0], [1.0], [0.0]]))
    assert torch.equal(found[:, :-width], shown[:, :-width])
    assert torch.equal(COVARIATES.categorical_nk, CODES)


@pytest.mark.parametrize("code", ["one-hot", "embedding"])
def test_encoders_receive_the_columns_of_optional_covariates(code: str) -> None:
    settings = SIZES | {"covariate_code": code, "n_embedding": 5}
    last = 3 if code == "one-hot" else 5
    some = Conditioner(ModelConfig(**settings, optional=(2,)))
    s_nc = some(COVARIATES)
    assert torch.equal(some.for_encoder(s_nc), s_nc[:, -last:])
    both = Conditioner(ModelConfig(**settings, optional=(0, 2)))
    s_nc = both(COVARIATES)
    assert torch.equal(both.for_encoder(s_nc), s_nc[:, 2:])
    everything = Conditioner(ModelConfig(**settings, optional=(2,), encode_covariates=True))
    s_nc = everything(COVARIATES)
    assert torch.equal(everything.for_encoder(s_nc), s_nc)
    assert Conditioner(ModelConfig(**settings)).for_encoder(s_nc) is None


def test_nothing_is_hidden_without_optional_covariates() -> None:
    assert Conditioner(ModelConfig(**SIZES)).hide(COVARIATES) is COVARIATES


@pytest.mark.parametrize("optional", [(3,), (0, 0)])
def test_positions_that_are_not_covariates_are_refused(optional: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="different positions among 3"):
        ModelConfig(**SIZES, optional=optional)


@pytest.mark.parametrize("settings", [{"dispersion": "gene-batch"}, {"latent_library": True}])
def test_a_batch_that_the_model_needs_cannot_be_optional(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs the batch of every cell"):
        ModelConfig(**MODEL, optional=(0,), **settings)


@pytest.mark.parametrize("code", ["one-hot", "embedding"])
def test_a_new_model_is_that_whose_encoder_receives_the_covariate(make_cells: MakeCells, code: str) -> None:
    cells = make_cells(80, n_batches=3)
    batch = cells.batch(torch.arange(80))
    terms = []
    for how in ({"optional": (0,)}, {"encode_covariates": True}):
        model = _model(cells, covariate_code=code, **how).train()
        terms.append(elbo(model, batch, Noise(3)))
    assert torch.equal(*(part.reconstruction_n for part in terms))
    assert torch.equal(*(part.kl["z"] for part in terms))


def test_with_nothing_hidden_in_training_it_is_the_same_training_with_all_categories_shown(
    make_cells: MakeCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, rows, histories = make_cells(80, n_batches=3), torch.arange(80), []
    config = TrainConfig(max_epochs=2, batch_size=32, hidden_share=0.0)
    for _ in range(2):
        histories.append(train(_model(cells, optional=(0,)), cells, rows[20:], rows[:20], config, seed=1).history)
        monkeypatch.setattr(Conditioner, "hide", lambda _, covariates, chosen_n=None: covariates)
    assert histories[0] == histories[1]


@pytest.mark.parametrize("plain", [False, True])
def test_with_everything_hidden_in_training_no_weight_of_the_category_is_trained(
    make_cells: MakeCells, *, plain: bool
) -> None:
    cells, rows = make_cells(80, n_batches=3), torch.arange(80)
    model = _model(cells, optional=(0,))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    config = TrainConfig(max_epochs=2, batch_size=32, hidden_share=1.0, weight_decay=0.0)
    with rule.plain() if plain else torch.enable_grad():
        train(model, cells, rows[20:], rows[:20], config, seed=1)
    for name in ("blocks.z.encoder.body.linears.0.weight", "decoder.body.linears.0.weight"):
        own, category = model.state_dict()[name].split((start[name].shape[1] - 3, 3), dim=1)
        assert torch.equal(category, start[name][:, -3:]), name
        assert not torch.equal(own, start[name][:, :-3]), name
    assert not model.encoder.get_parameter("shift").any()


def test_training_learns_both_views(make_cells: MakeCells) -> None:
    cells, rows = make_cells(80, n_batches=3), torch.arange(80)
    model = _model(cells, optional=(0,))
    start = model.state_dict()["decoder.body.linears.0.weight"][:, -3:].clone()
    train(model, cells, rows[20:], rows[:20], TrainConfig(max_epochs=2, batch_size=32, weight_decay=0.0), seed=1)
    assert not torch.equal(model.state_dict()["decoder.body.linears.0.weight"][:, -3:], start)
    assert model.encoder.get_parameter("shift").any()
    removed, kept = encode_views(model, cells)
    assert kept is not None
    assert not np.array_equal(removed.mean_nd, kept.mean_nd)
    assert encode_views(_model(cells), cells)[1] is None


def test_validation_sees_a_fixed_share_of_cells_hidden(make_cells: MakeCells) -> None:
    cells, rows = make_cells(600, n_batches=3), torch.arange(600)
    model = _model(cells, optional=(0,))
    code_n = [_batches(with_some_hidden(model, cells, share, seed=2)) for share in (0.5, 0.5, 0.0, 1.0)]
    np.testing.assert_array_equal(code_n[0], code_n[1])
    assert (code_n[0] == 3).mean() == pytest.approx(0.5, abs=0.08)
    np.testing.assert_array_equal(code_n[0][code_n[0] < 3], _batches(cells)[code_n[0] < 3])
    np.testing.assert_array_equal(code_n[2], _batches(cells))
    assert (code_n[3] == 3).all()
    config = TrainConfig(max_epochs=1, batch_size=64)
    judged = Training(model, cells, rows[100:], rows[:100], config, seed=0).judged
    assert (_batches(judged) == 3).mean() == pytest.approx(0.5, abs=0.08)
    plain = _model(cells)
    assert Training(plain, cells, rows[100:], rows[:100], config, seed=0).judged is cells


def test_cells_are_chosen_with_the_requested_probability() -> None:
    assert Noise(0).choose(20_000, 0.3).double().mean() == pytest.approx(0.3, abs=0.02)
    assert not Noise(0).choose(100, 0.0).any()
    assert Noise(0).choose(100, 1.0).all()


@pytest.mark.parametrize("prior", ["normal", "vamp"])
def test_the_kept_view_does_not_depend_on_the_category(make_cells: MakeCells, prior: str) -> None:
    from vxpress.core.config import PriorConfig

    cells = make_cells(40, n_batches=3)
    model = _model(cells, optional=(0,), prior=PriorConfig(prior)).eval()  # type: ignore[arg-type]
    batch = cells.batch(torch.arange(40))
    other = hidden(model, cells.with_covariates(cells.covariates.with_batch(1))).batch(torch.arange(40))
    here = hidden(model, cells).batch(torch.arange(40))
    with torch.no_grad():
        z = [model.posterior(part)["z"] for part in (here, other, batch)]
        bound = [model.log_likelihood({"z": z[0].loc}, part)["rna"] for part in (here, other, batch)]
    assert torch.equal(z[0].loc, z[1].loc)
    assert torch.equal(bound[0], bound[1])
    assert not torch.equal(z[0].loc, z[2].loc)
    assert not torch.equal(bound[0], bound[2])


@pytest.mark.parametrize("code", ["one-hot", "embedding"])
def test_new_categories_and_their_training_leave_the_kept_view_as_it_is(make_cells: MakeCells, code: str) -> None:
    cells, rows = make_cells(60, n_batches=5), torch.arange(60)
    model = _model(cells, optional=(0,), covariate_code=code).eval()
    # two batches are new
    extended = extend(model, [2])
    known = cells.take(torch.nonzero(cells.covariates.categorical_nk[:, 0] < 3)[:, 0])
    for before, after in zip(encode_views(model, known), encode_views(extended, known), strict=True):
        assert before is not None
        assert after is not None
        np.testing.assert_allclose(after.mean_nd, before.mean_nd, rtol=1e-5, atol=1e-6)
    removed, kept = encode_views(extended, cells)
    new = rows[cells.covariates.categorical_nk[:, 0] >= 3]
    fine_tune(extended, cells, [2], new[4:], new[:4], max_epochs=2, seed=0)
    moved, still = encode_views(extended, cells)
    assert kept is not None
    assert still is not None
    np.testing.assert_array_equal(still.mean_nd, kept.mean_nd)
    changed = (moved.mean_nd != removed.mean_nd).any(1)
    assert not changed[_batches(cells) < 3].any()
    np.testing.assert_array_equal(encode(extended, hidden(extended, cells)).mean_nd, kept.mean_nd)
