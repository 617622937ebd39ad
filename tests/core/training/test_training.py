"""The training loop: schedule, determinism, learning, selection."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.data import Cells
from vxpress.core.model import VAE, build
from vxpress.core.objectives import ElboObjective
from vxpress.core.training import HISTORY, Outcome, Training, train
from vxpress.core.training.closed_form import covers
from vxpress.core.training.evaluation import evaluate
from vxpress.core.training.schedules import kl_weight

MakeCells = Callable[..., Cells]
CONFIG = ModelConfig(n_genes=20, n_latent=3, n_hidden=16)
TRAIN = TrainConfig(max_epochs=6, batch_size=32)


def _fit(
    cells: Cells, config: TrainConfig = TRAIN, model: ModelConfig = CONFIG, *, seed: int = 0, n_validation: int = 20
) -> tuple[VAE, Outcome]:
    rows, vae = torch.arange(len(cells)), build(model, 0)
    vae.start_from(cells, rows[n_validation:])
    return vae, train(vae, cells, rows[n_validation:], rows[:n_validation], config, seed=seed)


# schedule


@pytest.mark.parametrize("n_steps", [1, 2, 3, 5, 10, 97, 100_000])
@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_warmup_in_steps_ends_after_a_third_and_never_decreases(n_steps: int, beta: float) -> None:
    config = TrainConfig(max_epochs=1, beta=beta)
    weights = [kl_weight(config, step, 0, n_steps) for step in range(n_steps)]
    assert weights == sorted(weights)
    assert all(0 <= weight <= beta for weight in weights)
    # step s starts after s steps, and the final weight is reached at the step that completes the third
    assert set(weights[math.ceil(n_steps / 3) :]) <= {beta}
    assert weights[-1] == beta


def test_a_warmup_over_the_whole_training_still_reaches_beta() -> None:
    config = TrainConfig(max_epochs=1, kl_warmup=1.0)
    assert kl_weight(config, 99, 0, 100) == 1.0
    assert kl_weight(config, 49, 0, 100) == pytest.approx(0.5, abs=0.011)


def test_warmup_in_epochs_is_the_rule_of_scvi_tools() -> None:
    config = TrainConfig(max_epochs=20, beta=2.0, kl_warmup=400.0, warmup_unit="epochs")
    assert [kl_weight(config, 10 * e + 7, e, 200) for e in (0, 1, 19)] == [0.0, 2.0 / 400, 2.0 * 19 / 400]
    assert kl_weight(config, 0, 400, 200) == kl_weight(config, 0, 1000, 200) == 2.0


def test_without_warmup_the_weight_is_beta_from_the_start() -> None:
    for unit in ("steps", "epochs"):
        config = TrainConfig(max_epochs=3, beta=0.7, kl_warmup=0.0, warmup_unit=unit)  # type: ignore[arg-type]
        assert kl_weight(config, 0, 0, 30) == 0.7


def test_the_weight_in_the_history_is_the_weight_used(make_cells: MakeCells) -> None:
    _, outcome = _fit(make_cells(), TrainConfig(max_epochs=9, batch_size=32, beta=2.5, early_stopping=False))
    weights = outcome.history["kl_weight"]
    assert weights[0] < 2.5
    assert weights[3:] == [2.5] * 6


# determinism


@pytest.mark.parametrize(
    ("model", "without_tape"),
    [
        (replace(CONFIG, norm="layer"), True),
        (replace(CONFIG, norm="none"), False),
        (replace(CONFIG, likelihood="zinb", norm="batch", latent_library=True), False),
        (replace(CONFIG, norm="batch"), True),
        (replace(CONFIG, likelihood="zinb", norm="batch"), True),
    ],
)
def test_the_same_seed_gives_the_same_bits(
    make_cells: MakeCells,
    model: ModelConfig,
    without_tape: bool,
    global_noise_untouched: Callable[[], AbstractContextManager[None]],
) -> None:
    cells = make_cells()
    assert covers(build(model, 0), cells, TRAIN) == without_tape
    with global_noise_untouched():
        first, outcome = _fit(cells, model=model, seed=3)
    torch.manual_seed(4321)
    again, outcome_again = _fit(cells, model=model, seed=3)
    other, _ = _fit(cells, model=model, seed=4)
    assert outcome.history == outcome_again.history
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert not torch.equal(first.decoder.location.weight, other.decoder.location.weight)


def test_neighbouring_seeds_share_no_random_stream(make_cells: MakeCells, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise of one seed must not equal the validation noise or the order of another seed."""
    used: list[int] = []

    class Recorder(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            used.append(seed)
            return super().manual_seed(seed)

    monkeypatch.setattr(torch, "Generator", Recorder)
    seen = []
    for seed in (0, 1, 5):
        used.clear()
        _fit(make_cells(), replace(TRAIN, max_epochs=1), seed=seed)
        seen.append(set(used))
    # streams that every training uses for any seed are constants
    constant = set.intersection(*seen)
    assert all(len(own - constant) >= 2 for own in seen)
    assert seen[0] & seen[1] == constant


# learning


def test_training_finds_the_structure_the_data_were_simulated_with(make_cells: MakeCells) -> None:
    cells = make_cells(400, n_genes=20)
    rows = torch.arange(400)
    model = build(CONFIG, 0)
    model.start_from(cells, rows[80:])
    eps_nd = torch.zeros(80, 3)
    objective = ElboObjective(TrainConfig(max_epochs=1), model)
    start = evaluate(model, cells, rows[:80], eps_nd, objective)
    train(model, cells, rows[80:], rows[:80], TrainConfig(max_epochs=60, batch_size=64), seed=0)
    end = evaluate(model, cells, rows[:80], eps_nd, objective)
    assert end.elbo > start.elbo + 10
    # on held-out cells it beats the best model without z: the mean profile with the most likely theta per gene
    x, library = cells.counts.dense(rows).double().numpy(), cells.log_library_n1.double().exp().numpy()
    mean = library * x[80:].sum(0) / library[80:].sum()
    profile = np.max([stats.nbinom.logpmf(x, t, t / (t + mean)).mean(0) for t in np.geomspace(0.02, 50, 60)], axis=0)
    assert end.elbo > profile.sum() + 5


# selection


class _Watched(Training):
    """Collects the weights after every epoch; a script replaces the objective on the validation cells."""

    script: Iterator[float] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.states: list[dict[str, Tensor]] = []
        if self.script is not None:
            self.objective.final = lambda means: next(self.script)  # type: ignore[method-assign, arg-type, misc]

    def epoch(self) -> None:
        super().epoch()
        self.states.append({name: value.clone() for name, value in self.model.state_dict().items()})


def _watched(
    cells: Cells, config: TrainConfig, script: list[float] | None = None, *, n_validation: int = 20
) -> tuple[VAE, Outcome, list[dict[str, Tensor]]]:
    class Scripted(_Watched):
        pass

    Scripted.script = None if script is None else iter(script)
    rows, model = torch.arange(len(cells)), build(CONFIG, 0)
    model.start_from(cells, rows[n_validation:])
    # refitting would change the dispersions afterwards
    config = replace(config, refit_dispersion=False)
    training = Scripted(model, cells, rows[n_validation:], rows[:n_validation], config, seed=0)
    return model, training.run(), training.states


def _is_at(model: VAE, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_kept_state_is_the_best_epoch_after_the_warmup(make_cells: MakeCells) -> None:
    config = TrainConfig(max_epochs=12, batch_size=32, beta=3.0, early_stopping=False, learning_rate=0.05)
    model, outcome, states = _watched(make_cells(), config)
    objective = np.array(outcome.history["objective_validation"])
    warm = np.array(outcome.history["kl_weight"]) >= 3.0
    assert 0 < warm.sum() < 12
    assert outcome.best_epoch == int(np.where(warm, objective, -np.inf).argmax())
    assert _is_at(model, states[outcome.best_epoch])
    assert not model.training


def test_epochs_before_the_end_of_the_warmup_are_not_kept(make_cells: MakeCells) -> None:
    # 10 epochs, warm-up ends in the fifth: the high values of the first epochs are without divergence
    script = [-1.0, -2.0, -3.0, -4.0, -9.0, -8.0, -7.0, -7.5, -8.0, -9.0]
    config = TrainConfig(max_epochs=10, batch_size=32, kl_warmup=0.45, patience=5)
    model, outcome, states = _watched(make_cells(), config, script)
    assert outcome.best_epoch == 6
    assert _is_at(model, states[6])
    assert outcome.stopped == "budget"


def test_early_stopping_after_patience(make_cells: MakeCells) -> None:
    config = TrainConfig(max_epochs=8, batch_size=32, kl_warmup=0.0, patience=3)
    model, outcome, states = _watched(make_cells(), config, [-9.0, -5.0, -6.0, -5.5, -5.2, -1.0, 0.0, 0.0])
    assert outcome.stopped == "early"
    assert outcome.best_epoch == 1
    assert {len(outcome.history[name]) for name in HISTORY} == {5}
    assert _is_at(model, states[1])


@pytest.mark.parametrize("n_validation", [0, 20])
def test_without_validation_or_keep_best_the_last_state_is_kept(make_cells: MakeCells, n_validation: int) -> None:
    config = TrainConfig(max_epochs=4, batch_size=32, kl_warmup=0.0, keep_best=False, early_stopping=False)
    script = [-1.0, -2.0, -3.0, -4.0] if n_validation else None
    model, outcome, states = _watched(make_cells(), config, script, n_validation=n_validation)
    assert outcome.best_epoch == 3
    assert outcome.stopped == "budget"
    assert _is_at(model, states[3])
    if not n_validation:
        assert all(math.isnan(value) for value in outcome.history["elbo_validation"])


def test_the_history_adds_up(make_cells: MakeCells) -> None:
    _, outcome = _fit(make_cells(), replace(TRAIN, beta=3.0))
    history = {name: np.array(values) for name, values in outcome.history.items()}
    for part in ("train", "validation"):
        np.testing.assert_allclose(history[f"elbo_{part}"], history[f"reconstruction_{part}"] - history[f"kl_{part}"])
    np.testing.assert_allclose(
        history["objective_validation"], history["reconstruction_validation"] - 3 * history["kl_validation"]
    )
    assert outcome.n_steps == 6 * math.ceil(100 / 32)
