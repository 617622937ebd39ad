"""Four measures of how unusual a cell is under a model, before they are compared with those of typical cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vxpress.core.blocks import Z
from vxpress.core.data import Source, walk
from vxpress.core.likelihoods.sums import MIN_BLOCK
from vxpress.core.model import VAE
from vxpress.core.progress import steps

# entries of one block of decoded cells
BLOCK_ENTRIES = 2**20
# number of genes whose surprise is summed in the peak, and of neighbours whose distance is averaged
N_PEAK, N_NEIGHBORS = 20, 15
# largest number of cells of the fit among which neighbours are searched
MAX_REFERENCE = 20_000
CHUNK = 1024
PARTS = ("distance", "surprise", "peak", "width")
CAP, TIE = 2.0, 1e-3


@dataclass(frozen=True)
class Evidence:
    """Per cell: the :data:`PARTS` (n, 4), the posterior mean (n, d), and the most surprising genes (n, k).

    A gene of -1 means none: fewer than k genes had counts above their mean.
    """

    parts_nk: np.ndarray
    mean_nd: np.ndarray
    genes_nk: np.ndarray


@torch.no_grad()
def evidence(model: VAE, cells: Source, reference_md: np.ndarray, *, n_top: int = 3) -> Evidence:
    """Compute the evidence of every cell, in chunks; ``reference_md`` are posterior means of training cells.

    * ``distance``: log of the mean distance to the nearest training cells in the latent space.
    * ``surprise``: -log p(x | z, s, l) at the posterior mean.
    * ``peak``: the part of the surprise from the most surprising genes among those with counts above their mean.
    * ``width``: log volume of the posterior, sum_d log var.
    """
    model.eval()
    n, block = len(cells), max(MIN_BLOCK, BLOCK_ENTRIES // model.config.n_genes)
    n_peak, n_top = min(N_PEAK, model.config.n_genes), min(n_top, model.config.n_genes)
    parts_nk = np.empty((n, len(PARTS)))
    mean_nd = np.empty((n, model.config.n_latent), dtype=np.float32)
    genes_nk = np.empty((n, n_top), dtype=np.int64)
    for part, batch in walk(cells, size=block, stage="scoring cells"):
        q = model.posterior(batch)
        distribution = model.likelihood(q.mean(), batch.covariates, batch.log_library_n1)
        nll_ng = -distribution.log_prob(batch.x_ng)
        above_ng = distribution.observe(batch.x_ng) > distribution.mean
        peak = torch.where(above_ng, nll_ng, 0.0).topk(max(n_peak, n_top), dim=-1)
        top_nk = peak.indices[:, :n_top]
        mean_nd[part], genes_nk[part] = q[Z].loc.numpy(), torch.where(above_ng.gather(1, top_nk), top_nk, -1).numpy()
        parts_nk[part, 1] = nll_ng.sum(-1, dtype=torch.float64).numpy()
        parts_nk[part, 2] = peak.values[:, :n_peak].sum(-1, dtype=torch.float64).numpy()
        parts_nk[part, 3] = 2.0 * q[Z].scale.log().sum(-1, dtype=torch.float64).numpy()
    distance_n, _ = neighbor_distance(mean_nd, reference_md)
    parts_nk[:, 0] = np.log(distance_n + 1e-6)
    return Evidence(parts_nk, mean_nd, genes_nk)


def neighbor_distance(mean_nd: np.ndarray, reference_md: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean distance to the nearest ``N_NEIGHBORS`` reference cells and to the nearest one, each (n,)."""
    reference = torch.from_numpy(np.asarray(reference_md, dtype=np.float32))
    k = min(N_NEIGHBORS, len(reference))
    mean_n, nearest_n = np.empty((2, len(mean_nd)))
    for start in steps(range(0, len(mean_nd), CHUNK), "finding nearest training cells"):
        part = slice(start, start + CHUNK)
        distance: Tensor = torch.cdist(
            torch.from_numpy(mean_nd[part]), reference, compute_mode="donot_use_mm_for_euclid_dist"
        )
        values = distance.topk(k, dim=-1, largest=False).values.double()
        mean_n[part], nearest_n[part] = values.mean(-1).numpy(), values[:, 0].numpy()
    return mean_n, nearest_n


def combined(units_nk: np.ndarray) -> np.ndarray:
    """Combine :data:`PARTS`, in units of their spread over typical cells, into one score.

    The score adds the distance and the positive parts of the others: cells of a type that the fit has not seen may be
    decoded with less surprise than typical cells, and this must not compensate for their distance. All except the width
    are capped at ``CAP``, because typical cells of rare types have large values too. ``TIE`` times the uncapped values
    keeps the order beyond the cap.
    """
    u_nk = np.concatenate([units_nk[:, :1], np.maximum(units_nk[:, 1:], 0.0)], axis=1)
    return np.asarray(np.minimum(u_nk[:, :3], CAP).sum(1) + u_nk[:, 3] + TIE * units_nk[:, :3].sum(1))
