"""What each of several processes runs: trainings of the same cells, whose results are written for the tests to compare."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy import sparse

from vxpress._signals import Stopped, StopRequests
from vxpress.core import rule
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Batch, ByBlock, Cells, Counts, Mapped, Sampler, Source
from vxpress.core.model import build
from vxpress.core.parallel import World, world_from_environment
from vxpress.core.training import Training, step
from vxpress.core.training.checkpoint import Checkpoint

N_CELLS, N_VALIDATION = 403, 41
MODEL = ModelConfig(n_genes=20, n_latent=3, n_hidden=16)
TRAIN = TrainConfig(max_epochs=4, batch_size=64)
# within the second epoch of six steps
STOP = 8
CONFIGS = {
    "default": (MODEL, TRAIN),
    "free bits": (MODEL, replace(TRAIN, free_bits=0.1, free_bits_form="soft")),
    "capacity": (MODEL, replace(TRAIN, kl_schedule="capacity", kl_capacity=2.0, beta=5.0)),
    "ahead": (MODEL, replace(TRAIN, encoder_steps=1)),
    "iwae": (MODEL, replace(TRAIN, objective="iwae", n_samples=3)),
}


def simulated(n: int = N_CELLS) -> Cells:
    """Negative binomial counts with two latent dimensions."""
    rng = np.random.default_rng(3)
    rho = np.exp(rng.normal(size=(n, 2)) @ rng.normal(size=(2, 20)) * 1.5 + rng.normal(size=20))
    rho /= rho.sum(1, keepdims=True)
    library = rng.lognormal(np.log(400), 0.3, size=(n, 1))
    x = rng.poisson(rng.gamma(5.0, library * rho / 5.0)).astype(np.float32)
    covariates = Covariates(torch.zeros(n, 1, dtype=torch.int64), torch.zeros(n, 0))
    return Cells(
        Counts.from_scipy(sparse.csr_matrix(x)), torch.tensor(np.log(library), dtype=torch.float32), covariates
    )


@contextmanager
def _form_of_a_gpu() -> Iterator[None]:
    """Within this block, trainings on the processor use the step of a GPU that several processes share."""
    with rule.plain(), patch.object(step, "Step", step.SharedDeviceStep):
        yield


FORMS: dict[str, Callable[[], AbstractContextManager[None]]] = {"plain": rule.plain, "form of a GPU": _form_of_a_gpu}
# further trainings with two processes
FURTHER = ("by block", *FORMS)


class SmallBlocks(Mapped):
    """Cells in files, in blocks that are small enough for these few cells."""

    def sampler(self, rows: torch.Tensor, n_minibatches: int, seed: int) -> Sampler:
        return ByBlock(rows, n_minibatches, seed, block=8, buffer=4)


def trainings(name: str, world: World, *, mapped: bool = False) -> Training:
    """Return a training of the simulated cells."""
    cells, (model_config, train_config) = simulated(), CONFIGS[name]
    source: Source = cells
    if mapped:
        source = SmallBlocks.of(cells.counts, cells.log_library_n1, cells.covariates, torch.device("cpu"))
    model, rows = build(model_config, 0), torch.arange(N_CELLS)
    model.start_from(cells, rows[N_VALIDATION:])
    return Training(model, source, rows[N_VALIDATION:], rows[:N_VALIDATION], train_config, seed=0, world=world)


class Kept:
    """Keeps every state in memory."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def load(self) -> dict[str, Any] | None:
        return self.states[-1]

    def save(self, state: dict[str, Any]) -> None:
        self.states.append(state)


def stopped_and_continued(name: str, world: World) -> dict[str, Any]:
    """Ask the second process to stop within an epoch, and continue the training from the checkpoint of the first."""
    store = Kept()
    with StopRequests(lambda: "") as requests:
        training = trainings(name, world)
        training.checkpoint = Checkpoint(store, 1e9, requests)
        taken = training.step

        def asked(batch: Batch) -> None:
            taken(batch)
            if world.rank == 1 and training.outcome.n_steps == STOP:
                os.kill(os.getpid(), signal.SIGTERM)

        training.step = asked  # type: ignore[method-assign]
        status = 0
        try:
            training.run()
        except Stopped as stopped:
            status = stopped.status
    continued = trainings(name, world)
    continued.load_state_dict(training.checkpoint.load(world) or {})
    continued.run()
    return {
        "model": continued.model.state_dict(),
        "outcome": continued.outcome.state_dict(),
        "stopped": [status, training.outcome.n_steps, len(store.states)],
    }


def with_accident(folder: Path, what: Callable[[], object]) -> None:
    """Let something happen to the second process in the middle of a training."""
    world = world_from_environment()
    training = trainings("default", world)
    training.run(until=1)
    if world.rank == 1:
        (folder / "happened").write_text(str(time.time()))
        what()
    training.run()


def main(folder: Path) -> None:
    """Run all trainings, and end the second process in the middle of a last one, without any error."""
    world = world_from_environment()
    found = {}
    for name in (*CONFIGS, *FURTHER):
        with FORMS.get(name, nullcontext)():
            training = trainings(name if name in CONFIGS else "ahead", world, mapped=name == "by block")
            training.run()
        found[name] = {
            "model": training.model.state_dict(),
            "outcome": training.outcome.state_dict(),
            "n_cells": training.stepper.totals.n_cells,
        }
    # stopped and continued
    training = trainings("default", world)
    training.run(until=2)
    state = training.state_dict()
    continued = trainings("default", world)
    continued.load_state_dict(state)
    continued.run()
    found["continued"] = {
        "model": continued.model.state_dict(),
        "outcome": continued.outcome.state_dict(),
        "noise": continued.noise.state_dict()["generator"],
    }
    for name in ("default", "ahead"):
        found[f"stopped {name}"] = stopped_and_continued(name, world)
    torch.save(found, folder / f"rank{world.rank}.pt")
    with_accident(folder, lambda: os._exit(3))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
