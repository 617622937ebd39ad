"""Trainings and what follows on a simulated device: nothing mixes devices, and no captured step waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vxpress.core import rule
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.data import Batch, Cells, Source, gene_sums, place
from vxpress.core.inference.importance import importance_bounds, log_likelihoods
from vxpress.core.inference.posterior import encode
from vxpress.core.model import VAE, build
from vxpress.core.noise import Noise
from vxpress.core.training import Training
from vxpress.core.training import step as step_module
from vxpress.core.training.device import _Size
from vxpress.core.training.step import DeviceStep

from ._simulated_device import SimulatedError, captured, simulated_device, value

MakeCells = Callable[..., Cells]
CONFIG = ModelConfig(n_genes=20, n_latent=3, n_hidden=16)
TRAIN = TrainConfig(max_epochs=1, batch_size=20, early_stopping=False)
BATCHES: dict[str, Any] = {"n_categories": (2,), "has_batch": True}


class _Captured:
    """Takes every step as if it was being captured."""

    def __init__(self, step: Callable[[Batch], None], source: Source, noise: Noise, device: torch.device) -> None:
        self.step, self.source = step, source

    def __call__(self, batch: Batch) -> None:
        size = _Size.of(self.source, batch)
        size.load(batch)
        with captured():
            self.step(size.batch())


@pytest.fixture(autouse=True)
def captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "captured_step", lambda device: device.type != "cpu")
    monkeypatch.setattr(step_module, "Replay", _Captured)


FITS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "nb": ({}, {}, "resident"),
    "zinb": ({"likelihood": "zinb", "norm": "batch", "dropout": 0.1, "thinning": 0.5}, {}, "resident"),
    "size factors": ({"latent_library": True, "dispersion": "gene-batch", **BATCHES}, {}, "resident"),
    "dispersion of cells": ({"dispersion": "gene-cell", "encode_covariates": True, **BATCHES}, {}, "resident"),
    "hidden": ({"optional": (0,), **BATCHES}, {"hidden_share": 0.3}, "resident"),
    "proteins": ({"likelihood": "nb_mixture", **BATCHES}, {}, "resident"),
    "samples": ({"remainder": True}, {"objective": "dreg", "n_samples": 2}, "resident"),
    "soft free bits": ({}, {"free_bits": 0.3, "encoder_steps": 1, "weight_decay": 0.01}, "resident"),
    "capacity": ({}, {"kl_schedule": "capacity", "kl_capacity": 2.0, "beta": 5.0}, "resident"),
    "streamed": ({"thinning": 0.5}, {}, "streamed"),
    "stored": ({}, {}, "stored"),
}


@pytest.mark.parametrize("name", FITS)
def test_a_fit_on_a_device_is_that_of_its_model_here(make_cells: MakeCells, name: str) -> None:
    settings, training, where = FITS[name]
    cells = make_cells(80, n_batches=2)
    with simulated_device() as device:
        moved, rows = place(cells, device, where), torch.arange(80, device=device)
        model = build(replace(CONFIG, **settings), 0).to(device)
        model.start_from(moved, rows[21:])
        fit = Training(model, moved, rows[21:], rows[:21], replace(TRAIN, **training), seed=0)
        outcome = fit.run()
        assert isinstance(fit.stepper, DeviceStep)
        assert (outcome.n_steps, outcome.n_voided) == (3, 0)
        encoded, (bound,) = encode(model, moved), log_likelihoods(model, moved, [2], seed=1)
        sums_g = value(gene_sums(moved, rows[:30]))
    model = _here(model)
    assert torch.equal(sums_g, gene_sums(cells, torch.arange(30)))
    with rule.plain():
        expected, (reference,) = encode(model, cells), log_likelihoods(model, cells, [2], seed=1)
    np.testing.assert_allclose(encoded.mean_nd, expected.mean_nd, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bound.log_likelihood_n, reference.log_likelihood_n, rtol=1e-4)


def _here(model: VAE) -> VAE:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else nn.Parameter(value(parameter.detach()))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else value(buffer)
    return model


class _Proposal:
    """Notes when it is weighed."""

    n_noise = 2
    kl_n: Tensor | None = None

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def __len__(self) -> int:
        return 3

    def weigh(self, eps_knd: Tensor) -> tuple[Tensor, Tensor]:
        self.events.append("computed")
        return eps_knd.sum(-1), -eps_knd.square().sum(-1)


def test_a_device_computes_while_noise_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    randn = torch.randn

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        events.append("drawn")
        return randn(*args, **kwargs)

    monkeypatch.setattr(torch, "randn", noted)
    with simulated_device() as device:
        importance_bounds(lambda _: [_Proposal(events)], [48], rows_per_pass=64, seed=0, device=device)
    assert events == ["drawn", "computed"] * 3


WAITING: dict[str, Callable[[Tensor], Any]] = {
    "value": lambda x: float(x.sum()),
    "condition": lambda x: bool((x > 0).any()),
    "shape": torch.nonzero,
    "mask": lambda x: x[x > 0],
    "copy": lambda x: x.cpu(),
    "numbers": lambda x: torch.tensor([1.0], device=x.device),
    "index": lambda x: x[torch.tensor([1])],
}


@pytest.mark.parametrize("name", WAITING)
def test_the_simulation_finds_what_waits(name: str) -> None:
    with simulated_device() as device:
        x = torch.ones(3, device=device)
        WAITING[name](x)
        with captured(), pytest.raises(SimulatedError, match="waits"):
            WAITING[name](x)


@pytest.mark.parametrize("mixed", [lambda x: x + torch.ones(3), lambda x: x.numpy(), lambda x: x.data_ptr()])
def test_the_simulation_finds_what_is_on_two_devices(mixed: Callable[[Tensor], Any]) -> None:
    with simulated_device() as device, pytest.raises(SimulatedError, match=r"two devices|elsewhere"):
        mixed(torch.ones(3, device=device))
