"""Input product, hidden layer, training step and optimizer, compared with torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vxpress.core import rule
from vxpress.core.config import ModelConfig, OptimizerName, TrainConfig
from vxpress.core.data import Cells
from vxpress.core.kernels import hidden_layer
from vxpress.core.kernels.input_layer import input_product
from vxpress.core.model import build
from vxpress.core.noise import Noise, keep_limit
from vxpress.core.objectives import elbo
from vxpress.core.training import closed_form, train
from vxpress.core.training.optimizer import Optimizer, one_cycle

MakeCells = Callable[..., Cells]


@pytest.mark.parametrize("n_condition", [0, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_input_product(make_cells: MakeCells, n_condition: int, transposed: bool, threads: int) -> None:
    batch = make_cells(40, 30).batch(torch.tensor([3, 39, 3, 0, 17]))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 30 + n_condition, generator=generator)
    weight = (weight.t().contiguous().t() if transposed else weight).requires_grad_()
    bias = torch.randn(7, generator=generator).requires_grad_()
    s = torch.randn(5, n_condition, generator=generator).requires_grad_() if n_condition else None
    x = batch.x_ng.log1p() if s is None else torch.cat((batch.x_ng.log1p(), s), 1)
    inputs = [weight, bias, *([] if s is None else [s])]
    expected = nn.functional.linear(x, weight, bias)
    torch.set_num_threads(threads)
    mine = input_product(batch, weight, bias, s)
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(5, 7, generator=generator)
    for a, b in zip(
        torch.autograd.grad(mine, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    torch.set_num_threads(1)


@pytest.mark.parametrize("keep", [1.0, 0.7])
def test_hidden_layer(keep: float) -> None:
    u = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)).mul_(3).add_(5).requires_grad_()
    mine, theirs = (nn.BatchNorm1d(9, momentum=0.1, eps=1e-3) for _ in range(2))
    for norm in (mine, theirs):
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
        nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(2))
    bits, limit = Noise(0).dropout_bits(u, 1 - keep)
    out = hidden_layer.norm_relu_dropout(u, mine, bits, limit)
    expected = theirs(u).relu()
    if keep < 1:
        expected = expected * Noise(0).dropout(u, keep)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(50, 9, generator=torch.Generator().manual_seed(3))
    gradients = (
        torch.autograd.grad(y, [u, norm.weight, norm.bias], upstream) for y, norm in ((out, mine), (expected, theirs))
    )
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.running_mean, theirs.running_mean)
    torch.testing.assert_close(mine.running_var, theirs.running_var)


STEPS = {
    "plain": {},
    "zinb": {"likelihood": "zinb", "dropout": 0.0},
    "covariates": {"n_categories": (3,), "has_batch": True, "condition_output": True, "encode_covariates": True},
    "per batch": {"n_categories": (3,), "has_batch": True, "dispersion": "gene-batch", "remainder": True},
    "reference": {"likelihood": "zinb", "bias_before_norm": True},
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_without_autograd_gives_the_same_gradient(make_cells: MakeCells, name: str) -> None:
    cells = make_cells(60, 20, n_batches=3)
    cells = replace(cells, counts=_sparser(cells))
    config = ModelConfig(n_genes=20, n_latent=3, n_hidden=12, norm="batch", **{"condition_output": False} | STEPS[name])  # type: ignore[arg-type]
    model, batch = build(config, 0).train(), cells.batch(torch.arange(5, 45))
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


def _sparser(cells: Cells):
    """Return the same counts with most genes set to zero, so that the sparse form runs."""
    from scipy import sparse

    from vxpress.core.data import Counts

    x = cells.counts.dense(torch.arange(len(cells))).numpy()
    x[:, np.arange(x.shape[1]) % 4 != 0] = 0
    return Counts.from_scipy(sparse.csr_matrix(x))


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


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_compiled_and_plain_training_give_the_same_model(make_cells: MakeCells, likelihood: str) -> None:
    cells = make_cells(200, 20)
    cells = replace(cells, counts=_sparser(cells))
    rows, ends = torch.arange(200), []
    config = ModelConfig(
        n_genes=20, n_latent=3, n_hidden=16, norm="batch", likelihood=likelihood, condition_output=False
    )  # type: ignore[arg-type]
    for plain in (False, True):
        model = build(config, 0)
        model.start_from(cells, rows)
        with rule.plain() if plain else torch.enable_grad():
            outcome = train(model, cells, rows[40:], rows[:40], TrainConfig(max_epochs=10, batch_size=32), seed=0)
        ends.append(outcome.history["elbo_validation"])
    np.testing.assert_allclose(*ends, rtol=2e-3)


def test_dropout_masks_keep_the_expected_share() -> None:
    mask = Noise(0).dropout(torch.empty(1000, 100), 0.9)
    assert mask.unique().tolist() == [0.0, pytest.approx((1 << 16) / keep_limit(0.9))]
    assert float(mask.mean()) == pytest.approx(1.0, abs=0.01)


def test_the_rule_does_not_measure_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(time, "perf_counter", lambda: pytest.fail("the time was read"))
    cpu = torch.device("cpu")
    assert rule.compiled_likelihood("nb", "gene", cpu, torch.float32)
    assert not rule.compiled_likelihood("nb", "gene-cell", cpu, torch.float32)
    assert not rule.compiled_likelihood("gaussian", "gene", cpu, torch.float32)
    assert not rule.compiled_likelihood("nb", "gene", cpu, torch.float64)
    assert not rule.compiled_likelihood("nb", "gene", torch.device("cuda"), torch.float32)
    assert rule.product_dtype(256, 128, 2000, training=False) == torch.float32
    assert rule.table_length(256, 1) == rule.TABLE_COUNTS
    assert rule.table_length(256, 10_000) == 2
