from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.data import ByBlock, Cells, Mapped, Shuffled, Source, gene_sums, have_counts
from vxpress.core.inference.posterior import encode
from vxpress.core.model import build
from vxpress.core.training import train

MakeCells = Callable[..., Cells]
CPU = torch.device("cpu")
CONFIG = ModelConfig(n_genes=20, n_latent=3, n_hidden=16)


def _mapped(cells: Cells) -> Mapped:
    return Mapped.of(cells.counts, cells.log_library_n1, cells.covariates, CPU)


def test_batches_are_those_of_cells_in_memory(make_cells: MakeCells) -> None:
    cells = make_cells(50, n_batches=2)
    mapped, rows = _mapped(cells), torch.tensor([49, 0, 7, 7, 12])
    mine, expected = mapped.batch(rows), cells.batch(rows)
    assert torch.equal(mine.x_ng, expected.x_ng)
    assert torch.equal(mine.covariates.categorical_nk, expected.covariates.categorical_nk)
    assert torch.equal(mine.repeated(2).x_ng, expected.x_ng.repeat(2, 1))
    assert torch.equal(gene_sums(mapped, rows), gene_sums(cells, rows))
    assert bool(have_counts(mapped).all())
    some = mapped.take(rows)
    assert len(some) == 5
    assert torch.equal(some.batch(torch.tensor([0, 4])).x_ng, expected.x_ng[[0, 4]])
    moved = mapped.with_library(torch.ones(50, 1)).to(CPU)
    assert torch.equal(moved.batch(rows).log_library_n1, torch.ones(5, 1))
    assert torch.equal(mapped.batch(rows).log_library_n1, expected.log_library_n1)


def test_a_batch_owns_the_counts_of_its_cells_alone(make_cells: MakeCells) -> None:
    cells, rows = make_cells(50), torch.tensor([3, 40])
    matrix = _mapped(cells).batch(rows).counts.stored[1]
    assert len(matrix) == 2
    assert len(matrix.data) == int(cells.counts.lengths(rows).sum())


@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
def test_a_fit_has_the_same_bits_as_in_memory(
    make_cells: MakeCells, monkeypatch: pytest.MonkeyPatch, likelihood: str
) -> None:
    monkeypatch.setattr(Mapped, "sampler", Cells.sampler)
    cells = make_cells(100)
    config = replace(CONFIG, likelihood=likelihood)
    fits = []
    for source in (cells, _mapped(cells)):
        rows, model = torch.arange(100), build(config, 0)
        model.start_from(source, rows[20:])
        outcome = train(model, source, rows[20:], rows[:20], TrainConfig(3, batch_size=32), seed=0)
        fits.append((outcome.history, model.state_dict(), encode(model, source)))
    (history, weights, encoded), (other_history, other_weights, other_encoded) = fits
    assert history == other_history
    assert all(torch.equal(value, other_weights[name]) for name, value in weights.items())
    assert (encoded.mean_nd == other_encoded.mean_nd).all()


def test_a_training_visits_the_cells_by_blocks(make_cells: MakeCells) -> None:
    seen: list[torch.Tensor] = []

    class Noted(Mapped):
        def read(self, rows: torch.Tensor) -> object:  # type: ignore[override]
            seen.append(rows)
            return super().read(rows)

    cells = make_cells(600)
    source = Noted.of(cells.counts, cells.log_library_n1, cells.covariates, CPU)
    sampler = source.sampler(torch.arange(600), 6, 0)
    assert isinstance(sampler, ByBlock)
    assert not isinstance(cells.sampler(torch.arange(600), 6, 0), ByBlock)
    assert isinstance(cells.sampler(torch.arange(600), 6, 0), Shuffled)
    rows = torch.arange(600)
    train(build(CONFIG, 0), source, rows, rows[:0], TrainConfig(2, batch_size=100), seed=0)
    read = torch.cat(seen)
    assert torch.equal(read.sort().values, rows.repeat_interleave(2))


def test_the_files_can_be_opened_again_and_are_not_changed(make_cells: MakeCells, tmp_path: Path) -> None:
    cells = make_cells(30)
    Mapped.write(cells.counts, tmp_path)
    source: Source = Mapped(tmp_path, cells.log_library_n1, cells.covariates)
    batch = source.batch(torch.arange(30))
    batch.counts.stored[1].data.zero_()
    again = Mapped(tmp_path, cells.log_library_n1, cells.covariates)
    assert torch.equal(again.batch(torch.arange(30)).x_ng, cells.counts.dense(torch.arange(30)))


def test_temporary_files_are_removed_with_the_last_source_that_reads_them(make_cells: MakeCells) -> None:
    source = _mapped(make_cells(30))
    assert source._folder is not None
    folder = source._folder.path
    other = source.to(CPU)
    del source
    gc.collect()
    assert folder.exists()
    del other
    gc.collect()
    assert not folder.exists()


def test_cells_without_counts_can_be_mapped(make_cells: MakeCells) -> None:
    cells = make_cells(4)
    empty = replace(cells, counts=replace(cells.counts, data=cells.counts.data[:0], indices=cells.counts.indices[:0],
                                          indptr=torch.zeros(5, dtype=torch.int64)))  # fmt: skip
    mapped = _mapped(empty)
    assert float(mapped.batch(torch.arange(4)).x_ng.sum()) == 0.0
    assert not bool(have_counts(mapped).any())
