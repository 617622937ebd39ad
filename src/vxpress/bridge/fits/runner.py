"""Run a prepared fit: train, encode, read out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from scanpy import logging as logg

from vxpress.bridge.fits.checkpoints import Checkpoints
from vxpress.bridge.read.prepare import Prepared
from vxpress.core.blocks import Point
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.data import place
from vxpress.core.data.rows import rows_array
from vxpress.core.extension.trial import try_classes, try_source
from vxpress.core.inference.posterior import CHUNK, Encoded, Views, encode_views
from vxpress.core.isolation import after_interrupt
from vxpress.core.model import VAE, build
from vxpress.core.noise import Noise
from vxpress.core.parallel import current_world
from vxpress.core.readout import fit_readout
from vxpress.core.start import start_at_components
from vxpress.core.training import OtherTrainingError, Outcome, train

T = TypeVar("T")


def finish(outcome: Outcome, step: Callable[[], T]) -> T:
    """Run a step that a trained model needs before it can be used.

    An interrupt ends the training, not the fit: it is recorded in ``outcome`` and the step is repeated. A second interrupt is
    raised.
    """
    try:
        current_world().raise_if_interrupted()
        return step()
    except KeyboardInterrupt:
        after_interrupt()
        if outcome.interrupted:
            raise
        outcome.interrupt()
        logg.warning("Interrupted: the model trained so far is finished and kept. Interrupt again to discard it.")
        return step()


@dataclass(frozen=True)
class Fitted:
    """A trained model on the device of its runner, its settings, the posterior of every cell, and the outcome of the training.

    ``kept`` is the posterior without the categories of optional covariates, if there are any.
    """

    model: VAE
    train: TrainConfig
    encoded: Encoded
    outcome: Outcome
    kept: Encoded | None = None

    @property
    def views(self) -> Views:
        """Both posteriors."""
        return self.encoded, self.kept


class Runner:
    """Run fits of the same cells; all start from the same seeds, so that they differ only in their settings."""

    def __init__(
        self,
        prepared: Prepared,
        *,
        rng: np.random.Generator,
        device: torch.device,
        source: str | None = None,
        describe: Callable[[torch.Tensor], str],
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.world = current_world()
        seeds = self.world.agreed([int(seed) for seed in rng.integers(2**62, size=3)])
        self.init_seed, self.train_seed, self.readout_seed = seeds
        self.prepared, self.device = prepared, device
        self.describe, self.source, self.checkpoints = describe, source, checkpoints
        self.cells = place(prepared.cells, device, source)
        try_source(source, self.cells, prepared.cells.n_genes)
        self.train_rows = torch.from_numpy(prepared.train_n).to(device)
        self.validation_rows = torch.from_numpy(prepared.validation_n).to(device)
        self.cells.keep(self.validation_rows)

    def fit(self, model_config: ModelConfig, train_config: TrainConfig, number: int = 0) -> Fitted:
        """Build, train and encode; fits of another ``number`` have other seeds."""
        init_seed, train_seed = self.seeds(number)
        model = build(model_config, init_seed).to(self.device)
        panels = self.prepared.covariates.panels
        if model.panels is not None and panels is not None:
            measured, outside = (
                torch.from_numpy(part).to(self.device) for part in (panels.measured_pg, panels.outside_pg)
            )
            model.panels.set(measured, outside[:, : model_config.n_readout])
        try_classes(model, self.cells, self.train_rows, train_config)
        checkpoint = None if self.checkpoints is None else self.checkpoints.next()
        state = None if checkpoint is None else checkpoint.load(self.world)
        if state is None:
            self._start(model, train_config, init_seed)
        try:
            outcome = train(
                model,
                self.cells,
                self.train_rows,
                self.validation_rows,
                train_config,
                seed=train_seed,
                describe=self.describe,
                checkpoint=checkpoint,
                state=state,
                world=self.world,
            )
        except OtherTrainingError as error:
            assert self.checkpoints is not None  # noqa: S101 - a state was read from there
            raise self.checkpoints.of_other_fit(error.differences) from error
        encoded, kept = finish(outcome, lambda: encode_views(model, self.cells, self.world))
        return Fitted(model, train_config, encoded, outcome, kept)

    def _start(self, model: VAE, train_config: TrainConfig, seed: int) -> None:
        """Start a model from the data."""
        if train_config.start != "random":
            model.start_from(self.cells, self.train_rows)
        if train_config.start == "components":
            start_at_components(model, self.cells, self.train_rows)
        model.start_blocks(self.cells, self.train_rows, torch.Generator().manual_seed(seed))

    def seeds(self, number: int) -> tuple[int, int]:
        """Return the seeds of initialisation and training of a fit; those of further fits are hashed from the first."""
        if number == 0:
            return self.init_seed, self.train_seed
        init, training = np.random.SeedSequence([self.init_seed, self.train_seed, number]).generate_state(2, np.uint64)
        return int(init >> 2), int(training >> 2)

    @property
    def label_seed(self) -> int:
        """Seed of what is learned from labels, which changes no other random number."""
        return int(np.random.SeedSequence([self.init_seed, self.train_seed]).generate_state(1, np.uint64)[0] >> 2)

    def read_out(self, fitted: Fitted) -> None:
        """Fit the readout of the genes outside the model, if the model has one."""
        if fitted.model.config.n_readout:
            self.world.once(lambda: self._read_out(fitted))
            self.world.copy_(fitted.model.state_dict().values())

    def _read_out(self, fitted: Fitted) -> None:
        model, prepared = fitted.model, self.prepared
        outside = prepared.counts.cells_outside(prepared.cells.log_library_n1, prepared.cells.covariates)
        assert outside is not None  # noqa: S101 - there are genes to read out
        noise, cells = Noise(self.readout_seed), self.cells
        in_memory = prepared.cells.in_memory
        mean, drawn = _mean_and_draw(fitted.encoded, model, noise, in_memory=in_memory)
        if fitted.kept is not None:
            # for either view, so half of the cells are read as in each
            kept_n = noise.choose(len(prepared.cells), 0.5)
            kept = _mean_and_draw(fitted.kept, model, noise, in_memory=in_memory)
            mean, drawn = (
                {name: torch.where(kept_n[:, None], of_kept[name], value) for name, value in removed.items()}
                for removed, of_kept in zip((mean, drawn), kept, strict=True)
            )
            covariates = model.conditioner.hide(prepared.cells.covariates, kept_n)
            outside = outside.with_covariates(covariates)
            cells = cells.with_covariates(covariates.to(self.device))
        logg.info(f"    reading out {model.config.n_readout} genes outside the model")
        fit_readout(
            model,
            cells,
            place(outside, self.device, self.source),
            _to(mean, self.device),
            self.train_rows,
            self.validation_rows,
            seed=self.readout_seed,
            drawn=_to(drawn, self.device),
        )


def _mean_and_draw(encoded: Encoded, model: VAE, noise: Noise, *, in_memory: bool) -> tuple[Point, Point]:
    """Return the posterior means of all cells and a draw; of data larger than memory, the draw is in a temporary file."""
    if in_memory:
        posterior = encoded.posterior(model)
        return posterior.mean(), posterior.draw(noise.normal_like)
    means = {name: torch.from_numpy(encoded.mean[name]) for name in model.decoded_blocks}
    drawn = {name: torch.from_numpy(rows_array(*mean.shape)) for name, mean in means.items()}
    for start in range(0, len(encoded), CHUNK):
        part = slice(start, start + CHUNK)
        for name, value in encoded.posterior(model, part).draw(noise.normal_like).items():
            drawn[name][part] = value
    return means, drawn


def _to(point: Point, device: torch.device) -> Point:
    return {name: value.to(device) for name, value in point.items()}
