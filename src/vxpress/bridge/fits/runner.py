"""Run a prepared fit: train, encode, read out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from scanpy import logging as logg

from vxpress.bridge.read.prepare import Prepared
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Counts, place
from vxpress.core.inference.posterior import Encoded, encode
from vxpress.core.isolation import after_interrupt
from vxpress.core.readout import fit_readout
from vxpress.core.training import INTERRUPTED, Outcome, train
from vxpress.core.vae import VAE, build

T = TypeVar("T")


def finish(outcome: Outcome, step: Callable[[], T]) -> T:
    """Run a step that a trained model needs before it can be used.

    An interrupt ends the training, not the fit: it is recorded in ``outcome`` and the step is repeated. A second interrupt is
    raised.
    """
    try:
        return step()
    except KeyboardInterrupt:
        after_interrupt()
        if outcome.interrupted:
            raise
        note_interrupt(outcome)
        return step()


def note_interrupt(outcome: Outcome) -> None:
    """Record that the user ended the training, and warn."""
    outcome.stopped = INTERRUPTED
    logg.warning("Interrupted: the model trained so far is finished and kept. Interrupt again to discard it.")


@dataclass(frozen=True)
class Fitted:
    """A trained model on the device of its runner, its settings, the posterior of every cell, and the outcome of the training."""

    model: VAE
    train: TrainConfig
    encoded: Encoded
    outcome: Outcome


class Runner:
    """Run fits of the same cells; all start from the same seeds, so that they differ only in their settings."""

    def __init__(
        self,
        prepared: Prepared,
        *,
        rng: np.random.Generator,
        device: torch.device,
        start_from_data: bool,
        source: str | None = None,
        describe: Callable[[torch.Tensor], str],
    ) -> None:
        self.init_seed, self.train_seed, self.readout_seed = (int(seed) for seed in rng.integers(2**62, size=3))
        self.prepared, self.device, self.start_from_data = prepared, device, start_from_data
        self.describe, self.source = describe, source
        self.cells = place(prepared.cells, device, source)
        self.train_rows = torch.from_numpy(prepared.train_n).to(device)
        self.validation_rows = torch.from_numpy(prepared.validation_n).to(device)

    def fit(self, model_config: ModelConfig, train_config: TrainConfig) -> Fitted:
        """Build, train and encode."""
        model = build(model_config, self.init_seed).to(self.device)
        if self.start_from_data:
            model.start_from(self.cells, self.train_rows)
        generator = torch.Generator().manual_seed(self.init_seed)
        model.prior.start_from(model, self.cells, self.train_rows, generator)
        if model_config.latent_library:
            rows = self.train_rows
            _set_library_prior(model, self.cells.log_library_n1[rows, 0], self.cells.covariates[rows])
        outcome = train(
            model,
            self.cells,
            self.train_rows,
            self.validation_rows,
            train_config,
            seed=self.train_seed,
            describe=self.describe,
        )
        return Fitted(model, train_config, finish(outcome, lambda: encode(model, self.cells)), outcome)

    def read_out(self, fitted: Fitted) -> None:
        """Fit the readout of the genes outside the model, if the model has one."""
        model, prepared = fitted.model, self.prepared
        if not model.config.n_readout:
            return
        assert prepared.counts.outside is not None  # noqa: S101 - there are genes to read out
        outside = replace(prepared.cells, counts=Counts.from_scipy(prepared.counts.outside))
        mean_nd = torch.from_numpy(fitted.encoded.mean_nd).to(self.device)
        logg.info(f"    reading out {model.config.n_readout} genes outside the model")
        fit_readout(
            model,
            self.cells,
            place(outside, self.device, self.source),
            mean_nd,
            self.train_rows,
            self.validation_rows,
            seed=self.readout_seed,
        )


def _set_library_prior(model: VAE, log_library_n: torch.Tensor, covariates: Covariates) -> None:
    """Set the log-normal prior of the library: mean and variance of its log per batch (Lopez et al. 2018)."""
    code = covariates.categorical_nk[:, 0] if model.config.has_batch else torch.zeros_like(log_library_n).long()
    for b in range(model.config.n_batches):
        values = log_library_n[code == b]
        values = values if len(values) > 1 else log_library_n
        model.library_log_mean_b[b] = values.mean()
        model.library_log_var_b[b] = values.var().clamp_min(1e-3)
