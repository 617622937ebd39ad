"""Which source holds the cells of a fit."""

from __future__ import annotations

from typing import Literal

import torch

from vxpress.core import registry
from vxpress.core.data.counts import Counts
from vxpress.core.data.joined import Joined
from vxpress.core.data.mapped import Mapped
from vxpress.core.data.resident import Cells
from vxpress.core.data.source import Source
from vxpress.core.data.stored import Stored
from vxpress.core.data.streamed import Streamed

SOURCES: registry.Registry[type[Source]] = registry.SOURCES
SOURCES.register("resident", Cells)
SOURCES.register("streamed", Streamed)
SOURCES.register("mapped", Mapped)
SOURCES.register("stored", Stored)

# the rest is for the model, its optimizer and the temporaries of a step
RESIDENT_SHARE = 0.6


def residency(needed: int, free: int) -> Literal["resident", "streamed"]:
    """Decide whether ``needed`` bytes stay on a device with ``free`` bytes, or are sent minibatch by minibatch."""
    return "resident" if needed <= RESIDENT_SHARE * free else "streamed"


def bytes_needed(counts: Counts, cells: Source) -> int:
    """Compute the memory of all tensors of these cells and of the order of an epoch."""
    covariates = cells.covariates
    tensors = (
        *counts.tensors(), cells.log_library_n1,
        covariates.categorical_nk, covariates.continuous_nc, covariates.label_n,
    )  # fmt: skip
    return sum(t.numel() * t.element_size() for t in tensors if t is not None) + 8 * len(cells)


def place(cells: Source, device: torch.device, source: str | None = None) -> Source:
    """Return the cells in the named source of :data:`SOURCES`, each modality by itself.

    By default they are resident on ``device``; on a GPU whose free memory they would fill, they are streamed. Counts that are not
    in memory stay where they are.
    """
    if isinstance(cells, Joined):
        return cells.of_each(lambda one: place(one, device, source))
    if not cells.in_memory and source in (None, "stored"):
        return cells.to(device)
    counts = cells.load()
    if source is None:
        source = "resident"
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            source = residency(bytes_needed(counts, cells), free)
    SOURCES.check(source, "source")
    return SOURCES[source].of(counts, cells.log_library_n1, cells.covariates, device)
