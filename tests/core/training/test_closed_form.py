"""The gradient in closed form, compared with autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vxpress.core import rule
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.data import Cells
from vxpress.core.kernels.frames import Plan
from vxpress.core.model import build
from vxpress.core.noise import Noise
from vxpress.core.objectives import elbo
from vxpress.core.training import Training, closed_form, train
from vxpress.core.training.optimizer import Optimizer

MakeCells = Callable[..., Cells]


STEPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "zinb": {"likelihood": "zinb", "dropout": 0.0},
    "covariates": {"n_categories": (3,), "has_batch": True, "condition_output": True, "encode_covariates": True},
    "per batch": {"n_categories": (3,), "has_batch": True, "dispersion": "gene-batch", "remainder": True},
    "per batch of two covariates": {"n_categories": (3, 2), "has_batch": True, "dispersion": "gene-batch"},
    "thinned": {"thinning": 0.9, "n_categories": (3,), "has_batch": True},
    "reference": {"likelihood": "zinb", "bias_before_norm": True},
    "optional": {"n_categories": (3,), "has_batch": True, "optional": (0,)},
    "perturbations": {"n_perturbations": 3},
    "doses": {"n_perturbations": 2, "dose_response": True, "n_categories": (3,), "condition_output": True},
}


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_without_autograd_gives_the_same_gradient(make_cells: MakeCells, name: str, norm: str) -> None:
    cells = make_cells(60, 20, n_batches=3)
    cells = replace(cells, counts=_sparser(cells))
    config = ModelConfig(n_genes=20, n_latent=3, n_hidden=16, norm=norm, **{"condition_output": False} | STEPS[name])  # type: ignore[arg-type]
    model, batch = build(config, 0).train(), cells.batch(torch.arange(5, 45))
    if len(config.n_categories) == 2:
        code_n1 = batch.covariates.categorical_nk
        both = replace(batch.covariates, categorical_nk=torch.cat((code_n1, code_n1 % 2), dim=1))
        batch = batch.with_covariates(both)
    if config.optional:
        hidden = model.conditioner.hide(batch.covariates, torch.arange(40) % 3 == 0)
        batch = batch.with_covariates(hidden)
    if config.optional:
        torch.nn.init.normal_(model.encoder.shift)
    if model.conditioner.perturbations is not None:
        dose = torch.arange(40 * config.n_perturbations).reshape(40, -1) % 4 / 3
        batch = batch.with_covariates(batch.covariates.with_doses(dose))
        for parameter in model.conditioner.perturbations.parameters():
            torch.nn.init.normal_(parameter)
    twin = copy.deepcopy(model)
    assert closed_form.covers(model, cells, TrainConfig(max_epochs=1))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = Optimizer(TrainConfig(max_epochs=1), parameters, 10)
    reconstruction, kl, loss = closed_form.ClosedForm(model, Noise(3))(batch, 0.4)
    with rule.plain():
        terms = elbo(twin, batch, Noise(3))
        expected = -terms.value(0.4).mean()
        expected.backward()
    torch.testing.assert_close(float(loss), float(expected.detach()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reconstruction, float(terms.reconstruction_n.sum().detach()), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(kl, float(terms.kl["z"].sum().detach()), rtol=1e-5, atol=1e-4)
    for (label, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if p.requires_grad:
            assert p.grad is not None
            expected_grad = torch.zeros_like(q) if q.grad is None else q.grad
            scale = 1e-4 * float(expected_grad.abs().max()) + 1e-6
            np.testing.assert_allclose(p.grad, expected_grad, rtol=1e-3, atol=scale, err_msg=label)
    for value, other in zip(model.buffers(), twin.buffers(), strict=True):
        if value.dim():
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)
    optimizer.release()


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_a_step_in_bfloat16_is_near_that_in_float32(make_cells: MakeCells, likelihood: str) -> None:
    cells = make_cells(71, 301)
    config = ModelConfig(n_genes=301, n_latent=3, n_hidden=64, norm="layer", likelihood=likelihood, remainder=True)  # type: ignore[arg-type]
    model, batch = build(config, 0).train(), cells.batch(torch.arange(71))
    twin = copy.deepcopy(model)
    optimizer = Optimizer(TrainConfig(max_epochs=1), [p for p in model.parameters() if p.requires_grad], 10)
    closed_form.ClosedForm(model, Noise(3))(batch, 0.4)
    with rule.plain():
        (-elbo(twin, batch, Noise(3)).value(0.4).mean()).backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if p.requires_grad:
            assert p.grad is not None
            assert q.grad is not None
            assert float((p.grad - q.grad).norm()) < 0.02 * float(q.grad.norm()) + 1e-6, name
    optimizer.release()


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_step_has_the_same_bits_with_any_number_of_threads(make_cells: MakeCells, norm: str) -> None:
    cells = make_cells(150, 301, n_batches=3)
    config = ModelConfig(
        n_genes=301, n_latent=3, n_hidden=64, norm=norm, n_categories=(3,), has_batch=True, condition_output=True, likelihood="zinb",
    )  # type: ignore[arg-type]  # fmt: skip
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4, 2):
            torch.set_num_threads(threads)
            model = build(config, 0).train()
            optimizer = Optimizer(TrainConfig(max_epochs=1), [p for p in model.parameters() if p.requires_grad], 10)
            reconstruction, kl, _ = closed_form.ClosedForm(model, Noise(3))(cells.batch(torch.arange(149)), 0.4)
            found.append([reconstruction, kl, *(p.grad.clone() for p in optimizer.parameters if p.grad is not None)])
            optimizer.release()
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert other[:2] == found[0][:2]
        for a, b in zip(other[2:], found[0][2:], strict=True):
            assert torch.equal(a, b)


def _sparser(cells: Cells):
    """Return the same counts with most genes set to zero, so that the sparse form runs."""
    from scipy import sparse

    from vxpress.core.data import Counts

    x = cells.counts.dense(torch.arange(len(cells))).numpy()
    x[:, np.arange(x.shape[1]) % 4 != 0] = 0
    return Counts.from_scipy(sparse.csr_matrix(x))


@pytest.mark.parametrize(("likelihood", "norm"), [("nb", "batch"), ("zinb", "batch"), ("nb", "layer")])
def test_compiled_and_plain_training_give_the_same_model(make_cells: MakeCells, likelihood: str, norm: str) -> None:
    cells = make_cells(200, 20)
    cells = replace(cells, counts=_sparser(cells))
    rows, ends = torch.arange(200), []
    config = ModelConfig(n_genes=20, n_latent=3, n_hidden=16, norm=norm, likelihood=likelihood, condition_output=False)  # type: ignore[arg-type]
    for plain in (False, True):
        model = build(config, 0)
        model.start_from(cells, rows)
        with rule.plain() if plain else torch.enable_grad():
            outcome = train(model, cells, rows[40:], rows[:40], TrainConfig(max_epochs=10, batch_size=32), seed=0)
        ends.append(outcome.history["elbo_validation"])
    np.testing.assert_allclose(*ends, rtol=2e-3)


TRAININGS: dict[str, dict[str, Any]] = {
    "layer norm": {},
    "batch norm": {"norm": "batch"},
    "encoder ahead": {"encoder_steps": 1},
    "clipped": {"max_grad_norm": 0.5},
    # whose gradients are added after the call
    "perturbations": {"n_perturbations": 2},
}


@pytest.mark.parametrize("name", TRAININGS)
def test_the_optimizer_in_the_call_of_the_gradient_gives_the_same_bits(
    make_cells: MakeCells, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, rows, ends = make_cells(120, 20), torch.arange(120), []
    settings, of_training = TRAININGS[name], {}
    if "n_perturbations" in settings:
        cells = cells.with_covariates(cells.covariates.with_doses(torch.arange(240).reshape(120, 2) % 3 / 2))
    else:
        of_training = {key: value for key, value in settings.items() if key != "norm"}
        settings = {key: value for key, value in settings.items() if key == "norm"}
    config = ModelConfig(n_genes=20, n_latent=3, n_hidden=16, condition_output=False, **{"norm": "layer"} | settings)  # type: ignore[arg-type]
    calls: list[int] = []
    run = Plan.run

    def noted(plan: Plan, n_threads: int) -> None:
        calls.append(len(plan.arrays[2]))
        run(plan, n_threads)

    monkeypatch.setattr(Plan, "run", noted)
    counted = []
    for together in (True, False):
        if not together:
            monkeypatch.setattr(Optimizer, "with_gradient", lambda _: None)
        model = build(config, 0)
        calls.clear()
        training = Training(
            model, cells, rows[40:], rows[:40], TrainConfig(max_epochs=1, batch_size=40, **of_training), seed=0
        )  # type: ignore[arg-type]
        step = training.stepper
        for _ in range(3):
            step(cells.batch(rows[40:80]), 0.5, 0.0)
        counted.append(list(calls))
        ends.append({key: value.clone() for key, value in model.state_dict().items()})
    assert all(torch.equal(ends[0][key], value) for key, value in ends[1].items())
    if "n_perturbations" not in settings:
        # one call for each step; with layer norm the threads meet four times before its end
        rounds = 5 if config.norm == "layer" else 12
        assert counted[0] == [rounds] * 3
    assert len(counted[1]) == 6


def test_a_step_that_is_not_finite_is_void_in_the_same_call(make_cells: MakeCells) -> None:
    cells, rows = make_cells(60, 20), torch.arange(60)
    model = build(ModelConfig(n_genes=20, n_latent=3, n_hidden=16, norm="layer", condition_output=False), 0)
    training = Training(model, cells, rows, rows[:0], TrainConfig(max_epochs=1, batch_size=60), seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model.decoder.location.bias[3] = float("nan")
    training.stepper(cells.batch(rows), 1.0, 0.0)
    assert float(training.stepper.voided) == 1
    for key, value in model.state_dict().items():
        if key != "decoder.location.bias":
            assert torch.equal(value, before[key])
