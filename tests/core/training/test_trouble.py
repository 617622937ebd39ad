"""The training loop in case of trouble: steps that are not finite, interrupts, minibatches of one cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from vxpress.core.config import ModelConfig, Norm, OptimizerName, TrainConfig
from vxpress.core.data import Batch, Cells
from vxpress.core.model import VAE, build
from vxpress.core.training import Outcome, Training, TrainingError, train

MakeCells = Callable[..., Cells]
CONFIG = ModelConfig(n_genes=20, n_latent=3, n_hidden=16)
# 96 cells to train on: three batches in an epoch
TRAIN = TrainConfig(max_epochs=5, batch_size=32)
ROWS = torch.arange(120)


Act = Callable[[int, VAE, Batch], Batch]


class _Acting(Training):
    """Passes the minibatch of every step through ``act``."""

    act: Act

    def step(self, batch: Batch) -> None:
        super().step(self.act(self.outcome.n_steps, self.model, batch))


def _training(cells: Cells, config: TrainConfig, model: ModelConfig, act: Act | None) -> Training:
    kind = Training if act is None else _Acting
    training = kind(
        build(model, 0), cells, ROWS[24:], ROWS[:24], config, seed=0, describe=lambda rows: f"cells {rows.tolist()}"
    )
    if isinstance(training, _Acting) and act is not None:
        training.act = act
    return training


def _train(
    cells: Cells, config: TrainConfig = TRAIN, model: ModelConfig = CONFIG, act: Act | None = None
) -> tuple[VAE, Outcome]:
    training = _training(cells, config, model, act)
    return training.model, training.run()


def _with_library(batch: Batch, value: float) -> Batch:
    log_library_n1 = batch.log_library_n1.clone()
    log_library_n1[0] = value
    return replace(batch, log_library_n1=log_library_n1)


def _bad_cell(cells: Cells, row: int) -> Cells:
    log_library_n1 = cells.log_library_n1.clone()
    log_library_n1[row] = math.inf
    return replace(cells, log_library_n1=log_library_n1)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("max_grad_norm", [0.0, 10.0])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_step_that_is_not_finite_changes_nothing(
    make_cells: MakeCells, optimizer: OptimizerName, max_grad_norm: float, norm: Norm
) -> None:
    weights: list[dict[str, Tensor]] = []

    def act(step: int, model: VAE, batch: Batch) -> Batch:
        weights.append({name: value.detach().clone() for name, value in model.named_parameters()})
        return _with_library(batch, math.inf) if step in (0, 4) else batch

    config = replace(TRAIN, optimizer=optimizer, max_grad_norm=max_grad_norm)
    model, outcome = _train(make_cells(), config, replace(CONFIG, norm=norm), act)
    assert outcome.n_voided == 2
    for step, same in ((0, True), (1, False), (4, True), (5, False)):
        moved = [name for name, value in weights[step].items() if not torch.equal(value, weights[step + 1][name])]
        assert (not moved) == same, (step, moved)
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    assert np.isfinite(outcome.history["elbo_train"]).all()


def test_a_voided_step_does_not_change_the_scale_of_the_mean_per_cell(make_cells: MakeCells) -> None:
    cells = make_cells()
    _, clean = _train(cells, replace(TRAIN, learning_rate=1e-9))
    _, voided = _train(
        cells,
        replace(TRAIN, learning_rate=1e-9),
        act=lambda step, _, batch: _with_library(batch, math.inf) if step == 1 else batch,
    )
    # a third of the cells gave no finite value; the mean is over the others, not over all
    assert voided.history["elbo_train"][0] == pytest.approx(clean.history["elbo_train"][0], rel=0.2)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_running_statistics_survive_a_voided_step(make_cells: MakeCells, norm: Norm) -> None:
    def act(step: int, _: VAE, batch: Batch) -> Batch:
        if step != 1:
            return batch
        matrix = batch.counts.stored[1]
        return replace(batch, counts=replace(batch.counts, matrix=replace(matrix, data=matrix.data * math.inf)))

    model, outcome = _train(make_cells(), model=replace(CONFIG, norm=norm), act=act)
    assert outcome.n_voided == 1
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def test_persistent_trouble_names_the_cell(make_cells: MakeCells) -> None:
    cells = _bad_cell(make_cells(), 77)
    with pytest.raises(TrainingError, match=r"1 of 1 steps.*cells \[77\]"):
        _train(cells, replace(TRAIN, batch_size=500))


def test_a_validation_cell_that_is_not_finite_never_gives_a_best_epoch(make_cells: MakeCells) -> None:
    cells = make_cells()
    _, clean = _train(cells)
    try:
        _, outcome = _train(_bad_cell(cells, 3))
    except TrainingError as error:
        assert "[3]" in str(error)  # noqa: PT017 - an error that names the cell is as good as a record
        return
    recorded = np.array(outcome.history["elbo_validation"])
    assert (~np.isfinite(recorded) | (recorded < 0.5 * np.array(clean.history["elbo_validation"]))).all()


def test_an_interrupt_keeps_the_best_state(make_cells: MakeCells) -> None:
    states: list[dict[str, Tensor]] = []

    def act(step: int, model: VAE, batch: Batch) -> Batch:
        if step and step % 3 == 0:
            states.append({name: value.detach().clone() for name, value in model.state_dict().items()})
        if step == 13:  # in the middle of the fifth epoch
            raise KeyboardInterrupt
        return batch

    training = _training(make_cells(), replace(TRAIN, max_epochs=20, kl_warmup=0.0), CONFIG, act)
    plain = training.objective.final
    # the fourth epoch is the worst
    training.objective.final = lambda means: plain(means) - 1e3 * (len(states) == 3)  # type: ignore[method-assign]
    model, outcome = training.model, training.run()
    assert outcome.stopped == "interrupted"
    assert {len(values) for values in outcome.history.values()} == {4}
    assert outcome.best_epoch == int(np.argmax(outcome.history["objective_validation"])) != 3
    assert all(torch.equal(value, states[outcome.best_epoch][name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_interrupt_before_the_first_epoch_ends_is_an_interrupt(make_cells: MakeCells) -> None:
    def act(_step: int, _model: VAE, _batch: Batch) -> Batch:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(make_cells(), act=act)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize(("n", "batch_size"), [(3, 2), (33, 32)])
def test_training_avoids_minibatches_of_one_cell(make_cells: MakeCells, norm: Norm, n: int, batch_size: int) -> None:
    model = build(replace(CONFIG, norm=norm), 0)
    before = model.decoder.location.weight.detach().clone()
    config = replace(TRAIN, batch_size=batch_size, max_epochs=2)
    outcome = train(model, make_cells(), ROWS[:n], ROWS[100:], config, seed=0)
    assert outcome.n_voided == 0
    assert np.isfinite(outcome.history["elbo_validation"]).all()
    assert not torch.equal(before, model.decoder.location.weight)


def test_every_cell_is_seen_once_in_an_epoch(make_cells: MakeCells) -> None:
    cells, seen = make_cells(), []

    def act(_step: int, _model: VAE, batch: Batch) -> Batch:
        seen.append(batch.log_library_n1[:, 0])
        return batch

    _train(cells, replace(TRAIN, max_epochs=2), act=act)
    epochs = [torch.cat(seen[:3]), torch.cat(seen[3:])]
    for libraries in epochs:
        assert torch.equal(libraries.sort().values, cells.log_library_n1[24:, 0].sort().values)
    assert not torch.equal(*epochs)
