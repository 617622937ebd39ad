"""Additive effects of perturbations: strengths, shifts, and where they enter the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vxpress.core import start
from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts
from vxpress.core.model import build
from vxpress.core.perturbations import Perturbations, hill
from vxpress.core.query.surgery import extend
from vxpress.core.training.embeddings import settle

MakeCells = Callable[..., Cells]


def _config(**settings: Any) -> ModelConfig:
    sizes: dict[str, Any] = {"n_genes": 20, "n_latent": 3, "n_hidden": 8, "n_perturbations": 2}
    return ModelConfig(**sizes | settings)


def _model(**settings: Any) -> Any:
    model: Any = build(_config(**settings), 0).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.conditioner.perturbations.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


def _cells(make_cells: MakeCells, dose: list[float]) -> Cells:
    cells = make_cells(12, 20)
    return replace(cells, covariates=replace(cells.covariates, dose_np=torch.tensor(dose).expand(12, 2)))


def test_a_dose_without_response_is_its_own_strength() -> None:
    dose = torch.tensor([[0.0, 1.0], [0.5, 2.0]])
    assert torch.equal(Perturbations(_config()).strength(dose), dose)


@pytest.mark.parametrize(("log_half", "log_slope"), [(0.0, 0.0), (-1.0, 0.8), (2.0, -0.5), (50.0, 50.0)])
def test_a_strength_is_0_without_dose_1_at_the_reference_and_grows(log_half: float, log_slope: float) -> None:
    perturbations: Any = Perturbations(_config(n_perturbations=1, dose_response=True))
    perturbations.log_half.data.fill_(log_half)
    perturbations.log_slope.data.fill_(log_slope)
    dose = torch.tensor([0.0, 1e-6, 0.1, 0.4, 1.0, 3.0, 1e6]).unsqueeze(1).requires_grad_()
    strength = perturbations.strength(dose)
    assert strength[0] == 0.0
    torch.testing.assert_close(strength[4, 0], torch.tensor(1.0))
    assert bool((strength.diff(dim=0) >= 0).all())
    strength.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in (dose, perturbations.log_half, perturbations.log_slope))


def test_a_hill_function_with_known_half_effect() -> None:
    perturbations: Any = Perturbations(_config(n_perturbations=1, dose_response=True))
    perturbations.log_half.data.fill_(np.log(0.25))
    perturbations.log_slope.data.fill_(np.log(2.0))
    # half of the largest possible effect, which is 1 + k^h of that at 1
    expected = 0.5 * (1 + 0.25**2)
    assert float(perturbations.strength(torch.tensor([[0.25]])).detach()) == pytest.approx(expected)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"condition_output": False}, {"decoder": "linear"}, {"dose_response": True}])
def test_effects_in_the_decoder_add_up(make_cells: MakeCells, settings: dict[str, Any]) -> None:
    model, none = _model(**settings), _cells(make_cells, [0.0, 0.0]).covariates
    z = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    library = torch.zeros(12, 1)

    def inputs(dose: list[float]):
        return model.inputs({"z": z}, none.with_doses(torch.tensor(dose)), library)

    both, first, second, control = (inputs(dose) for dose in ([1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]))
    torch.testing.assert_close(both.z_nd - z, (first.z_nd - z) + (second.z_nd - z))
    assert torch.equal(control.z_nd, z)
    # the body receives no strengths, so that it cannot make a combination more than its parts
    assert model.decoder.body_condition(both.condition_nc) is None
    h = model.decoder.body(z, None, None)
    strengths = [model.decoder.features(z, part.condition_nc)[:, h.shape[1] :] for part in (both, first, second)]
    torch.testing.assert_close(strengths[0], strengths[1] + strengths[2])


@torch.no_grad()
def test_the_posterior_has_the_effects_removed(make_cells: MakeCells) -> None:
    model, cells = _model(), _cells(make_cells, [1.0, 2.0])
    control = cells.with_covariates(cells.covariates.with_doses(torch.zeros(2)))
    rows = torch.arange(12)
    perturbed, basal = model.posterior(control.batch(rows))["z"], model.posterior(cells.batch(rows))["z"]
    e = model.conditioner.perturbations.embedding
    torch.testing.assert_close(basal.loc, perturbed.loc - (e[0] + 2 * e[1]))
    assert torch.equal(basal.scale, perturbed.scale)


def test_a_model_without_perturbations_has_the_weights_it_had() -> None:
    plain, other = build(_config(n_perturbations=0), 3).state_dict(), build(_config(), 3).state_dict()
    assert not [name for name in plain if "perturbations" in name]
    same = [name for name in plain if name.startswith("blocks.")]
    assert same
    assert all(torch.equal(plain[name], other[name]) for name in same)


def test_least_squares_separate_effects_that_occur_together() -> None:
    rng = np.random.default_rng(0)
    dose = torch.from_numpy((rng.random((3_000, 2)) < [0.5, 0.3]).astype(np.float32))
    effect = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    value = 7.0 + dose @ effect + 0.1 * torch.from_numpy(rng.standard_normal((3_000, 2)).astype(np.float32))
    found, error = start.least_squares(dose, value, 1.0)
    np.testing.assert_allclose(found, effect, rtol=0.02)
    # of a mean of about n p (1 - p) cells
    np.testing.assert_allclose(error[0], 0.1 / np.sqrt(3_000 * 0.25), rtol=0.1)
    # few cells say little
    assert float(start.least_squares(dose[:10], value[:10], 30.0)[0].abs().max()) < 1.0


@torch.no_grad()
def test_the_start_takes_effects_out_of_z_and_explains_them() -> None:
    rng = np.random.default_rng(0)
    dose = torch.from_numpy((rng.random((1_500, 2)) < 0.4).astype(np.float32))
    effect = torch.from_numpy(rng.normal(0, 0.8, (2, 20)).astype(np.float32))
    x = torch.from_numpy(rng.poisson(5 * np.exp((dose @ effect).numpy())).astype(np.float32))
    covariates = Covariates(torch.zeros(1_500, 0, dtype=torch.int64), torch.zeros(1_500, 0), None, dose)
    source = Cells.of(Counts.from_dense(x), x.sum(1, keepdim=True).log(), covariates, torch.device("cpu"))
    model: Any = build(_config(n_latent=5, n_hidden=16), 0).eval()
    start.start_at_components(model, source, torch.arange(1_500))
    z = model.posterior(source.batch(torch.arange(1_500)))["z"].loc
    with_effects = z + model.conditioner.shift(covariates)

    def explained(value: torch.Tensor) -> float:
        between = start.least_squares(dose, value, 0.0)[0].float()
        return float((dose @ between).var(0).sum() / value.var(0).sum())

    assert explained(with_effects) > 0.3
    assert explained(z) < 0.02
    strengths = model.decoder.location.weight[:, -2:]
    assert float(strengths.abs().max()) > 0.05


@torch.no_grad()
def test_a_new_batch_keeps_the_perturbations(make_cells: MakeCells) -> None:
    settings: dict[str, Any] = {"n_categories": (2,), "has_batch": True, "encode_covariates": True, "n_readout": 4}
    model = _model(**settings)
    more = extend(model, [1])
    cells = _cells(make_cells, [1.0, 0.5])
    covariates = replace(cells.covariates, categorical_nk=torch.zeros(12, 1, dtype=torch.int64))
    z = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(more.features({"z": z}, covariates)[:, :8], model.features({"z": z}, covariates)[:, :8])
    expected = model.likelihood({"z": z}, covariates, torch.zeros(12, 1)).mean
    torch.testing.assert_close(more.likelihood({"z": z}, covariates, torch.zeros(12, 1)).mean, expected)


@torch.no_grad()
def test_settled_embeddings_give_all_perturbations_the_basal_mean_of_the_controls(make_cells: MakeCells) -> None:
    cells = make_cells(400, 20)
    rng = np.random.default_rng(0)
    dose = torch.from_numpy((rng.random((400, 2)) < 0.4).astype(np.float32))
    cells = replace(cells, covariates=replace(cells.covariates, dose_np=dose))
    model = _model()
    rows = torch.arange(300)
    before = model.posterior(cells.batch(rows))["z"].loc + model.conditioner.shift(cells.covariates[rows])
    settle(model, cells, rows)
    z, used = model.posterior(cells.batch(rows))["z"].loc, dose[:300]
    # what encoders see is the same, and nothing of the effects is left
    torch.testing.assert_close(z + model.conditioner.shift(cells.covariates[rows]), before)
    left = torch.linalg.lstsq(torch.cat((used, torch.ones(300, 1)), 1), z).solution[:2]
    assert float(left.abs().max()) < 0.02 * float(before.std())


def test_the_start_finds_the_shape_of_a_dose_response() -> None:
    rng = np.random.default_rng(0)
    dose = np.zeros((1_200, 2), dtype=np.float32)
    dose[:400, 0] = rng.choice([0.01, 0.1, 1.0], 400)
    dose[300:800, 1] = rng.choice([0.1, 0.3, 1.0], 500)
    strength = np.column_stack([(1 + 0.05) * dose[:, 0] / (dose[:, 0] + 0.05), dose[:, 1]])
    value = strength @ rng.normal(0, 1.0, (2, 40)) + rng.standard_normal((1_200, 40))
    log_half, log_slope = start.best_shapes(torch.from_numpy(dose), torch.from_numpy(value.astype(np.float32)))
    found = hill(torch.from_numpy(dose), log_half, log_slope).numpy()
    assert np.abs(found - strength).max() < 0.12


def test_a_perturbation_without_effect_keeps_the_plain_shape() -> None:
    rng = np.random.default_rng(0)
    dose = torch.from_numpy(rng.choice([0.0, 0.1, 1.0], (300, 1)).astype(np.float32))
    log_half, log_slope = start.best_shapes(dose, torch.from_numpy(rng.standard_normal((300, 40)).astype(np.float32)))
    assert abs(float(log_half)) < 1.5
    assert abs(float(log_slope)) < 0.7
