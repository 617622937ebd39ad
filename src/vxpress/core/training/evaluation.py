"""Sums and means of the terms of a bound over cells, by the names of modalities and latent blocks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from vxpress.core.data import Source, walk
from vxpress.core.model import VAE
from vxpress.core.noise import Noise
from vxpress.core.objectives import Elbo, Means, Objective
from vxpress.core.parallel import SINGLE, World
from vxpress.core.threads import same_bits

CHUNK = 1024


class Totals:
    """Sums over cells of the terms of a bound, in double precision, on a device.

    All sums are in one tensor, which is allocated once, so that a CUDA graph can add to it.
    """

    def __init__(self, model: VAE, device: torch.device) -> None:
        self._modalities, self._blocks = model.modalities, tuple(model.blocks)
        self._sums = torch.zeros(len(self._modalities) + len(self._blocks) + 1, dtype=torch.float64, device=device)
        # views, made once
        self._terms, self._cells = self._sums[:-1], self._sums[-1]

    def clear(self) -> None:
        """Set all sums to zero."""
        self._sums.zero_()

    def sums(self) -> Tensor:
        """Return a copy of all sums, the number of cells last."""
        return self._sums.cpu().clone()

    def set_sums(self, sums: Tensor) -> None:
        """Set all sums, in place: a CUDA graph may add to this memory."""
        self._sums.copy_(sums)

    def pack(self, terms: Elbo) -> Tensor:
        """Sum the terms of some cells, for :meth:`add`; ``ValueError`` is raised for a term that no name stands for."""
        if len(terms.reconstruction) != len(self._modalities):
            msg = (
                f"log_likelihood returned terms for {', '.join(terms.reconstruction)}, but the modalities of the model are "
                f"{', '.join(self._modalities)}. Name all of them in its attribute modalities."
            )
            raise ValueError(msg)
        parts = [terms.reconstruction[name] for name in self._modalities] + [terms.kl[name] for name in self._blocks]
        return torch.stack([part.sum() for part in parts]).detach().double()

    def pack_sums(self, reconstruction: Mapping[str, float], kl: Mapping[str, float]) -> Tensor:
        """Return sums that are known already in the form of :meth:`pack`."""
        values = [reconstruction[name] for name in self._modalities] + [kl[name] for name in self._blocks]
        return torch.tensor(values, dtype=torch.float64)

    def add(self, packed: Tensor, n_cells: int, bad: Tensor | None = None) -> None:
        """Add the sums of ``n_cells`` cells, unless ``bad`` is above 0; nothing waits for the device."""
        if bad is None:
            self._terms.add_(packed)
            self._cells.add_(n_cells)
        else:
            self._sums += torch.where(bad > 0, 0.0, F.pad(packed, (0, 1), value=n_cells))

    def sum_over(self, world: World) -> None:
        """Replace all sums by those over the cells of all processes."""
        world.sum_(self._sums)

    @property
    def n_cells(self) -> float:
        """Number of cells that were added."""
        return float(self._cells)

    def means(
        self, further: Mapping[str, Tensor] | None = None, kl_per_column: Mapping[str, Tensor] | None = None
    ) -> Means:
        """Return means over the cells; ``further`` are sums over the same cells, ``kl_per_column`` already means."""
        n = self._cells
        values = iter((self._terms / n).tolist())
        return Means(
            {name: next(values) for name in self._modalities},
            {name: next(values) for name in self._blocks},
            {name: (sums / n).tolist() for name, sums in (further or {}).items()},
            {name: value.tolist() for name, value in (kl_per_column or {}).items()},
        )


@same_bits
@torch.no_grad()
def evaluate(
    model: VAE, source: Source, rows: Tensor, eps: Tensor, objective: Objective, world: World = SINGLE
) -> Means:
    """Compute means of the objective's terms over cells with fixed noise, and what it needs in addition.

    Each process of ``world`` evaluates a part of the cells, and all return the means over all of them.
    """
    model.eval()
    if len(rows) < world.size:
        world = SINGLE  # too few to share
    n_cells, own = len(rows), world.part(len(rows))
    rows, eps = rows[own], eps[own]
    unused, totals = Noise(0, rows.device), Totals(model, rows.device)
    further: dict[str, Tensor] = {}
    per_column: dict[str, Tensor] = {}
    for part, batch in walk(source, rows, max(1, CHUNK // (objective.n_samples or 1))):
        terms = objective.terms(model, batch, unused, eps[part])
        for name, sums in objective.further(terms).items():
            further[name] = further.get(name, 0.0) + sums.double()
        for name, block in model.blocks.items():
            if block.analytic:
                per_column[name] = per_column.get(name, 0.0) + terms.kl[name].sum(0).double() / n_cells
        totals.add(totals.pack(terms), len(batch))
    totals.sum_over(world)
    for sums in (*further.values(), *per_column.values()):
        world.sum_(sums)
    return totals.means(further, per_column)
