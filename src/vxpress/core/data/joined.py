"""Cells with several modalities, each in a source of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from vxpress.core.config import RNA
from vxpress.core.covariates import Covariates
from vxpress.core.data.batch import Batch, Rows
from vxpress.core.data.counts import Counts
from vxpress.core.data.sampler import Sampler
from vxpress.core.data.source import Source


class Joined(Source):
    """The same cells in several sources, one for each modality.

    The first source holds RNA and decides covariates, size factors and the order of an epoch. Row ``i`` of every source
    is the same cell. A cell that lacks a modality has an empty row in its source, whose log size factor can be any finite
    number.

    Parameters
    ----------
    first
        RNA.
    others
        The other modalities by name. Covariates of these sources are not used.
    observed
        Which cells have a modality, bool (n,), by name, ``"rna"`` for the first. A modality that is left out is one that
        all cells have.

    Raises
    ------
    ValueError
        If the sources differ in their number of cells, a mask has another length or no modality, or a cell has none.
    """

    def __init__(
        self, first: Source, others: Mapping[str, Source], observed: Mapping[str, Tensor] | None = None
    ) -> None:
        self.first, self._further = first, dict(others)
        self._observed = {
            name: mask.to(first.device) for name, mask in (observed or {}).items() if not bool(mask.all())
        }
        self.log_library_n1, self.covariates = first.log_library_n1, first.covariates
        _check(self, observed or {})

    @classmethod
    def of(cls, counts: Counts, log_library_n1: Tensor, covariates: Covariates, device: torch.device) -> Source:
        """Raise ``TypeError``: modalities are joined by the constructor."""
        msg = "Joined(first, others) makes a source of several modalities."
        raise TypeError(msg)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.first.n_genes

    @property
    def on_device(self) -> bool:  # type: ignore[override]
        """Whether all sources are."""
        return self.first.on_device and all(source.on_device for source in self._further.values())

    @property
    def in_memory(self) -> bool:  # type: ignore[override]
        """Whether all sources are."""
        return self.first.in_memory and all(source.in_memory for source in self._further.values())

    @property
    def further(self) -> Mapping[str, Source]:
        return self._further

    def observed(self, name: str) -> Tensor | None:
        return self._observed.get(name)

    def read(self, rows: Tensor) -> Rows:
        return self.first.read(rows)

    def batch(self, rows: Tensor) -> Batch:
        return self._joined(rows, self.first.read(rows), {name: s.read(rows) for name, s in self._further.items()})

    def _joined(self, rows: Tensor, counts: Rows, others: Mapping[str, Rows]) -> Batch:
        covariates = self.covariates[rows]
        further = {
            name: Batch(others[name], rows, source.log_library_n1[rows], covariates, observed_n=self._seen(name, rows))
            for name, source in self._further.items()
        }
        observed_n = self._seen(RNA, rows)
        return Batch(counts, rows, self.log_library_n1[rows], covariates, observed_n=observed_n, further=further)

    def _seen(self, name: str, rows: Tensor) -> Tensor | None:
        observed_n = self._observed.get(name)
        return None if observed_n is None else observed_n[rows]

    def assembled(self, rows: Tensor, x_ng: Tensor) -> Batch:
        batch = self.batch(rows)
        return replace(batch, counts=Rows(rows, None, x_ng))

    def batches(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        return self.sparse_batches(parts)

    def sparse_batches(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        parts = list(parts)
        sources = [self.first, *self._further.values()]
        for rows, *found in zip(parts, *(source.sparse_batches(parts) for source in sources), strict=True):
            counts, *others = [batch.counts for batch in found]
            yield self._joined(rows, counts, dict(zip(self._further, others, strict=True)))

    def keep(self, rows: Tensor) -> None:
        for source in (self.first, *self._further.values()):
            source.keep(rows)

    def sampler(self, rows: Tensor, n_minibatches: int, seed: int) -> Sampler:
        return self.first.sampler(rows, n_minibatches, seed)

    def take(self, rows: Tensor) -> Joined:
        """Return some of the cells."""
        others = {name: source.take(rows) for name, source in self._further.items()}
        taken = copy.copy(self)
        taken.first, taken._further = self.first.take(rows), others
        taken._observed = {name: mask[rows] for name, mask in self._observed.items()}
        taken.log_library_n1, taken.covariates = self.log_library_n1[rows], self.covariates[rows]
        return taken

    def without(self, name: str) -> Joined:
        """Return the same cells as if none had the modality ``name``; they may have no other."""
        changed = copy.copy(self)
        none = torch.zeros(len(self), dtype=torch.bool, device=self.device)
        changed._observed = self._observed | {name: none}
        return changed

    def of_each(self, change: Callable[[Source], Source]) -> Joined:
        """Return the same cells in sources that ``change`` makes of the present ones."""
        others = {name: change(source) for name, source in self._further.items()}
        return Joined(change(self.first), others, self._observed)

    def to(self, device: torch.device) -> Joined:
        """Return the same data for computations on another device."""
        moved = copy.copy(self)
        moved.first = self.first.to(device)
        moved._further = {name: source.to(device) for name, source in self._further.items()}
        moved._observed = {name: mask.to(device) for name, mask in self._observed.items()}
        moved.log_library_n1, moved.covariates = self.log_library_n1.to(device), self.covariates.to(device)
        return moved


def _check(joined: Joined, observed: Mapping[str, Tensor]) -> None:
    n, names = len(joined), (RNA, *joined.further)
    for name, source in joined.further.items():
        if len(source) != n:
            msg = f"The modality {name!r} has {len(source)} cells, and RNA has {n}; a row for each cell is expected in both."
            raise ValueError(msg)
    for name, mask in observed.items():
        if name not in names:
            msg = f"observed= names {name!r}, which is not one of the modalities {', '.join(map(repr, names))}."
            raise ValueError(msg)
        if mask.dtype != torch.bool or mask.shape != (n,):
            msg = f"The mask of {name!r} is {mask.dtype} {tuple(mask.shape)}; one boolean per cell is expected, ({n},)."
            raise ValueError(msg)
    if all(name in observed for name in names):
        lacking = int((~torch.stack([observed[name] for name in names]).any(0)).sum())
        if lacking:
            msg = f"{lacking} cell(s) have none of the modalities {', '.join(map(repr, names))}. Leave them out."
            raise ValueError(msg)
