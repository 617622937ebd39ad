"""Training of a model: minibatches, warm-up, validation, best state, early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vxpress.core.blocks import Z
from vxpress.core.config import TrainConfig
from vxpress.core.data import Batch, Dealt, Source, dealt, gene_sums, number_of_minibatches
from vxpress.core.isolation import after_interrupt
from vxpress.core.model import VAE
from vxpress.core.noise import Noise
from vxpress.core.objectives import OBJECTIVES, Means
from vxpress.core.parallel import SINGLE, GradientSum, Requests, World
from vxpress.core.parallel.gradient import n_extra
from vxpress.core.progress import Stage, stage
from vxpress.core.threads import OneThread
from vxpress.core.training import ranks
from vxpress.core.training import state as training_state
from vxpress.core.training.checkpoint import Checkpoint
from vxpress.core.training.device import precision
from vxpress.core.training.dispersion import has_dispersions, refit
from vxpress.core.training.embeddings import settle
from vxpress.core.training.encoder_ahead import EncoderAhead
from vxpress.core.training.evaluation import evaluate
from vxpress.core.training.keeper import Keeper
from vxpress.core.training.optimizer import Optimizer
from vxpress.core.training.outcome import BUDGET, EARLY, INTERRUPTED, Outcome
from vxpress.core.training.schedules import kl_target, kl_weight, settled
from vxpress.core.training.step import step_for
from vxpress.core.training.trouble import TrainingError, Trouble

T = TypeVar("T")


def train(
    model: VAE,
    source: Source,
    train_rows: Tensor,
    validation_rows: Tensor,
    config: TrainConfig,
    *,
    seed: int,
    describe: Callable[[Tensor], str] = str,
    world: World = SINGLE,
    checkpoint: Checkpoint | None = None,
    state: dict[str, Any] | None = None,
) -> Outcome:
    """Train ``model`` in place and leave it at its best state, in evaluation mode; see :class:`Training`.

    With a ``state``, the training continues from there.
    """
    training = Training(
        model,
        source,
        train_rows,
        validation_rows,
        config,
        seed=seed,
        describe=describe,
        world=world,
        checkpoint=checkpoint,
    )
    if state is not None:
        training.load_state_dict(state)
    return training.run()


class Training:
    """The training of ``model`` in place, on the cells ``train_rows`` of ``source``.

    Between two steps, :meth:`state_dict` returns everything that decides the rest of the training. Another ``Training`` of
    a newly built model that loads it continues with the same bits, also in another process. The model itself is to be
    built as for a new training; its weights are part of the state.  ``checkpoint`` stores states during the training.

    Optional covariates are hidden in the same cells in every validation and in the refit of the dispersions, in the share of
    the training, so that a validation estimates what is trained and costs no more than without them.

    ``describe`` turns rows of cells that cannot be evaluated into text for the error message.  ``TrainingError`` is
    raised with fewer than two cells to train on.

    With several processes, each builds the same ``Training`` of all cells and calls the same methods; ``world`` connects them.
    Every minibatch is divided among them, as are the validation cells, and all end with the same model and record.

    >>> training = Training(model, cells, train_rows, validation_rows, config, seed=0)  # doctest: +SKIP
    >>> training.run(until=3)  # doctest: +SKIP
    >>> torch.save(training.state_dict(), "training.pt")  # doctest: +SKIP
    >>> training.load_state_dict(torch.load("training.pt", weights_only=True))  # doctest: +SKIP
    >>> outcome = training.run()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: VAE,
        source: Source,
        train_rows: Tensor,
        validation_rows: Tensor,
        config: TrainConfig,
        *,
        seed: int,
        describe: Callable[[Tensor], str] = str,
        world: World = SINGLE,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        if len(train_rows) < 2:
            msg = f"{len(train_rows)} cell(s) are left to train on; at least 2 are needed. Hold out fewer (validation_fraction=)."
            raise TrainingError(msg)
        self.model, self.source, self.config, self.seed, self.describe = model, source, config, seed, describe
        self.train_rows, self.validation_rows, self.world = train_rows, validation_rows, world
        self.checkpoint = checkpoint
        self.device = train_rows.device
        # hashed, so that neighbouring seeds do not share random streams
        seeds = map(int, np.random.SeedSequence(seed).generate_state(6))
        order, noise, validation, ahead, self.refit_seed, hidden = seeds
        self.judged = with_some_hidden(model, source, config.hidden_share, hidden)
        self.n_minibatches = number_of_minibatches(len(train_rows), config.batch_size)
        self.n_steps = self.n_minibatches * config.max_epochs
        self.sampler = source.sampler(train_rows, self.n_minibatches, order)
        if world.several:
            ranks.check_same(self)
            self.sampler = dealt(self.sampler, world.rank, world.size)
            noise = ranks.own_seed(noise, world.rank)
            world.copy_(model.state_dict().values())
        self.noise = Noise(noise, self.device)
        self.objective = OBJECTIVES[config.objective](config, model)
        self.validation_noise = self._fixed_noise(len(validation_rows), validation)
        parameters, n_leading = _trained(model, config)
        agreed = ranks.running_statistics(model)
        if world.several:
            exchange, extra = world.exchange(), n_extra(agreed)
            self.optimizer = Optimizer(
                config, parameters, self.n_steps, n_leading=n_leading, n_extra=extra, zeros=exchange.zeros
            )
            self.whole: GradientSum | None = GradientSum(world, self.optimizer.message, agreed, exchange)
        else:
            self.optimizer = Optimizer(config, parameters, self.n_steps, n_leading=n_leading)
            self.whole = None
        self.ahead = EncoderAhead(config.encoder_steps, train_rows, validation_rows, ahead)
        self.keeper = Keeper(config, active=len(validation_rows) > 0)
        self.trouble = Trouble(self.n_minibatches)
        self.stepper = step_for(model, source, self.optimizer, self.noise, self.objective, self.whole)
        if self.whole is not None:
            self.objective.mean_of = self.whole.mean
        self.outcome, self.finished = Outcome(), False
        self.weight = self.target = self.lr = 0.0
        self.order = self.sampler.state_dict()
        self.progress = Stage("training", self.n_steps)

    # the loop

    def run(self, until: int | None = None) -> Outcome:
        """Train to the end and return the record, or pause after ``until`` epochs, counted from the first.

        At the end, the model is at its best state with refitted dispersions. At a pause it has its latest weights, and
        the schedule remains that of ``config.max_epochs``. In both cases it is in evaluation mode.  An interrupt
        (Ctrl-C) ends the training and keeps the best state so far; before the end of the first epoch it is raised.
        """
        with OneThread(), nullcontext() if self.checkpoint is None else self.checkpoint.held():
            return self._run(self.config.max_epochs if until is None else until)

    def _run(self, last: int) -> Outcome:
        paused = False
        try:
            with stage("training", self.n_steps) as self.progress:
                self.progress.done = self.outcome.n_steps
                while not self.over and self.outcome.n_epochs < last:
                    self.epoch()
            paused = not self.over
        except KeyboardInterrupt:
            after_interrupt()
            self.outcome.interrupt()
            if not self.outcome.n_epochs:
                raise
        finally:
            if not paused:
                self.optimizer.release()
        self.model.eval()
        if self.over and not self.finished:
            self._finish_and_store()
        return self.outcome

    @property
    def over(self) -> bool:
        """Whether no epoch is left: the budget is spent, there was no gain for too long, or the user interrupted."""
        return self.outcome.stopped != BUDGET or self.outcome.n_epochs >= self.config.max_epochs

    def epoch(self) -> None:
        """Take a step for each minibatch, validate, record, and decide whether training goes on."""
        self.model.train()
        done = self.n_steps_of_epoch
        if not done:
            self.stepper.start_epoch()
        self.order = self.sampler.state_dict()
        with precision(self.model.decoder, self.device):
            for batch in self.source.batches(self.sampler.epoch()[done:]):
                self.step(batch)
                if self.checkpoint is not None:
                    self.checkpoint.after_step(self)
        self.share_totals()
        with nullcontext() if self.checkpoint is None else self.checkpoint.may_stop(self, self.state_dict):
            validation = self.validate()
        self.check(validation)
        objective = self.record(validation)
        self.ahead.judge(self.model, self.source, self.world)
        epoch = self.outcome.n_epochs - 1
        warm = (
            settled(self.config, self.outcome.n_steps - 1, epoch, self.n_steps) or self.outcome.n_steps >= self.n_steps
        )
        if self.keeper.update(self.model, epoch, objective, warm=warm):
            self.outcome.stopped = EARLY

    @property
    def n_steps_of_epoch(self) -> int:
        """Number of steps since the last recorded epoch."""
        return self.outcome.n_steps - self.outcome.n_epochs * self.n_minibatches

    def step(self, batch: Batch) -> None:
        """Take the steps of the encoder alone, if there are any, and then a step of all weights."""
        at = self.outcome.n_steps, self.outcome.n_epochs, self.n_steps
        self.weight, self.target, self.lr = kl_weight(self.config, *at), kl_target(self.config, *at), self.optimizer.lr
        n_cells = len(batch)
        if self.whole is not None:
            self.whole.requested = Requests()
        if self.whole is not None and isinstance(self.sampler, Dealt):
            n_cells = self.whole.n_cells = self.sampler.n_cells(self.outcome.n_steps % self.n_minibatches)
        for _ in range(self.ahead.n_steps):
            rows = self.ahead.rows(n_cells)
            self.stepper.lead(self.source.batch(rows[self.world.part(n_cells)]), self.weight, self.target)
        self.stepper(batch, self.weight, self.target)
        self.outcome.n_steps += 1
        self.progress.done += 1
        if self.whole is not None and self.whole.requested.stop:
            self.world.interrupt()

    def validate(self) -> Means | None:
        """Compute means over the validation cells with the same noise in every epoch; None without such cells."""
        if not len(self.validation_rows):
            return None
        rows, noise = self.validation_rows, self.validation_noise
        return evaluate(self.model, self.judged, rows, noise, self.objective, self.world)

    def share_totals(self) -> None:
        """At the end of an epoch, add up what the processes have counted, and make sure that their models are equal."""
        if self.whole is None:
            return
        self.whole.read_requests()
        self.stepper.totals.sum_over(self.world)
        # equal already, unless the processes have different processors
        self.world.copy_(self.model.state_dict().values())
        if self.whole.requested.stop:
            self.world.interrupt()

    def check(self, validation: Means | None) -> None:
        """Count the steps of the epoch that were discarded; raise ``TrainingError`` if training cannot continue."""
        voided = int(self.stepper.voided)
        if self.trouble.failed(voided, finite=validation is None or validation.finite):
            rows = torch.cat((self.train_rows, self.validation_rows))
            raise self.trouble.error(self.model, self.source, rows, voided, self.describe)
        self.outcome.n_voided += voided

    def record(self, validation: Means | None) -> float:
        """Add the epoch to the history; return the objective on the validation cells."""
        outcome = self.outcome
        columns = {name: column for name, block in self.model.blocks.items() if (column := block.recorded_as())}
        objective = math.nan if validation is None else self.objective.final(validation)
        outcome.note_means("train", self.stepper.totals.means(), columns)
        outcome.note_means("validation", validation, columns)
        outcome.note("objective_validation", objective)
        outcome.note("kl_weight", self.weight)
        outcome.note("lr", float(self.lr))
        if self.config.kl_schedule == "capacity":
            outcome.note("kl_target", self.target)
        if self.config.encoder_steps:
            outcome.note("encoder_steps", float(self.ahead.n_steps))
        if validation is not None and Z in validation.kl_per_column:
            outcome.note("kl_per_dim", validation.kl_per_column[Z])
        elbo = outcome.history["elbo_train"][-1]
        self.progress.note = f"epoch {outcome.n_epochs} of {self.config.max_epochs}, elbo {elbo:.1f}"
        return objective

    def finish(self) -> None:
        """Restore the best state and refit the dispersions; an interrupt keeps them as they were trained."""
        model, outcome = self.model, self.outcome
        outcome.best_epoch = self.keeper.restore(model, last=outcome.n_epochs - 1)
        model.eval()
        if not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values()):
            msg = "Training ended with NaN or infinite weights; lower the learning rate (options=FitOptions(learning_rate=...))."
            raise TrainingError(msg)
        try:
            self.on_first(lambda: settle(model, self.source, self.train_rows))
        except KeyboardInterrupt:
            after_interrupt()
            outcome.interrupt()
        if self.config.refit_dispersion and has_dispersions(model) and not outcome.interrupted:
            rows = self.train_rows, self.validation_rows
            try:
                with stage("fitting dispersions"):
                    outcome.dispersion_gain = self.on_first(
                        lambda: refit(model, self.judged, *rows, seed=self.refit_seed)
                    )
            except KeyboardInterrupt:
                after_interrupt()
                outcome.interrupt()
        self.finished = True

    def on_first(self, change: Callable[[], T]) -> T:
        """Let the first process change the model; all of them get its state and the result."""
        found = self.world.once(change)
        self.world.copy_(self.model.state_dict().values())
        return found

    def _finish_and_store(self) -> None:
        """Finish; with checkpoints, a request to stop ends this at any point, and the finished training is stored."""
        if self.checkpoint is None or self.outcome.interrupted:
            self.finish()
            return
        before = self.state_dict()
        with self.checkpoint.may_stop(self, lambda: before):
            self.finish()
        # an interrupt (Ctrl-C) ends this fit, not one that continues from its checkpoint
        state = before if self.outcome.stopped == INTERRUPTED else self.state_dict()
        self.checkpoint.save_and_stop(self.world, state)

    # stop and continue

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that decides the rest of the training.

        It consists of tensors, numbers, strings, lists and dicts, and belongs to the settings, cells, seed and type of
        device of this training. To be called between two steps, or after the last one.
        """
        return training_state.read(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the step in which ``state`` was stored, by the same settings, cells, seed and type of device.

        ``ValueError`` is raised for the state of another training, with what differs, before anything is changed.
        """
        training_state.write(self, state)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides this training, except its state."""
        return training_state.identity(self)

    @cached_property
    def gene_sums(self) -> Tensor:
        """Sums of the counts of each gene over all cells, by which a state recognises its data."""
        return gene_sums(self.source)

    def _fixed_noise(self, n: int, seed: int) -> Tensor:
        """Draw the noise of every validation, (n, columns) or (n, samples, columns)."""
        n_samples, n_columns = self.objective.n_samples, self.model.n_noise
        shape = (n_columns,) if n_samples is None else (n_samples, n_columns)
        return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed)).to(self.device)


def with_some_hidden(model: VAE, source: Source, share: float, seed: int) -> Source:
    """Return the same cells with optional covariates hidden in a random share of them; ``source`` itself without such covariates."""
    if not model.config.optional:
        return source
    chosen_n = Noise(seed).choose(len(source), share).to(source.device)
    return source.with_covariates(model.conditioner.hide(source.covariates, chosen_n))


def _trained(model: VAE, config: TrainConfig) -> tuple[list[nn.Parameter], int]:
    """Return the trained parameters, and the number of leading ones (the encoder's) that also take steps alone."""
    parameters = model.trained_parameters()
    if not config.encoder_steps:
        return parameters, 0
    leading = set(map(id, model.inference_parameters()))
    parameters.sort(key=lambda p: id(p) not in leading)
    return parameters, sum(id(p) in leading for p in parameters)
