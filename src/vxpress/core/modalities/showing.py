"""In training, some cells that have several modalities show the encoders only one, so that each alone places a cell well."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vxpress.core.config import RNA
from vxpress.core.data import Batch
from vxpress.core.noise import Noise


def observed(batch: Batch) -> dict[str, Tensor | None]:
    """Return which cells of a minibatch have each modality, bool (n,), or None for all."""
    return {RNA: batch.observed_n, **{name: part.observed_n for name, part in batch.further.items()}}


def partly_shown(batch: Batch, share: float, noise: Noise) -> Batch:
    """Return the minibatch with one random modality of a random ``share`` of the cells, and all of the others.

    Cells that have a single modality keep it.
    """
    if share == 0.0:
        return batch
    n, device = len(batch), batch.rows.device
    everywhere = torch.ones(n, dtype=torch.bool, device=device)
    present_mn = torch.stack([everywhere if mask is None else mask for mask in observed(batch).values()])
    alone_n = noise.choose(n, share)
    uniform_n = torch.rand(n, generator=noise.generator, device=device)
    # the number of the modality that is shown, among those that the cell has
    chosen_n = (uniform_n * present_mn.sum(0)).long()
    kept_mn = present_mn & (~alone_n | (present_mn.cumsum(0) - 1 == chosen_n))
    further = {
        name: replace(part, observed_n=kept_n)
        for (name, part), kept_n in zip(batch.further.items(), kept_mn[1:], strict=True)
    }
    return replace(batch, observed_n=kept_mn[0], further=further)
