"""Checkpoints of a training: when they are written, and how a request to stop ends it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from vxpress._signals import Stopped, StopRequests
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import ByBlock, Cells, Counts, Joined
from vxpress.core.model import build
from vxpress.core.training import Training
from vxpress.core.training import training as of_training
from vxpress.core.training.checkpoint import Checkpoint
from vxpress.core.training.state import identity

N, N_VALIDATION, N_GENES, N_EPOCHS, N_STEPS = 100, 20, 12, 2, 4


class Kept:
    """Keeps every state in memory."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def load(self) -> dict[str, Any] | None:
        return self.states[-1] if self.states else None

    def save(self, state: dict[str, Any]) -> None:
        self.states.append(state)


@pytest.fixture
def training() -> Callable[..., Training]:
    """Return a function that makes the same training of two epochs of two steps, with checkpoints or not."""

    def make(checkpoint: Checkpoint | None = None) -> Training:
        x = np.random.default_rng(0).poisson(3.0, size=(N, N_GENES)).astype(np.float32)
        log_library = torch.tensor(np.log(x.sum(1, keepdims=True)), dtype=torch.float32)
        nothing = Covariates(torch.zeros(N, 0, dtype=torch.long), torch.zeros(N, 0))
        cells = Cells(Counts.from_scipy(sparse.csr_matrix(x)), log_library, nothing)
        model, rows = build(ModelConfig(N_GENES, n_latent=2, n_hidden=4), 0), torch.arange(N)
        config = TrainConfig(max_epochs=N_EPOCHS, batch_size=40)
        split = rows[N_VALIDATION:], rows[:N_VALIDATION]
        return Training(model, cells, *split, config, seed=0, checkpoint=checkpoint)

    return make


def checkpointed(seconds: float) -> tuple[Checkpoint, Kept, StopRequests]:
    store, requests = Kept(), StopRequests(lambda: f"{len(store.states)} stored")
    return Checkpoint(store, seconds, requests), store, requests


def same(one: Training, other: Training) -> bool:
    weights = other.model.state_dict()
    return one.outcome == other.outcome and all(
        torch.equal(value, weights[name]) for name, value in one.model.state_dict().items()
    )


def test_every_state_on_the_way_leads_to_the_same_end(training: Callable[..., Training]) -> None:
    plain = training()
    plain.run()
    checkpoint, store, _ = checkpointed(0.0)
    watched = training(checkpoint)
    watched.run()
    assert same(watched, plain)
    # one after each step, and the end
    assert [state["outcome"]["n_steps"] for state in store.states] == [*range(1, N_STEPS + 1), N_STEPS]
    assert [state["finished"] for state in store.states] == [False] * N_STEPS + [True]
    for state in store.states:
        continued = training()
        continued.load_state_dict(state)
        continued.run()
        assert same(continued, plain)


def test_nothing_is_written_before_it_is_time_except_the_end(
    training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    checkpoint, store, _ = checkpointed(60.0)
    watched = training(checkpoint)
    step = watched.step

    def slow(batch: Any) -> None:
        step(batch)
        now[0] += 25.0

    watched.step = slow  # type: ignore[method-assign]
    watched.run()
    # steps end after 25, 50, 75 and 100 seconds
    assert [state["outcome"]["n_steps"] for state in store.states] == [3, 4]
    assert store.states[-1]["finished"]


@pytest.mark.parametrize(("part", "n_steps"), [("step", 1), ("validate", 2), ("check", 3), ("finish", 4)])
def test_a_request_in_any_part_of_a_training_loses_no_step(
    training: Callable[..., Training], part: str, n_steps: int
) -> None:
    checkpoint, store, requests = checkpointed(1e9)
    stopped = training(checkpoint)
    whole = getattr(stopped, part)
    with requests:

        def asked(*args: Any) -> Any:
            signal.raise_signal(signal.SIGTERM)
            return whole(*args)

        setattr(stopped, part, asked)
        with pytest.raises(Stopped, match="stopped by SIGTERM; 1 stored") as end:
            stopped.run()
    assert end.value.code == 143
    (state,) = store.states
    assert state["outcome"]["n_steps"] == n_steps
    plain, continued = training(), training()
    plain.run()
    continued.load_state_dict(state)
    continued.run()
    assert same(continued, plain)


@pytest.mark.parametrize("part", ["evaluate", "settle"])
def test_ctrl_c_ends_a_training_but_not_one_that_continues_from_its_checkpoint(
    training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    plain, continued = training(), training()
    plain.run()
    checkpoint, store, _ = checkpointed(0.0)
    pressed = training(checkpoint)
    with monkeypatch.context() as patch:
        # evaluate runs after each epoch, settle at the end
        whole = getattr(of_training, part)

        def interrupted(*args: Any) -> Any:
            if pressed.outcome.n_steps == N_STEPS:
                raise KeyboardInterrupt
            return whole(*args)

        patch.setattr(of_training, part, interrupted)
        pressed.run()
    assert pressed.outcome.interrupted
    assert all(state["outcome"]["stopped"] == "budget" for state in store.states)
    continued.load_state_dict(store.states[-1])
    continued.run()
    assert same(continued, plain)


def test_signals_of_other_code_stay_its_own() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with StopRequests(lambda: "") as requests:
            signal.raise_signal(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        assert requests.received is None
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_request_that_is_held_is_raised_at_the_end_of_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    reached = []

    def held_twice(requests: StopRequests) -> None:
        with requests.held():
            with requests.held():
                signal.raise_signal(signal.SIGTERM)
            reached.append(1)
        reached.append(2)

    with StopRequests(lambda: "") as requests, pytest.raises(Stopped):
        held_twice(requests)
    assert reached == [1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_state_knows_the_cells_of_every_modality_and_the_order(training: Callable[..., Training]) -> None:
    def described(protein: float, *, lacking: bool = False, buffer: int = 4) -> dict[str, Any]:
        made = training()
        cells = made.source
        proteins = cells.with_library(cells.log_library_n1 + protein)
        observed = torch.arange(N) % 3 > 0 if lacking else torch.ones(N, dtype=torch.bool)
        made.source = Joined(cells, {"protein": proteins}, {"protein": observed})
        made.sampler = ByBlock(made.train_rows, made.n_minibatches, 0, block=8, buffer=buffer)
        return identity(made)

    same_again = described(0.0)
    assert described(0.0) == same_again
    for other, named in (
        (described(0.5), "size factor of each cell in protein"),
        (described(0.0, lacking=True), "choice of cells that have protein"),
        (described(0.0, buffer=5), "order of cells"),
    ):
        assert [name for name in {**other, **same_again} if other.get(name) != same_again.get(name)] == [named]
