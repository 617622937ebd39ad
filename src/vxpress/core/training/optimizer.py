"""Adam over all weights at once; a step is discarded (voided) if loss or gradient is not finite."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vxpress.core import rule, threads
from vxpress.core.config import TrainConfig
from vxpress.core.gradients import GradientSink

if TYPE_CHECKING:
    from vxpress.core.kernels.frames import Plan, Round

# the schedule of torch.optim.lr_scheduler.OneCycleLR with its defaults
RISE, START_DIVISOR, END_DIVISOR, MOMENTA = 0.3, 25.0, 1e4, (0.95, 0.85)
BETAS = (0.9, 0.999)
# the weights of each tensor start at a cache line
LINE = 16
# the weights are divided into runs, which several threads update
MAX_RUNS, MIN_RUN = 16, 2**13


def one_cycle(step: int, n_steps: int) -> tuple[float, float]:
    """Compute the learning rate as a share of its peak, and the first momentum, after ``step`` of ``n_steps`` steps.

    The schedule is that of Smith & Topin (2019).
    """
    start, end = 1 / START_DIVISOR, 1 / START_DIVISOR / END_DIVISOR
    peak = RISE * (n_steps + 1) - 1
    rising = step <= peak
    at = step / peak if rising and peak > 0 else max(0.0, (step - peak) / (n_steps - peak))
    fall = (1 + math.cos(math.pi * at)) / 2
    slow, fast = MOMENTA
    if rising:
        return 1.0 + (start - 1.0) * fall, fast + (slow - fast) * fall
    return end + (1.0 - end) * fall, slow + (fast - slow) * fall


class Optimizer:
    """Adam or AdamW over weights concatenated in one tensor: one call instead of one per parameter.

    While the optimizer is in use, the parameters are views of that tensor, each with a :class:`GradientSink` as
    ``grad_sink``.  :meth:`release` gives the parameters their own memory again.  The first ``n_leading`` parameters can
    take steps alone; the weights, moments and step count of the others then stay as they are.  ``message`` is the memory of
    the gradient, followed by ``n_extra`` further values; ``zeros`` provides it.
    """

    def __init__(
        self,
        config: TrainConfig,
        parameters: Sequence[nn.Parameter],
        n_steps: int,
        *,
        n_leading: int = 0,
        n_extra: int = 0,
        zeros: Callable[[int, torch.dtype, torch.device], Tensor] | None = None,
    ) -> None:
        self.config, self.n_steps, self.done = config, n_steps, 0
        # whether the next step is one of the leading parameters alone
        self.leads = False
        self.parameters = list(parameters)
        first = self.parameters[0]
        starts, total = [], 0
        for p in self.parameters:
            starts.append(total)
            total += -(-p.numel() // LINE) * LINE
        self.flat = nn.Parameter(torch.zeros(total, dtype=first.dtype, device=first.device))
        # one message for several processes: the gradient and what travels with it
        size = total + n_extra, first.dtype, first.device
        self.message = torch.zeros(size[0], dtype=size[1], device=size[2]) if zeros is None else zeros(*size)
        self.gradient = self.message[:total]
        self.sinks = []
        for p, start in zip(self.parameters, starts, strict=True):
            part = slice(start, start + p.numel())
            value = torch.as_strided(self.flat.detach()[part], p.shape, p.stride())
            value.copy_(p.detach())
            p.data = value
            p.grad = torch.as_strided(self.gradient[part], p.shape, p.stride())
            p.grad_sink = GradientSink(p.grad)  # type: ignore[attr-defined]
            self.sinks.append(p.grad_sink)  # type: ignore[attr-defined]
        compiled = rule.compiled_optimizer(first.device, first.dtype)
        if compiled:
            self.adam: _CompiledAdam | TorchAdam = _CompiledAdam(config, self.flat, self.gradient, starts, n_leading)
        else:
            self.adam = TorchAdam(config, self.flat, self.gradient, starts[n_leading] if n_leading else 0)

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return self.rate()[0]

    def rate(self) -> tuple[float, float]:
        """Learning rate and first momentum of the next step."""
        if self.config.schedule == "constant":
            return self.config.learning_rate, BETAS[0]
        share, momentum = one_cycle(self.done, self.n_steps)
        return self.config.learning_rate * share, momentum

    def with_gradient(self) -> Continued | None:
        """Return the step as a continuation of the call that computes the gradient; None if it is no compiled one."""
        return Continued(self, self.adam) if isinstance(self.adam, _CompiledAdam) else None

    def step(self, loss: Tensor) -> Tensor:
        """Take a step and clear the gradient; return 1 if the step was voided, else 0, on the device."""
        bad = self.adam.step(loss, *self.advance())
        self._empty_sinks()
        return bad

    def step_leading(self, loss: Tensor) -> Tensor:
        """Take a step of the leading parameters alone, at the rate of the next full step; clear the whole gradient."""
        bad = self.adam.step(loss, *self.rate(), leading=True)
        self._empty_sinks()
        return bad

    def _empty_sinks(self) -> None:
        for sink in self.sinks:
            sink.empty = True

    def advance(self) -> tuple[float, float]:
        """Return learning rate and first momentum of the current step, and advance the schedule."""
        rate = self.rate()
        self.done += 1
        return rate

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the schedule, and moments and step counts; the weights are part of the model."""
        return {"done": self.done, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last step of a stored state, of either implementation of Adam."""
        self.done = state["done"]
        self.adam.load_state_dict(state["adam"])

    def release(self) -> None:
        """Give every parameter its own memory again and remove gradients; calling it again has no effect."""
        released, self.parameters = self.parameters, []
        for p in released:
            p.data = p.detach().clone()
            p.grad = None
            del p.grad_sink  # type: ignore[attr-defined]


class Continued:
    """A step of the optimizer that belongs to the call which computes the gradient."""

    def __init__(self, optimizer: Optimizer, adam: _CompiledAdam) -> None:
        self.optimizer, self.adam = optimizer, adam

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The jobs that follow those of the gradient."""
        return self.adam.rounds

    @property
    def loss(self) -> np.ndarray:
        """Where the jobs of the gradient write the mean loss, (1,)."""
        return self.adam.loss

    def prepare(self) -> None:
        """Set the rates of the step that follows; :meth:`Optimizer.step` reports its outcome."""
        self.adam.prepare(*self.optimizer.rate(), leading=self.optimizer.leads)
        self.adam.is_taken = True


class TorchAdam:
    """Adam written in torch operations that never wait for the device; a CUDA graph can capture :meth:`update`.

    torch's own fused Adam takes the momentum as a Python number, which would be fixed in a graph. Here momentum and
    learning rate are read from the device.  The first ``n_leading`` weights have a separate step count.
    """

    def __init__(self, config: TrainConfig, flat: nn.Parameter, gradient: Tensor, n_leading: int = 0) -> None:
        self.flat, self.gradient = flat.detach(), gradient
        self.max_norm, self.eps, self.weight_decay = config.max_grad_norm, config.adam_eps, config.weight_decay
        self.decoupled = config.optimizer == "adamw"
        self.first, self.second, self.scratch = (torch.zeros_like(gradient) for _ in range(3))
        self.parts = [slice(0, n_leading), slice(n_leading, None)] if n_leading else [slice(None)]
        # double precision, because 1 - 0.999 has few digits in single precision
        self.lr = torch.zeros((), dtype=torch.float64, device=flat.device)
        self.taken = torch.zeros(len(self.parts), dtype=torch.float64, device=flat.device)
        self.betas = torch.full((2,), BETAS[1], dtype=torch.float64, device=flat.device)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of both moments, (weights,), and the number of steps of every part."""
        return {
            "first": self.first.cpu().clone(),
            "second": self.second.cpu().clone(),
            "taken": self.taken.long().tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy moments and step counts into the memory that a CUDA graph may read."""
        self.first.copy_(state["first"])
        self.second.copy_(state["second"])
        self.taken.copy_(torch.tensor(state["taken"]))

    def set_rate(self, lr: float, momentum: float) -> None:
        """Set learning rate and first momentum of the next update."""
        self.lr.fill_(lr)
        self.betas[0].fill_(momentum)

    def step(self, loss: Tensor, lr: float, momentum: float, *, leading: bool = False) -> Tensor:
        self.set_rate(lr, momentum)
        return self.update_leading(loss) if leading else self.update(loss)

    def update(self, loss: Tensor) -> Tensor:
        """Take a step at the rate that was set and clear the gradient; return 1 if the step was voided, else 0."""
        return self._update(loss, self.gradient, list(enumerate(self.parts)))

    def update_leading(self, loss: Tensor) -> Tensor:
        """Do the same for the leading weights alone."""
        return self._update(loss, self.gradient[self.parts[0]], [(0, self.parts[0])])

    @torch.no_grad()
    def _update(self, loss: Tensor, gradient: Tensor, parts: list[tuple[int, slice]]) -> Tensor:
        norm = gradient.norm()
        bad = ~torch.isfinite(norm + loss)
        good = (~bad).double()
        if self.max_norm > 0:
            gradient.mul_((self.max_norm / (norm + 1e-6)).clamp_max(1.0))
        # a voided step moves nothing: all factors below are zero then, and what they multiply must be finite
        gradient.masked_fill_(bad, 0.0)
        for i, part in parts:
            self._update_part(i, part, good)
        self.gradient.zero_()
        return bad.to(gradient.dtype)

    def _update_part(self, i: int, part: slice, good: Tensor) -> None:
        gradient, flat, scratch, dtype = self.gradient[part], self.flat[part], self.scratch[part], self.flat.dtype
        first, second = self.first[part], self.second[part]
        if self.weight_decay > 0 and not self.decoupled:
            gradient.add_(flat, alpha=self.weight_decay)
        taken = self.taken[i].add_(good)
        correction = 1.0 - self.betas ** taken.clamp_min(1.0)
        root = correction[1].sqrt()
        fresh = ((1.0 - self.betas) * good).to(dtype)
        first.lerp_(gradient, fresh[0])
        second.lerp_(torch.mul(gradient, gradient, out=scratch), fresh[1])
        torch.sqrt(second, out=scratch).add_((self.eps * root).to(dtype))
        torch.div(first, scratch, out=scratch)
        if self.weight_decay > 0 and self.decoupled:
            flat.mul_((1.0 - self.weight_decay * self.lr * good).to(dtype))
        flat.addcmul_(scratch, (-self.lr * root / correction[0] * good).to(dtype))


class _CompiledAdam:
    """Adam on a CPU, compiled, in two passes over memory.

    The passes may be taken by the call that computes the gradient, see :class:`Continued`; then :meth:`step` only reports them.
    """

    def __init__(
        self, config: TrainConfig, flat: nn.Parameter, gradient: Tensor, starts: list[int], n_leading: int = 0
    ) -> None:
        self.config = config
        ends = [*starts, flat.numel()]
        n_runs = max(1, min(MAX_RUNS, flat.numel() // MIN_RUN))
        # the bounds of the runs of every tensor, (runs + 1, tensors), and the part to which a tensor belongs
        self.cuts = np.linspace(ends[:-1], ends[1:], n_runs + 1).astype(np.int64)
        self.n_leading = n_leading
        self.part = (
            (np.arange(len(starts)) >= n_leading).astype(np.int64) if n_leading else np.zeros(len(starts), np.int64)
        )
        self.taken = [0] * (2 if n_leading else 1)
        self.squares, self.void, self.loss = np.empty(n_runs), np.zeros(1), np.zeros(1)
        # memory from torch starts at a cache line, memory from numpy may not
        self.flat, self.gradient = flat.detach().numpy(), gradient.numpy()
        self.moments = torch.zeros_like(gradient).numpy(), torch.zeros_like(gradient).numpy()
        self.plan: Plan | None = None
        self.is_taken = False

    @functools.cached_property
    def rounds(self) -> tuple[Round, Round]:
        """The jobs of a step; compiled code is needed only from the first step."""
        from vxpress.core.kernels import adam_rows
        from vxpress.core.kernels.frames import Frame

        frame, runs = Frame(adam_rows.WEIGHTS), len(self.squares)
        frame.update({
            adam_rows.P: self.flat, adam_rows.G: self.gradient, adam_rows.M: self.moments[0], adam_rows.V: self.moments[1],
            adam_rows.CUTS: self.cuts, adam_rows.PART: self.part, adam_rows.DECOUPLED: self.config.optimizer == "adamw",
            adam_rows.MAX_NORM: float(self.config.max_grad_norm), adam_rows.SQUARES: self.squares, adam_rows.VOID: self.void,
            adam_rows.LOSS: self.loss,
        })  # fmt: skip
        self.frame = frame
        return [([(adam_rows.square, frame)], runs)], [([(adam_rows.update, frame)], runs)]

    def state_dict(self) -> dict[str, Any]:
        """Return the same as :meth:`TorchAdam.state_dict`."""
        first, second = (torch.from_numpy(moment.copy()) for moment in self.moments)
        return {"first": first, "second": second, "taken": list(self.taken)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy moments and step counts."""
        for moment, name in zip(self.moments, ("first", "second"), strict=True):
            moment[:] = state[name].numpy()
        self.taken = list(state["taken"])

    def prepare(self, lr: float, momentum: float, *, leading: bool) -> None:
        """Set rates and step counts of the next step."""
        from vxpress.core.kernels import adam_rows

        c, _ = self.config, self.rounds
        settings = [
            (lr, momentum, BETAS[1], c.adam_eps, c.weight_decay, 1.0 - momentum**t, math.sqrt(1.0 - BETAS[1] ** t))
            for t in (taken + 1 for taken in self.taken)
        ]
        self.frame.update({
            adam_rows.N_TENSORS: self.n_leading if leading else len(self.part),
            adam_rows.SETTINGS: np.array(settings, np.float32),
        })  # fmt: skip

    def step(self, loss: Tensor, lr: float, momentum: float, *, leading: bool = False) -> Tensor:
        if not self.is_taken:
            from vxpress.core.kernels.frames import Plan

            self.prepare(lr, momentum, leading=leading)
            self.loss[0] = float(loss)
            if self.plan is None:
                self.plan = Plan(*self.rounds)
            self.plan.run(threads.number())
        self.is_taken = False
        if self.void[0]:
            return torch.ones(())
        for i in range(1 if leading else len(self.taken)):
            self.taken[i] += 1
        return torch.zeros(())
