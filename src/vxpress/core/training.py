"""The training loop: minibatches, warm-up, validation, best state, early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vxpress.core import rule
from vxpress.core.blocks import Z
from vxpress.core.config import TrainConfig
from vxpress.core.data import Batch, Source, number_of_batches, walk
from vxpress.core.device import Replay, precision
from vxpress.core.dispersion import has_dispersions, refit
from vxpress.core.encoder_ahead import EncoderAhead
from vxpress.core.evaluation import CHUNK, Totals, evaluate
from vxpress.core.isolation import after_interrupt
from vxpress.core.model import RNA, VAE
from vxpress.core.noise import Noise
from vxpress.core.objectives import OBJECTIVES, Means, Objective, elbo
from vxpress.core.optimizer import Optimizer, TorchAdam
from vxpress.core.progress import parts, stage
from vxpress.core.schedules import kl_target, kl_weight, settled

HISTORY = (
    "elbo_train",
    "elbo_validation",
    "objective_validation",
    "reconstruction_train",
    "reconstruction_validation",
    "kl_train",
    "kl_validation",
    "kl_weight",
    "lr",
)
# training fails after an epoch in which more than this share of the steps was not finite,
MAX_VOIDED = 0.5
# or after this many epochs in a row with any such step or with a validation objective that is not finite
MAX_TROUBLED_EPOCHS = 5
# value of Outcome.stopped
INTERRUPTED = "interrupted"


class TrainingError(RuntimeError):
    """Training cannot continue; the message names the likely cause."""


@dataclass
class Outcome:
    """Record of a training: history per epoch, epoch of the kept state, and the reason why training ended.

    ``dispersion_gain`` is the gain of refitting the dispersions, in nats of the importance-weighted bound per
    validation cell.
    """

    history: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in HISTORY})
    best_epoch: int = 0
    stopped: str = "budget"
    n_voided: int = 0
    n_steps: int = 0
    dispersion_gain: float = 0.0

    @property
    def interrupted(self) -> bool:
        """Whether the user interrupted the fit."""
        return self.stopped == INTERRUPTED

    @property
    def n_epochs(self) -> int:
        """Number of recorded epochs."""
        return len(self.history["lr"])

    def drop_unfinished_epoch(self) -> None:
        """Cut the history to the epochs that were recorded completely before an interrupt."""
        n_epochs = min(map(len, self.history.values()))
        self.history = {name: values[:n_epochs] for name, values in self.history.items()}


def train(
    model: VAE,
    cells: Source,
    train_rows: Tensor,
    validation_rows: Tensor,
    config: TrainConfig,
    *,
    seed: int,
    describe: Callable[[Tensor], str] = str,
) -> Outcome:
    """Train ``model`` in place and leave it at its best state, in evaluation mode.

    ``describe`` turns rows of cells that cannot be evaluated into text for the error message.  An interrupt (Ctrl-C)
    ends the training and keeps the best state so far.
    """
    device = train_rows.device
    # hashed, so that neighbouring seeds do not share random streams
    order_seed, noise_seed, validation_seed, ahead_seed, refit_seed = map(
        int, np.random.SeedSequence(seed).generate_state(5)
    )
    noise = Noise(noise_seed, device)
    objective = OBJECTIVES[config.objective](config, model)
    shape = (model.n_noise,) if objective.n_samples is None else (objective.n_samples, model.n_noise)
    eps_nd = torch.randn(len(validation_rows), *shape, generator=torch.Generator().manual_seed(validation_seed)).to(
        device
    )
    if len(train_rows) < 2:
        msg = f"{len(train_rows)} cell(s) are left to train on; at least 2 are needed. Hold out fewer (validation_fraction=)."
        raise TrainingError(msg)
    n_batches = number_of_batches(len(train_rows), config.batch_size)
    sampler = cells.sampler(train_rows, n_batches, order_seed)
    n_steps = n_batches * config.max_epochs
    parameters, n_leading = _parameters(model, config)
    optimizer = Optimizer(config, parameters, n_steps, n_leading=n_leading)
    ahead = EncoderAhead(config.encoder_steps, train_rows, validation_rows, ahead_seed)
    keeper = _Keeper(config, active=len(validation_rows) > 0)
    outcome, troubled = Outcome(), 0
    try:
        captured = rule.captured_step(device) and model.prior.capturable
        step = (_DeviceStep if captured else _Step)(model, cells, optimizer, noise, objective)
        for epoch, progress in parts(range(config.max_epochs), "training", n_steps):
            model.train()
            step.start_epoch()
            with precision(model.decoder, device):
                for batch in cells.batches(sampler.epoch()):
                    at = outcome.n_steps, epoch, n_steps
                    weight, target, lr = kl_weight(config, *at), kl_target(config, *at), optimizer.lr
                    for _ in range(ahead.n_steps):
                        step.lead(ahead.rows(len(batch)), weight, target)
                    step(batch, weight, target)
                    outcome.n_steps += 1
                    progress.done += 1
            voided = int(step.voided)
            validation = evaluate(model, cells, validation_rows, eps_nd, objective) if len(validation_rows) else None
            finite = validation is None or validation.finite
            troubled = troubled + 1 if voided or not finite else 0
            if voided > MAX_VOIDED * n_batches or troubled >= MAX_TROUBLED_EPOCHS:
                rows = torch.cat((train_rows, validation_rows))
                raise TrainingError(_failure_message(model, cells, rows, voided, n_batches, describe))
            outcome.n_voided += voided
            _record(outcome, model, step.totals.means(), validation, objective)
            outcome.history["kl_weight"].append(weight)
            outcome.history["lr"].append(float(lr))
            _record_extras(outcome, config, target, ahead)
            if validation is not None and Z in validation.kl_per_column:
                outcome.history.setdefault("kl_per_dim", []).append(validation.kl_per_column[Z])
            ahead.judge(model, cells)
            progress.note = f"epoch {epoch + 1} of {config.max_epochs}, elbo {outcome.history['elbo_train'][-1]:.1f}"
            warm = settled(config, *at) or outcome.n_steps >= n_steps
            if keeper.update(model, epoch, outcome.history["objective_validation"][-1], warm=warm):
                outcome.stopped = "early"
                break
    except KeyboardInterrupt:
        after_interrupt()
        outcome.stopped = INTERRUPTED
        outcome.drop_unfinished_epoch()
        if not outcome.n_epochs:
            raise
    finally:
        optimizer.release()
    outcome.best_epoch = keeper.restore(model, last=outcome.n_epochs - 1)
    model.eval()
    if not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values()):
        msg = "Training ended with NaN or infinite weights; lower the learning rate (options=FitOptions(learning_rate=...))."
        raise TrainingError(msg)
    if config.refit_dispersion and has_dispersions(model) and not outcome.interrupted:
        try:
            with stage("fitting dispersions"):
                outcome.dispersion_gain = refit(model, cells, train_rows, validation_rows, seed=refit_seed)
        except KeyboardInterrupt:
            after_interrupt()
            outcome.stopped = INTERRUPTED
    return outcome


def _parameters(model: VAE, config: TrainConfig) -> tuple[list[torch.nn.Parameter], int]:
    """Return the trained parameters, and the number of leading ones (the encoder's) that also take steps alone."""
    parameters = model.trained_parameters()
    if not config.encoder_steps:
        return parameters, 0
    leading = set(map(id, model.inference_parameters()))
    parameters.sort(key=lambda p: id(p) not in leading)
    return parameters, sum(id(p) in leading for p in parameters)


Gradient = Callable[[Batch, float | Tensor, float | Tensor], tuple[Tensor, Tensor]]


class _Step:
    """One training step: gradient, optimizer, running statistics and sums, without waiting for the device.

    ``totals`` are those of the terms in the epoch; ``voided`` counts the steps that were discarded because they were
    not finite.
    """

    def __init__(self, model: VAE, cells: Source, optimizer: Optimizer, noise: Noise, objective: Objective) -> None:
        self.cells, self.optimizer, self.noise = cells, optimizer, noise
        device = cells.device
        self.totals, self.voided = Totals(model, device), torch.zeros((), device=device)
        self.gradient = _gradient(model, cells, noise, objective, self.totals)
        self.running = [value for value in model.buffers() if value.dim()]
        self.before = [value.clone() for value in self.running]

    def start_epoch(self) -> None:
        """Reset the totals."""
        self.totals.clear()
        self.voided.zero_()

    def __call__(self, batch: Batch, weight: float, target: float) -> None:
        self.take(batch, weight, target, self.optimizer.step)

    def lead(self, rows: Tensor, weight: float, target: float) -> None:
        """Take a step of the encoder alone, which is not counted."""
        self.move(self.cells.batch(rows), weight, target, self.optimizer.step_leading)

    def move(
        self, batch: Batch, weight: float | Tensor, target: float | Tensor, advance: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Take a step with the optimizer's ``advance``; return the sums of the terms, and 1 if the step was voided."""
        for old, value in zip(self.before, self.running, strict=True):
            old.copy_(value)
        terms, loss = self.gradient(batch, weight, target)
        bad = advance(loss)
        # on a CPU a Python condition is cheap; elsewhere it would wait for the device
        if bad.device.type != "cpu" or bool(bad):
            for value, old in zip(self.running, self.before, strict=True):
                value.copy_(torch.where(bad > 0, old, value))
        return terms, bad

    def take(
        self, batch: Batch, weight: float | Tensor, target: float | Tensor, advance: Callable[[Tensor], Tensor]
    ) -> None:
        """Take the step and count it."""
        terms, bad = self.move(batch, weight, target, advance)
        # neither terms nor cells of a voided step are counted
        if bad.device.type != "cpu" or bool(bad):
            self.voided += bad
            self.totals.add(terms, len(batch), bad)
        else:
            self.totals.add(terms, len(batch))


class _DeviceStep(_Step):
    """A training step on a GPU: the rates are on the device, so that the whole step can be replayed as a CUDA graph."""

    def __init__(self, model: VAE, cells: Source, optimizer: Optimizer, noise: Noise, objective: Objective) -> None:
        super().__init__(model, cells, optimizer, noise, objective)
        assert isinstance(optimizer.adam, TorchAdam)  # noqa: S101 - the compiled one runs on CPUs only
        self.adam = optimizer.adam
        self.weight, self.target = torch.zeros(2, device=self.voided.device)
        self.replay = Replay(self._from_device, cells, noise, self.voided.device)
        self.replay_lead = Replay(self._lead_from_device, cells, noise, self.voided.device)

    def __call__(self, batch: Batch, weight: float, target: float) -> None:
        self._set(weight, target, self.optimizer.advance())
        self.replay(batch)

    def lead(self, rows: Tensor, weight: float, target: float) -> None:
        self._set(weight, target, self.optimizer.rate())
        self.replay_lead(self.cells.batch(rows))

    def _set(self, weight: float, target: float, rate: tuple[float, float]) -> None:
        self.weight.fill_(weight)
        self.target.fill_(target)
        self.adam.set_rate(*rate)

    def _from_device(self, batch: Batch) -> None:
        self.take(batch, self.weight, self.target, self.adam.update)

    def _lead_from_device(self, batch: Batch) -> None:
        self.move(batch, self.weight, self.target, self.adam.update_leading)


def _gradient(model: VAE, cells: Source, noise: Noise, objective: Objective, totals: Totals) -> Gradient:
    """Return a function that writes a minibatch's gradient to the optimizer and returns sums of terms and the loss."""
    if rule.compiled_optimizer(cells.device, cells.log_library_n1.dtype):
        from vxpress.core import training_step

        if training_step.covers(model, cells, objective.config):
            without_tape = training_step.TrainingStep(model, noise)

            def in_closed_form(batch: Batch, weight: float | Tensor, target: float | Tensor) -> tuple[Tensor, Tensor]:
                reconstruction, kl, loss = without_tape(batch, cast("float", weight))
                return totals.pack_sums({RNA: reconstruction}, {Z: kl}), loss

            return in_closed_form

    def by_autograd(batch: Batch, weight: float | Tensor, target: float | Tensor) -> tuple[Tensor, Tensor]:
        terms = objective.terms(model, batch, noise)
        loss = objective.loss(terms, weight, target)
        loss.backward()
        return totals.pack(terms), loss.detach()

    return by_autograd


def _record(outcome: Outcome, model: VAE, train: Means, validation: Means | None, objective: Objective) -> None:
    """Record the means of an epoch; without validation cells, theirs are NaN."""
    recorded = {name: column for name, block in model.blocks.items() if (column := block.recorded_as())}
    for part, means in (("train", train), ("validation", validation)):
        values = {"reconstruction": math.nan, "elbo": math.nan} | dict.fromkeys(recorded.values(), math.nan)
        if means is not None:
            values = {"reconstruction": sum(means.reconstruction.values()), "elbo": means.elbo}
            values |= {column: means.kl[name] for name, column in recorded.items()}
        for column, value in values.items():
            outcome.history.setdefault(f"{column}_{part}", []).append(value)
    final = math.nan if validation is None else objective.final(validation)
    outcome.history["objective_validation"].append(final)


def _record_extras(outcome: Outcome, config: TrainConfig, target: float, ahead: EncoderAhead) -> None:
    """Record the quantities that only some settings have."""
    if config.kl_schedule == "capacity":
        outcome.history.setdefault("kl_target", []).append(target)
    if config.encoder_steps:
        outcome.history.setdefault("encoder_steps", []).append(float(ahead.n_steps))


class _Keeper:
    """Keeps the state with the best validation objective after the warm-up and decides when to stop.

    Before the end of the warm-up it keeps the latest state.
    """

    def __init__(self, config: TrainConfig, *, active: bool) -> None:
        self.keep = active and config.keep_best
        self.patience = config.patience if active and config.early_stopping else math.inf
        self.best, self.best_epoch = -math.inf, -1
        self.state: dict[str, Tensor] = {}

    def update(self, model: VAE, epoch: int, objective: float, *, warm: bool) -> bool:
        """Record an epoch; return True if patience is exhausted."""
        if math.isnan(objective):
            return False
        if not warm or objective > self.best:
            state = {name: value.detach().clone() for name, value in model.state_dict().items()} if self.keep else {}
            # one statement: an interrupt must not separate the state from its epoch
            self.best, self.best_epoch, self.state = objective if warm else -math.inf, epoch, state
        return epoch - self.best_epoch >= self.patience

    def restore(self, model: VAE, last: int) -> int:
        """Restore the best state and return its epoch."""
        if not self.state:
            return last
        model.load_state_dict(self.state)
        return self.best_epoch


@torch.no_grad()
def _failure_message(
    model: VAE, cells: Source, rows: Tensor, voided: int, n_batches: int, describe: Callable[[Tensor], str]
) -> str:
    """Write the error message: which cells cannot be evaluated, and what to do."""
    model.eval()
    noise, bad = Noise(0, rows.device), []
    for _, batch in walk(cells, rows, CHUNK):
        value = elbo(model, batch, noise).value()
        bad.append(batch.rows[~torch.isfinite(value)])
    suspects = torch.cat(bad)
    if len(suspects) == 0:
        # no cell diverges at the current weights: the largest libraries are the most likely cause
        suspects = rows[cells.log_library_n1[rows, 0].argsort(descending=True)[:5]]
    return (
        f"Loss or gradient was repeatedly NaN or infinite ({voided} of {n_batches} steps of the last epoch, which were "
        f"discarded). Likely cause: {describe(suspects)}. Remove or check them, or lower the learning rate "
        "(options=FitOptions(learning_rate=...))."
    )
