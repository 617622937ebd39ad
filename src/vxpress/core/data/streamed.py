"""Cells whose counts stay on the host: minibatches are assembled there and sent to the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from vxpress.core.covariates import Covariates
from vxpress.core.data.batch import Batch, Rows
from vxpress.core.data.counts import Counts
from vxpress.core.data.source import Source

SLOTS = 2


class Streamed(Source):
    """Counts on the host of computations on another device."""

    def __init__(self, counts: Counts, log_library_n1: Tensor, covariates: Covariates, device: torch.device) -> None:
        self.counts = counts
        self.log_library_n1, self.covariates = log_library_n1.to(device), covariates.to(device)

    @classmethod
    def of(cls, counts: Counts, log_library_n1: Tensor, covariates: Covariates, device: torch.device) -> Streamed:
        """Return the cells with everything except the counts on ``device``."""
        return cls(counts, log_library_n1, covariates, device)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.counts.n_genes

    def read(self, rows: Tensor) -> Rows:
        return Rows(rows.cpu(), self.counts)

    def batches(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        """Yield minibatches; the next one is assembled and sent while the device works on the current one."""
        return prefetched(self, parts)


def prefetched(source: Source, parts: Iterable[Tensor]) -> Iterator[Batch]:
    """Yield minibatches of a source on the host: the next one is sent while the device works on the current one."""
    parts = list(parts)
    if not parts:
        return
    # all row numbers at once: each copy to the host waits for the device
    on_host = torch.cat(parts).cpu().split([len(part) for part in parts])
    slots = [_Slot(max(map(len, parts)), source) for _ in range(SLOTS)]
    stream = torch.cuda.Stream(source.device) if source.device.type == "cuda" else None
    slots[0].send(on_host[0], stream)
    for i, part in enumerate(parts):
        slot = slots[i % SLOTS]
        counts = slot.receive()
        yield Batch(counts, part, source.log_library_n1[part], source.covariates[part])
        slot.release()
        if i + 1 < len(parts):
            slots[(i + 1) % SLOTS].send(on_host[i + 1], stream)


class _Slot:
    """Memory for one minibatch on host and device, with the events that must precede its reuse."""

    def __init__(self, n: int, source: Source) -> None:
        self.source, cuda = source, source.device.type == "cuda"
        self.host_ng = torch.empty(n, source.n_genes, pin_memory=cuda)
        self.device_ng = torch.empty(n, source.n_genes, device=source.device)
        self.sent: torch.cuda.Event | None = torch.cuda.Event() if cuda else None
        self.used: torch.cuda.Event | None = torch.cuda.Event() if cuda else None

    def send(self, rows: Tensor, stream: torch.cuda.Stream | None) -> None:
        """Assemble a minibatch and start its copy on a separate stream; ``rows`` are on the host."""
        counts = self.source.read(rows)
        self.counts = Rows(counts.at, counts.matrix, self.device_ng[: len(rows)])
        if self.sent is None or self.used is None or stream is None:
            self.device_ng[: len(rows)].copy_(counts.dense(self.host_ng[: len(rows)]))
            return
        # pinned memory may be overwritten once its last copy, two steps ago, is complete
        self.sent.synchronize()
        host_ng = counts.dense(self.host_ng[: len(rows)])
        with torch.cuda.stream(stream):
            stream.wait_event(self.used)
            self.device_ng[: len(rows)].copy_(host_ng, non_blocking=True)
            self.sent.record(stream)

    def receive(self) -> Rows:
        """Return the minibatch on the device; work queued after this call waits for the copy, the host does not."""
        if self.sent is not None:
            torch.cuda.current_stream(self.device_ng.device).wait_event(self.sent)
        return self.counts

    def release(self) -> None:
        """Record that all work on the minibatch has been queued."""
        if self.used is not None:
            self.used.record(torch.cuda.current_stream(self.device_ng.device))
