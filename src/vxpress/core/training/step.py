"""One training step: gradient, optimizer, running statistics and totals, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from vxpress.core import rule
from vxpress.core.blocks import Z
from vxpress.core.data import Batch, Source
from vxpress.core.model import RNA, VAE
from vxpress.core.noise import Noise
from vxpress.core.objectives import Objective
from vxpress.core.parallel import GradientSum
from vxpress.core.training.device import Replay
from vxpress.core.training.evaluation import Totals
from vxpress.core.training.optimizer import Optimizer, TorchAdam

Gradient = Callable[[Batch, float | Tensor, float | Tensor], tuple[Tensor, Tensor]]


def step_for(
    model: VAE,
    source: Source,
    optimizer: Optimizer,
    noise: Noise,
    objective: Objective,
    whole: GradientSum | None = None,
) -> Step:
    """Return the form of the training step that suits device and model; ``whole`` joins the parts of several processes."""
    captured = (
        rule.captured_step(source.device) and model.prior.capturable and not model.further and model.panels is None
    )
    if whole is None:
        return (DeviceStep if captured else Step)(model, source, optimizer, noise, objective)
    if captured and objective.of_cells:
        return SharedDeviceStep(model, source, optimizer, noise, objective, whole)
    return Step(model, source, optimizer, noise, objective, whole)


class Step:
    """One training step: gradient, optimizer, running statistics and totals, without waiting for the device.

    ``totals`` are those of the terms in the epoch; ``voided`` counts the steps that were discarded because they were not
    finite. With several processes, minibatches and totals are the parts of this one, and ``whole`` makes of its gradient that
    of the whole minibatch, so that all processes take the same step.
    """

    def __init__(
        self,
        model: VAE,
        source: Source,
        optimizer: Optimizer,
        noise: Noise,
        objective: Objective,
        whole: GradientSum | None = None,
    ) -> None:
        self.optimizer, self.whole = optimizer, whole
        device = source.device
        self.totals, self.voided = Totals(model, device), torch.zeros((), device=device)
        # several processes add up their gradients before the optimizer takes its step
        self.gradient = _gradient(model, source, noise, objective, self.totals, None if whole else optimizer)
        if model.config.optional and objective.config.hidden_share > 0.0:
            self.gradient = _with_some_hidden(self.gradient, model, noise, objective.config.hidden_share)
        self.running = [value for value in model.buffers() if value.dim()]
        self.before = [value.clone() for value in self.running]

    def start_epoch(self) -> None:
        """Reset the totals."""
        self.totals.clear()
        self.voided.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the totals of the epoch so far and the number of discarded steps."""
        return {"totals": self.totals.sums(), "voided": self.voided.cpu().clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue an epoch."""
        self.totals.set_sums(state["totals"])
        self.voided.copy_(state["voided"])

    def __call__(self, batch: Batch, weight: float, target: float) -> None:
        """Take a step of all weights and count it."""
        self.take(batch, weight, target, self.optimizer.step)

    def lead(self, batch: Batch, weight: float, target: float) -> None:
        """Take a step of the encoder alone, which is not counted."""
        self.optimizer.leads = True
        try:
            self.move(batch, weight, target, self.optimizer.step_leading)
        finally:
            self.optimizer.leads = False

    def move(
        self, batch: Batch, weight: float | Tensor, target: float | Tensor, advance: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Take a step with the optimizer's ``advance``; return the sums of the terms, and 1 if the step was voided."""
        terms, loss = self.compute(batch, weight, target)
        if self.whole is not None:
            loss = self.whole(loss, len(batch))
        return terms, self.advance(loss, advance)

    def compute(self, batch: Batch, weight: float | Tensor, target: float | Tensor) -> tuple[Tensor, Tensor]:
        """Write the gradient to the optimizer; return the sums of the terms, and the loss."""
        for old, value in zip(self.before, self.running, strict=True):
            old.copy_(value)
        return self.gradient(batch, weight, target)

    def advance(self, loss: Tensor, advance: Callable[[Tensor], Tensor]) -> Tensor:
        """Let the optimizer take the step; return 1 if it was voided, which restores the running statistics."""
        bad = advance(loss)
        # on a CPU a Python condition is cheap; elsewhere it would wait for the device
        if bad.device.type != "cpu" or bool(bad):
            for value, old in zip(self.running, self.before, strict=True):
                value.copy_(torch.where(bad > 0, old, value))
        return bad

    def take(
        self, batch: Batch, weight: float | Tensor, target: float | Tensor, advance: Callable[[Tensor], Tensor]
    ) -> None:
        """Take the step and count it."""
        self.count(len(batch), *self.move(batch, weight, target, advance))

    def count(self, n_cells: int, terms: Tensor, bad: Tensor) -> None:
        """Add a step to the totals."""
        # neither terms nor cells of a voided step are counted
        if bad.device.type != "cpu" or bool(bad):
            self.voided += bad
            self.totals.add(terms, n_cells, bad)
        else:
            self.totals.add(terms, n_cells)


class DeviceStep(Step):
    """A training step on a GPU: the rates are on the device, so that the whole step can be replayed as a CUDA graph."""

    def __init__(
        self,
        model: VAE,
        source: Source,
        optimizer: Optimizer,
        noise: Noise,
        objective: Objective,
        whole: GradientSum | None = None,
    ) -> None:
        super().__init__(model, source, optimizer, noise, objective, whole)
        assert isinstance(optimizer.adam, TorchAdam)  # noqa: S101 - the compiled one runs on CPUs only
        self.adam = optimizer.adam
        self.weight, self.target = torch.zeros(2, device=self.voided.device)
        self.replay = Replay(self._from_device, source, noise, self.voided.device)
        self.replay_lead = Replay(self._lead_from_device, source, noise, self.voided.device)

    def __call__(self, batch: Batch, weight: float, target: float) -> None:
        self._set(weight, target, self.optimizer.advance())
        self.replay(batch)

    def lead(self, batch: Batch, weight: float, target: float) -> None:
        self._set(weight, target, self.optimizer.rate())
        self.replay_lead(batch)

    def _set(self, weight: float, target: float, rate: tuple[float, float]) -> None:
        self.weight.fill_(weight)
        self.target.fill_(target)
        self.adam.set_rate(*rate)

    def _from_device(self, batch: Batch) -> None:
        self.take(batch, self.weight, self.target, self.adam.update)

    def _lead_from_device(self, batch: Batch) -> None:
        self.move(batch, self.weight, self.target, self.adam.update_leading)


class SharedDeviceStep(DeviceStep):
    """A training step on a GPU that several processes share: a CUDA graph before their exchange, and one after it."""

    whole: GradientSum

    def __init__(
        self,
        model: VAE,
        source: Source,
        optimizer: Optimizer,
        noise: Noise,
        objective: Objective,
        whole: GradientSum,
    ) -> None:
        super().__init__(model, source, optimizer, noise, objective, whole)
        device = self.voided.device
        # what the first graph leaves for the second
        self.terms, self.loss = self.totals.sums().to(device)[:-1], torch.zeros((), device=device)
        self.first, self.last, self.last_lead = (
            Replay(part, source, noise, device) for part in (self._first, self._last, self._last_lead)
        )

    def __call__(self, batch: Batch, weight: float, target: float) -> None:
        self._set(weight, target, self.optimizer.advance())
        self._exchange(batch)
        self.last(batch)

    def lead(self, batch: Batch, weight: float, target: float) -> None:
        self._set(weight, target, self.optimizer.rate())
        self._exchange(batch)
        self.last_lead(batch)

    def _exchange(self, batch: Batch) -> None:
        self.first(batch)
        self.loss.copy_(self.whole(self.loss, len(batch)))

    def _first(self, batch: Batch) -> None:
        terms, loss = self.compute(batch, self.weight, self.target)
        self.terms.copy_(terms)
        self.loss.copy_(loss)

    def _last(self, batch: Batch) -> None:
        self.count(len(batch), self.terms, self.advance(self.loss, self.adam.update))

    def _last_lead(self, batch: Batch) -> None:
        self.advance(self.loss, self.adam.update_leading)


def _with_some_hidden(gradient: Gradient, model: VAE, noise: Noise, share: float) -> Gradient:
    """Return the same function with the optional covariates of a random ``share`` of cells hidden, anew in every call."""

    def with_some_hidden(batch: Batch, weight: float | Tensor, target: float | Tensor) -> tuple[Tensor, Tensor]:
        covariates = model.conditioner.hide(batch.covariates, noise.choose(len(batch), share))
        return gradient(batch.with_covariates(covariates), weight, target)

    return with_some_hidden


def _gradient(
    model: VAE, source: Source, noise: Noise, objective: Objective, totals: Totals, optimizer: Optimizer | None
) -> Gradient:
    """Return a function that writes a minibatch's gradient to the optimizer and returns sums of terms and the loss.

    With ``optimizer``, the same call may also take its step.
    """
    if rule.compiled_optimizer(source.device, source.log_library_n1.dtype):
        from vxpress.core.training import closed_form

        if closed_form.covers(model, source, objective.config):
            closed = closed_form.ClosedForm(model, noise, None if optimizer is None else optimizer.with_gradient())

            def in_closed_form(batch: Batch, weight: float | Tensor, target: float | Tensor) -> tuple[Tensor, Tensor]:
                reconstruction, kl, loss = closed(batch, cast("float", weight))
                return totals.pack_sums({RNA: reconstruction}, {Z: kl}), loss

            return in_closed_form

    def by_autograd(batch: Batch, weight: float | Tensor, target: float | Tensor) -> tuple[Tensor, Tensor]:
        terms = objective.terms(model, batch, noise)
        loss = objective.loss(terms, weight, target)
        loss.backward()
        return totals.pack(terms), loss.detach()

    return by_autograd
