"""Training on a GPU: placement of the data, transfer of minibatches, and a training step as one CUDA graph.

A GPU computes a minibatch in less time than the host needs to launch the operations one by one.  So nothing within an
epoch waits for the device, and if CUDA can capture a step, the host launches it as a whole.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vxpress.core import rule
from vxpress.core.data import Cells, Counts
from vxpress.core.isolation import SharedSetting
from vxpress.core.networks import Decoder, Noise

# the rest is for the model, its optimizer and the temporaries of a step
RESIDENT_SHARE = 0.6
# steps of one size before capture: in these steps libraries choose and load their kernels
WARM_UP_STEPS = 3
SLOTS = 2


# placement of the data


def residency(needed: int, free: int) -> Literal["resident", "streamed"]:
    """Decide whether ``needed`` bytes stay on a device with ``free`` bytes, or are sent minibatch by minibatch."""
    return "resident" if needed <= RESIDENT_SHARE * free else "streamed"


def bytes_needed(cells: Cells) -> int:
    """Compute the memory of all tensors of these cells and of the order of an epoch."""
    counts, covariates = cells.counts, cells.covariates
    tensors = (
        counts.indptr, counts.indices, counts.data, cells.log_library_n1,
        covariates.categorical_nk, covariates.continuous_nc, covariates.label_n,
    )  # fmt: skip
    return sum(t.numel() * t.element_size() for t in tensors if t is not None) + 8 * len(cells)


def place(cells: Cells, device: torch.device) -> Cells:
    """Move cells to ``device``; if they do not fit, the counts stay on the CPU."""
    if device.type != "cuda":
        return cells.to(device)
    free, _ = torch.cuda.mem_get_info(device)
    return cells.to(device) if residency(bytes_needed(cells), free) == "resident" else streamed(cells, device)


def streamed(cells: Cells, device: torch.device) -> Cells:
    """Return cells whose counts stay on the CPU but return their results on ``device``."""
    counts = cells.counts
    streamed_counts = StreamedCounts(counts.indptr, counts.indices, counts.data, counts.n_genes, device)
    return Cells(streamed_counts, cells.log_library_n1.to(device), cells.covariates.to(device))


@dataclass(frozen=True)
class StreamedCounts(Counts):
    """Counts on the CPU whose methods return tensors on another device; row numbers may be on either."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        where, values = super().entries(rows.cpu())
        return where.to(self.device), values.to(self.device)

    def dense(self, rows: Tensor) -> Tensor:
        return self.assemble(rows.cpu()).to(self.device)

    def assemble(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Return dense rows on the CPU, written into ``out`` if given."""
        where, values = Counts.entries(self, rows)
        x_ng = torch.empty(len(rows), self.n_genes) if out is None else out
        x_ng.zero_().view(-1)[where] = values
        return x_ng

    def gene_sums(self, rows: Tensor | None = None) -> Tensor:
        return super().gene_sums(None if rows is None else rows.cpu()).to(self.device)


# transfer of minibatches


def minibatches(cells: Cells, rows: Tensor, n_batches: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the rows of an epoch in ``n_batches`` parts, and their dense counts if these are streamed.

    Streamed counts are valid until the next part is requested.
    """
    parts = rows.tensor_split(n_batches)
    if isinstance(cells.counts, StreamedCounts):
        yield from _prefetched(cells.counts, parts, rows.cpu().tensor_split(n_batches))
        return
    for part in parts:
        yield part, None


def _prefetched(
    counts: StreamedCounts, parts: tuple[Tensor, ...], on_host: tuple[Tensor, ...]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Assemble and send the next part while the device works on the current one."""
    slots = [_Slot(len(parts[0]), counts.n_genes, counts.device) for _ in range(SLOTS)]
    stream = torch.cuda.Stream(counts.device) if counts.device.type == "cuda" else None
    slots[0].send(counts, on_host[0], stream)
    for i, part in enumerate(parts):
        slot = slots[i % SLOTS]
        yield part, slot.receive(len(part))
        slot.release()
        if i + 1 < len(parts):
            slots[(i + 1) % SLOTS].send(counts, on_host[i + 1], stream)


class _Slot:
    """Memory for one minibatch on host and device, with the events that must precede its reuse."""

    def __init__(self, n: int, n_genes: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.host_ng = torch.empty(n, n_genes, pin_memory=cuda)
        self.device_ng = torch.empty(n, n_genes, device=device)
        self.sent: torch.cuda.Event | None = torch.cuda.Event() if cuda else None
        self.used: torch.cuda.Event | None = torch.cuda.Event() if cuda else None

    def send(self, counts: StreamedCounts, rows: Tensor, stream: torch.cuda.Stream | None) -> None:
        """Assemble a minibatch and start its copy on a separate stream."""
        if self.sent is None or self.used is None or stream is None:
            self.device_ng[: len(rows)].copy_(counts.assemble(rows, self.host_ng[: len(rows)]))
            return
        # pinned memory may be overwritten once its last copy, two steps ago, is complete
        self.sent.synchronize()
        host_ng = counts.assemble(rows, self.host_ng[: len(rows)])
        with torch.cuda.stream(stream):
            stream.wait_event(self.used)
            self.device_ng[: len(rows)].copy_(host_ng, non_blocking=True)
            self.sent.record(stream)

    def receive(self, n: int) -> Tensor:
        """Return the minibatch on the device; work queued after this call waits for the copy, the host does not."""
        if self.sent is not None:
            torch.cuda.current_stream(self.device_ng.device).wait_event(self.sent)
        return self.device_ng[:n]

    def release(self) -> None:
        """Record that all work on the minibatch has been queued."""
        if self.used is not None:
            self.used.record(torch.cuda.current_stream(self.device_ng.device))


# a step as one CUDA graph


@dataclass
class _Size:
    """Inputs of the graph for one minibatch size, and the graph once it is captured."""

    rows: Tensor
    x_ng: Tensor | None
    taken: int = 0
    graph: torch.cuda.CUDAGraph | None = None

    def load(self, rows: Tensor, x_ng: Tensor | None) -> None:
        self.rows.copy_(rows)
        if self.x_ng is not None and x_ng is not None:
            self.x_ng.copy_(x_ng)


class Replay:
    """Run ``step(rows, x_ng)`` as a CUDA graph; one graph per minibatch size (an epoch has one or two sizes).

    The first steps of a size run without a graph, on the stream that captures later.  A step must not read host values
    that change between calls, and must not wait for the device.  If a capture fails, ``failure`` holds the reason and
    all further steps run without a graph.
    """

    def __init__(self, step: Callable[[Tensor, Tensor | None], None], noise: Noise, device: torch.device) -> None:
        self.step, self.noise, self.device = step, noise, device
        self.sizes: dict[int, _Size] = {}
        self.failure: str | None = None if rule.captured_step(device) else f"no graphs on {device.type}"
        self.stream = torch.cuda.Stream(device) if self.failure is None else None

    def __call__(self, rows: Tensor, x_ng: Tensor | None = None) -> None:
        if self.failure is not None or self.stream is None:
            self.step(rows, x_ng)
            return
        if len(rows) not in self.sizes:
            self.sizes[len(rows)] = _Size(rows.clone(), None if x_ng is None else x_ng.clone())
        size = self.sizes[len(rows)]
        with torch.cuda.device(self.device):
            size.load(rows, x_ng)
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
            self.step(size.rows, size.x_ng)
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
            with torch.cuda.stream(stream), torch.cuda.graph(graph, pool=pool, stream=stream):
                self.step(size.rows, size.x_ng)
        except RuntimeError as error:
            self.failure = str(error)
            msg = f"A training step could not be captured as a CUDA graph ({error}); training continues without, which is slower."
            warnings.warn(msg, RuntimeWarning, stacklevel=2)
            # a generator that took part in a failed capture cannot be used any more
            self.noise.generator = torch.Generator(device=self.device)
            self.noise.generator.set_state(state)
        else:
            size.graph = graph


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
