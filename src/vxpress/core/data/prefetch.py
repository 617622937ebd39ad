"""Counts on the host are assembled and sent to a GPU while it works on the minibatch before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from vxpress.core.data.batch import Rows

SLOTS = 2


def prefetched(
    read: Callable[[Tensor], Rows], parts: Iterable[Tensor], n_genes: int, device: torch.device
) -> Iterator[tuple[Tensor, Rows]]:
    """Yield each list of row numbers with the counts that ``read`` returns for it on the host, dense on ``device``.

    The dense counts are valid until the next ones are requested.
    """
    parts = list(parts)
    if not parts:
        return
    # all row numbers at once: each copy to the host waits for the device
    on_host = torch.cat(parts).cpu().split([len(part) for part in parts])
    slots = [_Slot(max(map(len, parts)), n_genes, device) for _ in range(SLOTS)]
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    slots[0].send(read(on_host[0]), stream)
    for i, part in enumerate(parts):
        slot = slots[i % SLOTS]
        yield part, slot.receive()
        slot.release()
        if i + 1 < len(parts):
            slots[(i + 1) % SLOTS].send(read(on_host[i + 1]), stream)


class _Slot:
    """Memory for one minibatch on host and device, with the events that must precede its reuse."""

    def __init__(self, n: int, n_genes: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.host_ng = torch.empty(n, n_genes, pin_memory=cuda)
        self.device_ng = torch.empty(n, n_genes, device=device)
        self.sent: torch.cuda.Event | None = torch.cuda.Event() if cuda else None
        self.used: torch.cuda.Event | None = torch.cuda.Event() if cuda else None

    def send(self, counts: Rows, stream: torch.cuda.Stream | None) -> None:
        """Assemble a minibatch and start its copy on a separate stream."""
        n = len(counts)
        self.counts = Rows(counts.at, counts.matrix, self.device_ng[:n])
        if self.sent is None or self.used is None or stream is None:
            self.device_ng[:n].copy_(counts.dense(self.host_ng[:n]))
            return
        # pinned memory may be overwritten once its last copy, two steps ago, is complete
        self.sent.synchronize()
        host_ng = counts.dense(self.host_ng[:n])
        with torch.cuda.stream(stream):
            stream.wait_event(self.used)
            self.device_ng[:n].copy_(host_ng, non_blocking=True)
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
