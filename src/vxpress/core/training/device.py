"""Training on a GPU: a training step as one CUDA graph, and the precision of its products.

A GPU computes a minibatch in less time than the host needs to launch the operations one by one.  So nothing within an
epoch waits for the device, and if CUDA can capture a step, the host launches it as a whole.
"""

from __future__ import annotations

import functools
import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vxpress.core import rule
from vxpress.core.data import Batch, Source
from vxpress.core.isolation import SharedSetting
from vxpress.core.networks import Decoder
from vxpress.core.noise import Noise

# steps of one size before capture: in these steps libraries choose and load their kernels
WARM_UP_STEPS = 3


# a step as one CUDA graph


@dataclass
class _Size:
    """Inputs of the graph for one minibatch size, and the graph once it is captured.

    ``x_ng`` are the dense counts of a source that cannot read them within a graph.
    """

    source: Source
    rows: Tensor
    x_ng: Tensor | None
    taken: int = 0
    graph: torch.cuda.CUDAGraph | None = None

    @classmethod
    def of(cls, source: Source, batch: Batch) -> _Size:
        return cls(source, batch.rows.clone(), None if source.on_device else batch.x_ng.clone())

    def load(self, batch: Batch) -> None:
        self.rows.copy_(batch.rows)
        if self.x_ng is not None:
            self.x_ng.copy_(batch.x_ng)

    def batch(self) -> Batch:
        return self.source.batch(self.rows) if self.x_ng is None else self.source.assembled(self.rows, self.x_ng)


class Replay:
    """Run ``step(batch)`` as a CUDA graph; one graph per minibatch size (an epoch has one or two sizes).

    The first steps of a size run without a graph, on the stream that captures later.  A step must not read host values
    that change between calls, and must not wait for the device.  If a capture fails, ``failure`` holds the reason and
    all further steps run without a graph.
    """

    def __init__(self, step: Callable[[Batch], None], source: Source, noise: Noise, device: torch.device) -> None:
        self.step, self.source, self.noise, self.device = step, source, noise, device
        self.sizes: dict[int, _Size] = {}
        self.failure: str | None = None if rule.captured_step(device) else f"no graphs on {device.type}"
        self.stream = torch.cuda.Stream(device) if self.failure is None else None

    def __call__(self, batch: Batch) -> None:
        if self.failure is not None or self.stream is None:
            self.step(batch)
            return
        if len(batch) not in self.sizes:
            self.sizes[len(batch)] = _Size.of(self.source, batch)
        size = self.sizes[len(batch)]
        with torch.cuda.device(self.device):
            size.load(batch)
            if size.graph is None and size.taken >= WARM_UP_STEPS:
                self._capture(size, self.stream)
            if size.graph is None:
                self._take(size, self.stream)
            else:
                size.graph.replay()

    def _take(self, size: _Size, stream: torch.cuda.Stream) -> None:
        """Take one step without a graph, in order with earlier and later work."""
        current = torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self.step(size.batch())
        current.wait_stream(stream)
        size.taken += 1

    def _capture(self, size: _Size, stream: torch.cuda.Stream) -> None:
        """Record the step without running it."""
        generator, graph = self.noise.generator, torch.cuda.CUDAGraph()
        state = generator.get_state()
        known = [other.graph for other in self.sizes.values() if other.graph is not None]
        try:
            graph.register_generator_state(generator)
            # graphs run one after another and keep nothing in their memory, so they share it
            pool = known[0].pool() if known else None
            # the outer context restores the stream if the inner one fails to
            with _no_collection(), torch.cuda.stream(stream), torch.cuda.graph(graph, pool=pool, stream=stream):
                self.step(size.batch())
        except RuntimeError as error:
            self.failure = str(error)
            msg = f"A training step could not be captured as a CUDA graph ({error}); training continues without, which is slower."
            warnings.warn(msg, RuntimeWarning, stacklevel=2)
            # a generator that took part in a failed capture cannot be used any more
            self.noise.generator = torch.Generator(device=self.device)
            self.noise.generator.set_state(state)
        else:
            size.graph = graph


@contextmanager
def _no_collection() -> Iterator[None]:
    """Within this block, collect no cycles: freeing memory of earlier work on the device would end a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# precision


@contextmanager
def precision(decoder: Decoder, device: torch.device) -> Iterator[None]:
    """Within this block, run matrix products in the precision of gradient steps; nothing changes outside."""
    if device.type != "cuda":
        yield
        return
    capability, dtype = torch.cuda.get_device_capability(device), decoder.location.weight.dtype
    with ExitStack() as stack:
        if rule.tensor_float32(capability, dtype, training=True):
            stack.enter_context(tensor_float32())
        if (product := rule.output_dtype(capability, dtype, training=True)) != dtype:
            stack.enter_context(rounded_outputs(decoder, product))
        yield


def _tensor_float32_setting() -> SharedSetting[Any]:
    flags: Any = torch.backends.cuda.matmul
    # torch forbids reading the older name once the newer one was used
    name, value = ("fp32_precision", "tf32") if hasattr(flags, "fp32_precision") else ("allow_tf32", True)
    return SharedSetting(functools.partial(getattr, flags, name), functools.partial(setattr, flags, name), value)


_TENSOR_FLOAT32 = _tensor_float32_setting()


def tensor_float32() -> AbstractContextManager[None]:
    """Within a block, let torch round the inputs of float32 products to TensorFloat32."""
    return _TENSOR_FLOAT32.held()


@contextmanager
def rounded_outputs(decoder: Decoder, dtype: torch.dtype) -> Iterator[None]:
    """Within a block, let the output layers multiply in ``dtype`` and add their bias in their own precision."""
    layers = [decoder.location, *(head for head in decoder.heads.values() if isinstance(head, nn.Linear))]
    try:
        for layer in layers:
            setattr(layer, "forward", _Rounded(layer, dtype))  # noqa: B010 - of this layer, not of its class
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


class _Rounded:
    """A linear layer's product in a lower precision, as in the compiled likelihood on a CPU."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        self.layer, self.dtype = layer, dtype

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), self.layer.weight.to(self.dtype)) + self.layer.bias
