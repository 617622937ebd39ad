"""Adam in torch operations, as used on devices, compared with torch's own; voided updates."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vxpress.core import rule
from vxpress.core.config import OptimizerName, TrainConfig
from vxpress.core.training.optimizer import BETAS, Optimizer, TorchAdam, one_cycle


@pytest.mark.parametrize("kind", ["adam", "adamw"])
@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_adam_is_torchs(kind: OptimizerName, max_norm: float) -> None:
    config = TrainConfig(max_epochs=1, optimizer=kind, weight_decay=0.03, max_grad_norm=max_norm)
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(37, generator=draw, dtype=torch.float64)
    mine, gradient = nn.Parameter(start.clone()), torch.zeros(37, dtype=torch.float64)
    adam = TorchAdam(config, mine, gradient)
    reference = nn.Parameter(start.clone())
    theirs = (torch.optim.AdamW if kind == "adamw" else torch.optim.Adam)(
        [reference], eps=config.adam_eps, weight_decay=config.weight_decay
    )
    loss = torch.zeros((), dtype=torch.float64)
    for step in range(30):
        new = torch.randn(37, generator=draw, dtype=torch.float64)
        lr, momentum = 0.01 + 1e-3 * step, 0.95 - 2e-3 * step
        reference.grad = new.clone()
        if max_norm:
            nn.utils.clip_grad_norm_([reference], max_norm)
        theirs.param_groups[0].update(lr=lr, betas=(momentum, BETAS[1]))
        theirs.step()
        gradient.copy_(new)
        assert float(adam.step(loss, lr, momentum)) == 0.0
        assert not bool(gradient.any())
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
@pytest.mark.parametrize("max_norm", [0.0, 0.5])
@pytest.mark.parametrize("trouble", ["nan", "inf", "loss"])
def test_a_voided_update_has_no_effect(kind: OptimizerName, max_norm: float, trouble: str) -> None:
    config = TrainConfig(max_epochs=1, optimizer=kind, weight_decay=0.03, max_grad_norm=max_norm)

    def run(void_at: tuple[int, ...]) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        flat, gradient = nn.Parameter(torch.randn(9, generator=draw)), torch.zeros(9)
        adam = TorchAdam(config, flat, gradient)
        for step in range(6):
            if step in void_at:
                before, taken = flat.detach().clone(), adam.taken.clone()
                gradient.fill_(1.0)
                gradient[3] = 1.0 if trouble == "loss" else float(trouble)
                assert float(adam.step(torch.tensor(float("nan") if trouble == "loss" else 0.0), 0.1, 0.9)) == 1.0
                assert torch.equal(flat, before)
                assert torch.equal(adam.taken, taken)
                assert not bool(gradient.any())
            gradient.copy_(torch.randn(9, generator=draw))
            adam.step(torch.zeros(()), 0.1, 0.9)
        return flat.detach()

    assert torch.equal(run(()), run((0, 3)))


@pytest.mark.parametrize("saved_plain", [False, True])
@pytest.mark.parametrize("loaded_plain", [False, True])
def test_a_loaded_state_continues_with_the_same_steps(saved_plain: bool, loaded_plain: bool) -> None:
    """The compiled implementation and that in torch operations read each other's states."""
    config = TrainConfig(max_epochs=1)

    def steps(optimizer: Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            draw = torch.Generator().manual_seed(step)
            for p in optimizer.parameters:
                assert p.grad is not None
                p.grad.copy_(torch.randn(p.shape, generator=draw))
            (optimizer.step_leading if step % 3 == 0 else optimizer.step)(torch.zeros(()))

    def start(plain: bool) -> Optimizer:
        weights = [nn.Parameter(torch.ones(5, 3)), nn.Parameter(torch.ones(7))]
        with rule.plain() if plain else nullcontext():
            return Optimizer(config, weights, 8, n_leading=1)

    whole = start(saved_plain)
    steps(whole, 0, 4)
    state, weights = whole.state_dict(), [p.detach().clone() for p in whole.parameters]
    steps(whole, 4, 8)
    resumed = start(loaded_plain)
    resumed.load_state_dict(state)
    for p, value in zip(resumed.parameters, weights, strict=True):
        p.data.copy_(value)
    steps(resumed, 4, 8)
    exact = saved_plain == loaded_plain
    for p, q in zip(resumed.parameters, whole.parameters, strict=True):
        torch.testing.assert_close(p, q, rtol=0.0 if exact else 1e-5, atol=0.0 if exact else 1e-6)
    assert resumed.lr == whole.lr


@pytest.mark.parametrize("kind", ["adam", "adamw"])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_compiled_optimizer_equals_torchs(kind: OptimizerName, max_grad_norm: float, threads: int) -> None:
    config = TrainConfig(
        max_epochs=1, optimizer=kind, learning_rate=0.05, weight_decay=0.01, adam_eps=1e-3, max_grad_norm=max_grad_norm
    )
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(5, 3, generator=generator), torch.randn(4, 6, generator=generator).t()]
    mine, theirs = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    optimizer = Optimizer(config, mine, 12)
    reference = (torch.optim.AdamW if kind == "adamw" else torch.optim.Adam)(
        theirs, lr=0.05, weight_decay=0.01, eps=1e-3
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(reference, 0.05, total_steps=13)
    torch.set_num_threads(threads)
    for _ in range(12):
        gradients = [torch.randn(w.shape, generator=generator) for w in start]
        for p, q, g in zip(mine, theirs, gradients, strict=True):
            assert p.grad is not None
            p.grad.copy_(g)
            q.grad = g.clone()
        if max_grad_norm:
            nn.utils.clip_grad_norm_(theirs, max_grad_norm)
        assert optimizer.lr == pytest.approx(reference.param_groups[0]["lr"], rel=1e-6)
        optimizer.step(torch.zeros(()))
        reference.step()
        schedule.step()
        for p, q in zip(mine, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
            assert not p.grad.any()  # type: ignore[union-attr]
    torch.set_num_threads(1)
    optimizer.release()
    assert all(p.grad is None and not hasattr(p, "grad_sink") for p in mine)
    assert mine[0].untyped_storage().nbytes() == mine[0].numel() * 4


def test_both_optimizers_discard_a_step_that_is_not_finite() -> None:
    for plain in (False, True):
        p = nn.Parameter(torch.ones(3))
        with rule.plain() if plain else torch.enable_grad():
            optimizer = Optimizer(TrainConfig(max_epochs=1), [p], 5)
        for loss, gradient in ((np.nan, 1.0), (0.0, np.inf)):
            p.grad.fill_(gradient)  # type: ignore[union-attr]
            assert float(optimizer.step(torch.tensor(loss))) == 1
            assert torch.equal(p, torch.ones(3))
            assert not p.grad.any()  # type: ignore[union-attr]


def test_one_cycle_equals_torchs() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([p], lr=0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=101)
    for step in range(101):
        lr, momentum = one_cycle(step, 100)
        group = optimizer.param_groups[0]
        assert (0.3 * lr, momentum) == pytest.approx((group["lr"], group["betas"][0]), rel=1e-9), step
        if step < 100:
            optimizer.step()
            schedule.step()
