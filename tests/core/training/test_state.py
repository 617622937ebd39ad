"""A training that is stored after some epochs and continued in a new process equals one that was never stopped."""

from __future__ import annotations

import copy
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from vxpress._signals import Stopped, StopRequests
from vxpress.core import rule
from vxpress.core.config import ModelConfig, PriorConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts
from vxpress.core.model import build
from vxpress.core.training import Training
from vxpress.core.training.checkpoint import Checkpoint

N, N_VALIDATION, N_GENES, SEED = 120, 24, 20, 5
MODEL = ModelConfig(N_GENES, n_latent=3, n_hidden=16, norm="batch", dropout=0.1)
TRAIN = TrainConfig(max_epochs=6, batch_size=40, kl_warmup=0.4)


def _prior(name: str, **settings: Any) -> dict[str, Any]:
    return {"prior": PriorConfig.of(name, **settings)}  # type: ignore[arg-type]


# settings of the model, and of its training
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "default, plain": ({}, {}),
    "zinb, two batches": ({"likelihood": "zinb", "n_categories": (2,), "has_batch": True}, {}),
    "optional batch": ({"n_categories": (2,), "has_batch": True, "optional": (0,)}, {}),
    "doses of perturbations": ({"n_perturbations": 2, "dose_response": True}, {}),
    "latent library": ({"latent_library": True}, {}),
    "latent library, plain": ({"latent_library": True}, {}),
    "thinning": ({"thinning": 0.8}, {}),
    "soft free bits": ({}, {"free_bits": 0.3, "beta": 2.0}),
    "encoder ahead": ({}, {"encoder_steps": 2, "kl_warmup": 1.0}),
    "encoder ahead, plain": ({}, {"encoder_steps": 2}),
    # the information falls from the second epoch on, and steps of the encoder end in the continued part
    "encoder ahead, ending": ({}, {"encoder_steps": 2, "kl_warmup": 0.0, "beta": 50.0}),
    "capacity": ({}, {"kl_schedule": "capacity", "kl_capacity": 2.0, "beta": 5.0}),
    "vamp": (_prior("vamp", n_components=5), {}),
    "flow": (_prior("flow"), {}),
    "diffusion": (_prior("diffusion"), {}),
    "iwae": ({}, {"objective": "iwae", "n_samples": 3}),
    "dreg, latent library": ({"latent_library": True}, {"objective": "dreg", "n_samples": 2}),
    # the third epoch is without gain, and patience ends in the continued part
    "early stopping": ({}, {"max_epochs": 12, "kl_warmup": 0.0, "patience": 3, "learning_rate": 1.0}),
    "constant rate, no warm-up": ({"norm": "layer"}, {"schedule": "constant", "optimizer": "adam", "kl_warmup": 0.0}),
}


def _cells(shift: float = 0.0) -> Cells:
    rng = np.random.default_rng(7)
    rho = np.exp(rng.normal(size=(N, 2)) @ rng.normal(size=(2, N_GENES)) * 1.5 + rng.normal(size=N_GENES))
    library = rng.lognormal(np.log(400), 0.3, size=(N, 1))
    x = rng.poisson(library * rho / rho.sum(1, keepdims=True)).astype(np.float32)
    dose = torch.arange(2 * N).reshape(N, 2) % 3 / 2
    covariates = Covariates(torch.arange(N)[:, None] % 2, torch.zeros(N, 0), None, dose)
    log_library = torch.tensor(np.log(library) + shift, dtype=torch.float32)
    return Cells(Counts.from_scipy(sparse.csr_matrix(x)), log_library, covariates)


def _other_genes() -> Cells:
    """Return the same cells with their genes in another order, so that every library stays as it is."""
    cells = _cells()
    return replace(cells, counts=Counts.from_dense(cells.counts.dense(torch.arange(N)).flip(1)))


def _other_batches() -> Cells:
    """Return the same cells with their batches swapped."""
    cells = _cells()
    swapped = replace(cells.covariates, categorical_nk=1 - cells.covariates.categorical_nk)
    return replace(cells, covariates=swapped)


def _other_doses() -> Cells:
    """Return the same cells with twice the doses."""
    cells = _cells()
    return cells.with_covariates(cells.covariates.with_doses(2 * (torch.arange(2 * N).reshape(N, 2) % 3 / 2)))


def _training(name: str, seed: int = SEED, cells: Cells | None = None, **others: Any) -> Training:
    of_model, of_training = CASES[name]
    cells, rows = _cells() if cells is None else cells, torch.arange(N)
    model = build(replace(MODEL, **of_model), 0)
    model.start_from(cells, rows[N_VALIDATION:])
    for block in model.blocks.values():
        block.start_from(cells, rows[N_VALIDATION:], torch.Generator().manual_seed(1))
    config = replace(TRAIN, **(of_training | others))
    return Training(model, cells, rows[N_VALIDATION:], rows[:N_VALIDATION], config, seed=seed)


def _implementation(name: str) -> Any:
    return rule.plain() if name.endswith("plain") else nullcontext()


def _result(training: Training) -> dict[str, Any]:
    return {"weights": training.model.state_dict(), "outcome": training.outcome.state_dict()}


def _continue(folder: Path) -> None:
    """Continue every stored training; this is what the new process does."""
    for name in CASES:
        with _implementation(name):
            training = _training(name)
            training.load_state_dict(torch.load(folder / f"{name}.state", weights_only=True))
            training.run()
        torch.save(_result(training), folder / f"{name}.result")


def _state_after(training: Training, n_steps: int) -> dict[str, Any]:
    """Stop a training after some steps, as a signal does, and return its checkpoint."""
    store, requests = Kept(), StopRequests(lambda: "")
    step = training.step

    def noted(batch: Any) -> None:
        step(batch)
        if training.outcome.n_steps == n_steps:
            requests.received = signal.SIGTERM

    training.step = noted  # type: ignore[method-assign]
    training.checkpoint = Checkpoint(store, math.inf, requests)
    with pytest.raises(Stopped):
        training.run()
    assert training.outcome.n_steps == n_steps
    (state,) = store.states
    return state


class Kept:
    """Keeps every state in memory."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def load(self) -> dict[str, Any] | None:
        return self.states[-1] if self.states else None

    def save(self, state: dict[str, Any]) -> None:
        self.states.append(state)


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Store all trainings within the fourth epoch and continue them in one new process; return the result by name."""
    folder = tmp_path_factory.mktemp("trainings")
    for i, name in enumerate(CASES):
        with _implementation(name):
            training = _training(name)
            # after the first, second or last of three steps
            torch.save(_state_after(training, 3 * training.n_minibatches + 1 + i % 3), folder / f"{name}.state")
    command = [sys.executable, str(Path(__file__)), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return lambda name: torch.load(folder / f"{name}.result", weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_a_training_continued_in_a_new_process_has_the_same_bits(
    continued: Callable[[str], dict[str, Any]], name: str
) -> None:
    with _implementation(name):
        whole = _training(name)
        whole.run()
    found = continued(name)
    expected = _result(whole)
    assert found["weights"].keys() == expected["weights"].keys()
    for key, value in expected["weights"].items():
        assert torch.equal(found["weights"][key], value), key
    assert found["outcome"] == expected["outcome"]
    assert whole.outcome.n_epochs > 3
    if name == "early stopping":
        assert whole.outcome.stopped == "early"
        # patience had begun when the state was stored
        assert whole.outcome.best_epoch < 2
    if name == "encoder ahead, ending":
        steps = whole.outcome.history["encoder_steps"]
        assert steps[3] == 2
        assert steps[-1] == 0


def test_a_paused_training_goes_on_in_the_same_process() -> None:
    whole, paused = _training("soft free bits"), _training("soft free bits")
    whole.run()
    for epoch in (1, 1, 2, 5):
        paused.run(until=epoch)
        assert paused.outcome.n_epochs == epoch
        assert not paused.model.training
    outcome = paused.run()
    assert outcome == whole.outcome
    assert all(torch.equal(value, whole.model.state_dict()[key]) for key, value in paused.model.state_dict().items())
    # there is nothing left to do
    assert paused.run() is outcome
    assert outcome.n_epochs == 6


def test_a_pause_keeps_the_schedule_of_the_whole_budget() -> None:
    training = _training("default")
    rates = list(training.run(until=2).history["lr"])
    assert rates == training.run().history["lr"][:2]
    assert len(training.outcome.history["lr"]) == 6


def test_a_state_is_a_copy_and_loading_it_undoes_later_epochs() -> None:
    training = _training("encoder ahead")
    training.run(until=2)
    state = training.state_dict()
    before = copy.deepcopy(state)
    training.run(until=4)
    _equal(state, before)
    training.load_state_dict(state)
    _equal(training.state_dict(), before)
    _equal(training.run(until=4).state_dict(), _training("encoder ahead").run(until=4).state_dict())


def _equal(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            _equal(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("name", ["default", "encoder ahead", "soft free bits", "diffusion"])
def test_a_state_consists_of_plain_values(name: str) -> None:
    training = _training(name)
    training.run(until=1)

    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert all(type(key) is str for key in value)
        if isinstance(value, (dict, list)):
            for part in value.values() if isinstance(value, dict) else value:
                check(part)
        else:
            assert type(value) in (torch.Tensor, int, float, str, bool)

    check(training.state_dict())


def test_a_finished_training_is_stored_as_such() -> None:
    training = _training("default")
    outcome = training.run()
    other = _training("default")
    other.load_state_dict(training.state_dict())
    assert other.run() == outcome
    assert not other.model.training
    assert all(parameter.grad is None for parameter in other.model.parameters())
    assert all(torch.equal(value, other.model.state_dict()[key]) for key, value in training.model.state_dict().items())
    with pytest.raises(RuntimeError, match="new Training"):
        training.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"seed": 6}, "seed is 5 in the state and 6 here"),
        ({"max_epochs": 7}, "training.max_epochs is 6 in the state and 7 here"),
        ({"name": "latent library"}, "model.latent_library is False in the state and True here"),
        ({"name": "vamp"}, "model.prior.name is 'normal' in the state and 'vamp' here"),
        ({"cells": _cells(0.1)}, "the library size of each cell differs"),
        ({"cells": _cells().take(torch.arange(N - 1, -1, -1))}, "the library size of each cell differs"),
        ({"cells": _other_genes()}, "another training: the sum of the counts of each gene differs. "),
        ({"cells": _other_batches()}, "another training: the category of each cell differs. "),
        ({"cells": _other_doses()}, "another training: the dose of each perturbation in each cell differs. "),
    ],
)
def test_the_state_of_another_training_is_refused(other: dict[str, Any], named: str) -> None:
    training = _training("default")
    training.run(until=1)
    different = _training(**({"name": "default"} | other))
    before = copy.deepcopy(different.model.state_dict())
    with pytest.raises(ValueError, match="another training") as error:
        different.load_state_dict(training.state_dict())
    assert named in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in different.model.state_dict().items())


def test_other_gene_panels_are_refused() -> None:
    def training(*, gene: int, first: int) -> Training:
        cells, rows = _cells(), torch.arange(N)
        panel_n = (rows >= first).long()
        cells = cells.with_covariates(replace(cells.covariates, panel_n=panel_n))
        model = build(replace(MODEL, n_panels=2, norm="layer"), 0)
        measured_pg = torch.ones(2, MODEL.n_genes, dtype=torch.bool)
        measured_pg[0, gene] = False
        assert model.panels is not None
        model.panels.set(measured_pg)
        return Training(model, cells, rows[N_VALIDATION:], rows[:N_VALIDATION], TRAIN, seed=SEED)

    state = training(gene=0, first=N // 2).state_dict()
    with pytest.raises(ValueError, match=r"training: the table of gene panels differs\. "):
        training(gene=1, first=N // 2).load_state_dict(state)
    with pytest.raises(ValueError, match=r"training: the gene panel of each cell differs\. "):
        training(gene=0, first=N // 3).load_state_dict(state)


def test_another_choice_of_cells_is_refused() -> None:
    training = _training("default")
    state = training.state_dict()
    training.validation_rows, training.train_rows = training.train_rows[:24], training.train_rows.flip(0)
    with pytest.raises(
        ValueError, match=r"the choice of training cells differs; the choice of validation cells differs"
    ):
        training.load_state_dict(state)


def test_what_is_not_a_state_is_refused() -> None:
    training = _training("default")
    state = training.state_dict()
    for wrong, named in (
        (training.model.state_dict(), r"not the state of a training.*state_dict\(\)"),
        ([], "A list was given"),
        (state | {"version": 99}, "version 99.*reads version 2"),
        ({key: value for key, value in state.items() if key != "noise"}, "lacks noise"),
    ):
        with pytest.raises(ValueError, match=named):
            training.load_state_dict(wrong)  # type: ignore[arg-type]


if __name__ == "__main__":
    _continue(Path(sys.argv[1]))
