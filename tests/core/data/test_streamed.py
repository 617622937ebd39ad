from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch

from vxpress.core.data import SOURCES, Cells, Streamed, gene_sums, place
from vxpress.core.data.prefetch import _Slot

MakeCells = Callable[..., Cells]
CPU = torch.device("cpu")


def _streamed(cells: Cells) -> Streamed:
    return Streamed.of(cells.counts, cells.log_library_n1, cells.covariates, CPU)


def test_streamed_counts_give_the_same_results_as_resident_ones(make_cells: MakeCells) -> None:
    cells = make_cells(60)
    streamed, rows = _streamed(cells), torch.tensor([5, 59, 0, 5])
    assert len(streamed) == 60
    mine, reference = streamed.batch(rows), cells.batch(rows)
    assert torch.equal(mine.x_ng, reference.x_ng)
    assert torch.equal(mine.log_library_n1, reference.log_library_n1)
    assert torch.equal(gene_sums(streamed, rows), gene_sums(cells, rows))
    for a, b in zip(mine.entries(), reference.entries(), strict=True):
        assert torch.equal(a, b)
    some = streamed.take(rows)
    assert torch.equal(some.batch(torch.tensor([1, 3])).x_ng, cells.batch(torch.tensor([59, 5])).x_ng)


@pytest.mark.parametrize("n_batches", [1, 2, 3, 7])
def test_streamed_minibatches_are_the_parts_of_the_epoch(make_cells: MakeCells, n_batches: int) -> None:
    cells = make_cells(60)
    rows = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    parts = rows.tensor_split(n_batches)
    seen = [(b.rows.clone(), b.x_ng.clone(), b.log_library_n1) for b in _streamed(cells).prefetched(parts)]
    assert all(torch.equal(part, mine[0]) for part, mine in zip(parts, seen, strict=True))
    assert torch.equal(torch.cat([x for _, x, _ in seen]), cells.counts.dense(rows))
    assert torch.equal(torch.cat([library for *_, library in seen]), cells.log_library_n1[rows])


@pytest.mark.parametrize("name", SOURCES)
def test_on_a_processor_every_minibatch_stays_as_it_is(make_cells: MakeCells, name: str) -> None:
    cells = make_cells(60)
    parts = torch.arange(60).tensor_split(7)
    batches = list(place(cells, CPU, name).batches(parts))
    assert torch.equal(torch.cat([batch.x_ng for batch in batches]), cells.batch(torch.arange(60)).x_ng)


def test_no_parts_no_minibatches(make_cells: MakeCells) -> None:
    assert list(_streamed(make_cells(5)).prefetched([])) == []


class _Recorder:
    """Records calls of streams and events instead of executing them."""

    def __init__(self, *_: object) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: self.calls.append(name)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def test_memory_of_a_minibatch_is_reused_only_when_it_is_free(
    make_cells: MakeCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, sent, used = _Recorder(), _Recorder(), _Recorder()
    monkeypatch.setattr(torch.cuda, "stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: _Recorder())
    cells, rows = make_cells(30), torch.tensor([3, 9, 1])
    slot = _Slot(4, cells.n_genes, CPU)
    slot.sent, slot.used = cast("torch.cuda.Event", sent), cast("torch.cuda.Event", used)
    slot.send(cells.read(rows), cast("torch.cuda.Stream", stream))
    assert torch.equal(slot.receive().dense(), cells.counts.dense(rows))
    slot.release()
    assert sent.calls == ["synchronize", "record"]
    assert stream.calls == ["wait_event"]
    assert used.calls == ["record"]
