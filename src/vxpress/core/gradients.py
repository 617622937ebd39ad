"""Where functions that compute large gradients themselves put them: into the memory of the optimizer."""

from __future__ import annotations

from torch import Tensor


class GradientSink:
    """A parameter's part of the optimizer's gradient, for functions that compute large gradients themselves."""

    def __init__(self, gradient: Tensor) -> None:
        self.gradient = gradient
        self.empty = True

    def take(self, gradient: Tensor) -> None:
        """Add a gradient of any precision; the first of a step is copied, which needs no temporary tensor."""
        if self.empty:
            self.gradient.copy_(gradient)
        else:
            self.gradient.add_(gradient)
        self.empty = False

    def memory(self) -> Tensor:
        """Return the gradient tensor itself, so that the caller can add to it in place."""
        self.empty = False
        return self.gradient


def hand_over(parameter: Tensor, gradient: Tensor) -> Tensor | None:
    """Return a gradient for autograd, or None if a sink of the optimizer took it."""
    sink: GradientSink | None = getattr(parameter, "grad_sink", None)
    if sink is None:
        return gradient.to(parameter.dtype, copy=True)
    sink.take(gradient)
    return None
