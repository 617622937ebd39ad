from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vxpress.core.data import SOURCES, Cells, Streamed, place
from vxpress.core.data.placement import bytes_needed, residency

MakeCells = Callable[..., Cells]
CPU = torch.device("cpu")


def test_data_are_resident_if_they_fit() -> None:
    assert residency(0, 0) == residency(1, 10) == "resident"
    assert residency(10, 10) == residency(1, 0) == "streamed"
    verdicts = [residency(needed, 1000) for needed in range(0, 1001, 50)]
    assert verdicts == sorted(verdicts)


def test_bytes_needed_include_every_tensor(make_cells: MakeCells) -> None:
    cells = make_cells(60)
    n_stored = len(cells.counts.data)
    # row ends, gene and value of every entry, log library, one covariate, order
    assert bytes_needed(cells.counts, cells) == 8 * 61 + 8 * n_stored + 4 * 60 + 8 * 60 + 8 * 60


def test_everything_is_resident_on_a_cpu(make_cells: MakeCells) -> None:
    cells = make_cells(30)
    placed = place(cells, CPU)
    assert isinstance(placed, Cells)
    assert placed.counts.data is cells.counts.data


@pytest.mark.parametrize(("free", "expected"), [(10**9, Cells), (10, Streamed)])
def test_on_a_gpu_the_free_memory_decides(
    make_cells: MakeCells, monkeypatch: pytest.MonkeyPatch, free: int, expected: type
) -> None:
    class Gpu:
        type = "cuda"

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    for source in (Cells, Streamed):
        monkeypatch.setattr(source, "of", lambda *_, source=source: source)
    assert place(make_cells(30), Gpu()) is expected  # type: ignore[arg-type, comparison-overlap]


def test_a_source_can_be_chosen_by_name(make_cells: MakeCells) -> None:
    cells = make_cells(30)
    for name, kind in SOURCES.items():
        placed = place(cells, CPU, name)
        assert isinstance(placed, kind)
        assert len(placed) == 30
        rows = torch.tensor([7, 7, 0])
        assert torch.equal(placed.batch(rows).x_ng, cells.batch(rows).x_ng)
    with pytest.raises(ValueError, match="source='tape' is not known; choose one of 'resident'"):
        place(cells, CPU, "tape")
