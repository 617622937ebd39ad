"""Steps of the encoder alone: which weights they change, what they gain, and when they end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vxpress.core import rule
from vxpress.core.config import ModelConfig, OptimizerName, TrainConfig
from vxpress.core.data import Cells
from vxpress.core.model import VAE, build
from vxpress.core.training import Training, train
from vxpress.core.training.encoder_ahead import PATIENCE, EncoderAhead, held_out_information
from vxpress.core.training.optimizer import BETAS, Optimizer, TorchAdam
from vxpress.metrics import mutual_information

MakeCells = Callable[..., Cells]
CONFIG = ModelConfig(n_genes=20, n_latent=3, n_hidden=16, norm="batch", condition_output=False, dropout=0.0)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("latent_library", [False, True])
def test_only_the_encoder_moves(make_cells: MakeCells, plain: bool, latent_library: bool) -> None:
    config = TrainConfig(max_epochs=1, encoder_steps=2, weight_decay=0.1, max_grad_norm=1.0)
    cells = make_cells(60, 20)
    model = build(ModelConfig(**{**vars(CONFIG), "latent_library": latent_library}), 0).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with rule.plain() if plain else nullcontext():
        training = Training(model, cells, torch.arange(50), torch.arange(50, 60), config, seed=0)
        optimizer = training.optimizer
        for _ in range(3):
            training.stepper.lead(cells.batch(torch.arange(30)), 1.0, 0.0)
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {n for n in before if ".encoder." in n and _trained(model, n)}
        assert training.stepper.totals.n_cells == 0.0
        assert optimizer.done == 0
        assert not bool(optimizer.gradient.any())
        middle = {name: p.detach().clone() for name, p in model.named_parameters()}
        training.step(cells.batch(torch.arange(30)))
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, middle[name])}
        assert moved == {name for name in before if _trained(model, name)}


def _trained(model: VAE, name: str) -> bool:
    return model.get_parameter(name).requires_grad


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_leading_weights_have_separate_moments_and_step_counts(plain: bool, kind: OptimizerName) -> None:
    """Compare with two optimizers of torch, one of which takes more steps."""
    config = TrainConfig(
        max_epochs=1, optimizer=kind, schedule="constant", learning_rate=0.05, weight_decay=0.01, adam_eps=1e-3
    )
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(5, 3, generator=draw), torch.randn(7, generator=draw), torch.randn(4, 6, generator=draw)]
    mine, theirs = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    with rule.plain() if plain else nullcontext():
        optimizer = Optimizer(config, mine, 12, n_leading=2)
        assert isinstance(optimizer.adam, TorchAdam) == plain
        kinds = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
        settings = {"lr": 0.05, "weight_decay": 0.01, "eps": 1e-3, "betas": BETAS}
        ahead, behind = kinds(theirs[:2], **settings), kinds(theirs[2:], **settings)  # type: ignore[arg-type]
        for leading in (True, True, False, True, False, False):
            for p, q in zip(mine, theirs, strict=True):
                assert p.grad is not None
                q.grad = torch.randn(p.shape, generator=draw)
                p.grad.copy_(q.grad)
            (optimizer.step_leading if leading else optimizer.step)(torch.zeros(()))
            ahead.step()
            if not leading:
                behind.step()
            for p, q in zip(mine, theirs, strict=True):
                torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
        # a NaN in the leading weights is detected, and the step changes nothing
        held = [p.detach().clone() for p in mine]
        for bad, voided in ((2, 0.0), (0, 1.0)):
            mine[bad].grad.fill_(float("nan"))  # type: ignore[union-attr]
            assert float(optimizer.step_leading(torch.zeros(()))) == voided
            assert not bool(optimizer.gradient.any())
        assert torch.equal(mine[2], held[2])
        assert all(bool(torch.isfinite(p).all()) for p in mine)


def _information_after(cells: Cells, encoder_steps: int, seed: int) -> tuple[float, list[float]]:
    model, rows = build(CONFIG, seed), torch.arange(len(cells))
    model.start_from(cells, rows[100:])
    config = TrainConfig(
        max_epochs=2, batch_size=64, encoder_steps=encoder_steps, kl_warmup=1.0, learning_rate=0.01, keep_best=False
    )
    outcome = train(model, cells, rows[100:], rows[:100], config, seed=seed)
    return held_out_information(model, cells, rows[:100]), outcome.history.get("encoder_steps", [])


def test_early_information_is_higher(make_cells: MakeCells) -> None:
    cells = make_cells(400, 20)
    plain, ahead = ([_information_after(cells, k, seed)[0] for seed in range(3)] for k in (0, 5))
    assert min(ahead) > max(plain)


def test_encoder_steps_end_once_information_no_longer_grows(
    make_cells: MakeCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = iter([1.0, 2.0, 1.9, 1.95, 2.1, 2.0, 2.1, 0.1])
    monkeypatch.setattr("vxpress.core.training.encoder_ahead.held_out_information", lambda *_: next(script))
    cells, rows = make_cells(120), torch.arange(120)
    config = TrainConfig(max_epochs=10, batch_size=32, encoder_steps=2, early_stopping=False)
    outcome = train(build(CONFIG, 0), cells, rows[20:], rows[:20], config, seed=0)
    # epochs are numbered by their steps
    assert outcome.history["encoder_steps"] == [2.0] * 8 + [0.0] * 2
    assert outcome.n_steps == 10 * 4


def test_nan_counts_as_no_growth(make_cells: MakeCells, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vxpress.core.training.encoder_ahead.held_out_information", lambda *_: float("nan"))
    ahead = EncoderAhead(3, torch.arange(10), torch.arange(0), seed=0)
    for _ in range(PATIENCE):
        ahead.judge(build(CONFIG, 0), make_cells(10))
    assert ahead.n_steps == 0


def test_without_held_out_cells_training_cells_are_used() -> None:
    ahead = EncoderAhead(3, torch.arange(10, 20), torch.arange(0), seed=0)
    assert sorted(ahead.judged_rows.tolist()) == list(range(10, 20))
    rows = ahead.rows(500)
    assert set(rows.tolist()) == set(range(10, 20))


class _Known(nn.Module):
    """A model with given posteriors."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.loc, self.scale = loc, scale

    def posterior(self, batch: object) -> object:
        from vxpress.core.normal import DiagonalNormal

        rows = batch.rows  # type: ignore[attr-defined]
        return {"z": DiagonalNormal(self.loc[rows], self.scale[rows])}


@pytest.mark.parametrize("spread", [0.0, 0.5, 30.0])
def test_the_information_is_that_of_the_mixture_of_all_posteriors(make_cells: MakeCells, spread: float) -> None:
    draw = torch.Generator().manual_seed(0)
    loc, scale = torch.randn(700, 2, generator=draw) * spread, torch.rand(700, 2, generator=draw) * 0.1 + 0.9
    found = held_out_information(_Known(loc, scale), make_cells(700), torch.arange(700))  # type: ignore[arg-type]
    q = Independent(Normal(loc.double(), scale.double()), 1)
    aggregate = MixtureSameFamily(Categorical(torch.ones(700, dtype=torch.float64)), q)
    z_nd = loc + scale * torch.randn(700, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert found == pytest.approx(float((q.log_prob(z_nd) - aggregate.log_prob(z_nd)).mean()), abs=1e-9)
    assert found == pytest.approx(mutual_information(loc.numpy(), scale.square().numpy()), abs=0.1)
    assert found <= np.log(700) + 1e-9
    if spread == 0.0:
        assert found == pytest.approx(0.0, abs=0.02)
