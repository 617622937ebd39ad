"""Go through the cells of a source in order, batch by batch; sums over all cells are made this way."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vxpress.core.data.batch import Batch
from vxpress.core.data.source import Source
from vxpress.core.progress import steps

SIZE = 1024


def walk(
    source: Source, rows: Tensor | None = None, size: int = SIZE, *, stage: str | None = None, dense: bool = True
) -> Iterator[tuple[slice, Batch]]:
    """Yield the cells ``rows`` (by default all) in batches of at most ``size``, with their positions in ``rows``.

    On a GPU a batch is valid until the next one is requested. ``stage`` names the computation for progress bars. Pass
    ``dense=False`` if dense counts are not needed; then none are prepared ahead.
    """
    rows = torch.arange(len(source), device=source.device) if rows is None else rows
    places = [slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
    parts = [rows[place] for place in places]
    batches = source.batches(parts) if dense else source.sparse_batches(parts)
    yield from zip(places if stage is None else steps(places, stage), batches, strict=False)


def gene_sums(source: Source, rows: Tensor | None = None) -> Tensor:
    """Sum counts per gene over some cells (by default all; repeated rows count once), float64 (genes,)."""
    rows = None if rows is None else rows.unique()
    if (known := source.sums_g) is not None:
        if rows is None:
            return known
        others = torch.ones(len(source), dtype=torch.bool, device=rows.device)
        others[rows] = False
        if int(others.sum()) < len(rows):
            # sums of counts are exact, so this is the same number
            return known - _summed(source, others.nonzero()[:, 0])
    return _summed(source, rows)


def _summed(source: Source, rows: Tensor | None) -> Tensor:
    sums = torch.zeros(source.n_genes, dtype=torch.float64, device=source.device)
    for _, batch in walk(source, rows, dense=False):
        where, values = batch.entries()
        sums.index_add_(0, where % source.n_genes, values.double())
    return sums


def have_counts(source: Source) -> Tensor:
    """Return whether each cell has any count, bool (n,), on the CPU."""
    if (known := source.counted_n) is not None:
        return known
    found = torch.zeros(len(source), dtype=torch.bool)
    for part, batch in walk(source, dense=False):
        found[part] = (batch.counts.n_stored() > 0).cpu()
    return found
