"""Settle the embeddings of perturbations, and batches without a modality, after the training; everything else stays as it is.

In training, only the divergence moves an embedding, slowly where the counts say little about a dimension: part of an effect
stays in the basal positions. Given the encoder, the embeddings that take the rest out are a least squares problem: the basal
positions of all perturbations then have the mean of the control cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vxpress.core.blocks import Z
from vxpress.core.data import Source, walk
from vxpress.core.inference.posterior import CHUNK
from vxpress.core.model import VAE

# penalty of the least squares problem, in cells: an effect that one cell shows is halved
RIDGE = 1.0
MAX_CELLS = 50_000
SEED = 0


@torch.no_grad()
def settle(model: VAE, source: Source, rows: Tensor) -> None:
    """Add to each embedding what it leaves in the basal positions of the cells ``rows``, at most 50,000 at random.

    Before, batches without a modality get the mean of the others, see :meth:`VAE.average_unmeasured`.
    """
    model.average_unmeasured(source, rows)
    perturbations = model.conditioner.perturbations
    if perturbations is None:
        return
    if len(rows) > MAX_CELLS:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))[:MAX_CELLS]
        rows = rows[order.sort().values.to(rows.device)]
    p, d = perturbations.embedding.shape
    # control cells are described by the last column, the mean
    gram, moments = (torch.zeros(p + 1, width, dtype=torch.float64, device=rows.device) for width in (p + 1, d))
    for _, batch in walk(source, rows, CHUNK, stage="settling embeddings"):
        strength_np = model.conditioner.strength(batch.covariates)
        assert strength_np is not None  # noqa: S101 - there are perturbations
        x = torch.cat((strength_np, torch.ones_like(strength_np[:, :1])), dim=1).double()
        gram += x.t() @ x
        moments += x.t() @ model.posterior(batch)[Z].loc.double()
    gram.diagonal()[:p] += RIDGE
    # without control cells the mean is not separate from the effects
    left_pd = torch.linalg.lstsq(gram.cpu(), moments.cpu(), driver="gelsd").solution[:p]
    perturbations.embedding.add_(left_pd.to(perturbations.embedding))
