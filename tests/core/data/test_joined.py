"""Cells in several sources, one for each modality."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vxpress.core.data import Cells, Joined, place

N = 12


@pytest.fixture
def joined(make_cells: Callable[..., Cells]) -> Joined:
    """Return cells every fourth of which lacks proteins."""
    return Joined(make_cells(N), {"protein": make_cells(N, n_genes=5)}, {"protein": torch.arange(N) % 4 != 0})


def _same(one: Joined, two: Joined, rows: torch.Tensor) -> None:
    a, b = one.batch(rows), two.batch(rows)
    assert torch.equal(a.x_ng, b.x_ng)
    assert torch.equal(a.further["protein"].x_ng, b.further["protein"].x_ng)
    assert a.observed_n is None
    assert b.observed_n is None
    masks = [batch.further["protein"].observed_n for batch in (a, b)]
    assert masks[0] is not None
    assert masks[1] is not None
    assert torch.equal(masks[0], masks[1])


def test_a_batch_holds_the_rows_of_every_source(joined: Joined) -> None:
    rows = torch.tensor([5, 0, 5])
    batch, part = joined.batch(rows), joined.further["protein"].batch(rows)
    assert torch.equal(batch.x_ng, joined.first.batch(rows).x_ng)
    assert torch.equal(batch.further["protein"].x_ng, part.x_ng)
    assert torch.equal(batch.further["protein"].log_library_n1, part.log_library_n1)
    assert batch.further["protein"].observed_n is not None
    assert batch.further["protein"].observed_n.tolist() == [True, False, True]


def test_cells_are_taken_and_placed_with_all_their_modalities(joined: Joined) -> None:
    rows = torch.tensor([7, 2, 4])
    taken = joined.take(rows)
    _same(place(taken, torch.device("cpu"), "streamed"), taken, torch.arange(3))
    whole, part = joined.batch(rows), taken.batch(torch.arange(3))
    assert torch.equal(whole.x_ng, part.x_ng)
    assert torch.equal(whole.further["protein"].x_ng, part.further["protein"].x_ng)


def test_a_repeated_batch_repeats_all_modalities(joined: Joined) -> None:
    rows = torch.tensor([3, 8])
    twice, expected = joined.batch(rows).repeated(2), joined.batch(rows.repeat(2))
    assert torch.equal(twice.x_ng, expected.x_ng)
    for name, part in expected.further.items():
        assert torch.equal(twice.further[name].x_ng, part.x_ng)
        assert part.observed_n is not None
        found = twice.further[name].observed_n
        assert found is not None
        assert torch.equal(found, part.observed_n)


def test_other_covariates_reach_all_modalities(joined: Joined) -> None:
    batch = joined.batch(torch.arange(4))
    other = batch.covariates.with_doses(torch.ones(2))
    assert batch.with_covariates(other).further["protein"].covariates is other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": N - 1}, "'protein' has 11 cells, and RNA has 12"),
        ({"masks": {"atac": torch.ones(N, dtype=torch.bool)}}, "names 'atac'"),
        ({"masks": {"protein": torch.ones(N)}}, "one boolean per cell"),
        ({"masks": dict.fromkeys(("rna", "protein"), torch.arange(N) > 2)}, r"3 cell\(s\) have none"),
    ],
)
def test_sources_that_do_not_fit_together_are_refused(
    make_cells: Callable[..., Cells], arguments: dict[str, object], message: str
) -> None:
    n, masks = arguments.get("n", N), arguments.get("masks")
    with pytest.raises(ValueError, match=message):
        Joined(make_cells(N), {"protein": make_cells(n)}, masks)  # type: ignore[arg-type]
