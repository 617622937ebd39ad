"""How strongly the decoder responds to each latent dimension."""

from __future__ import annotations

import numpy as np
import torch

from vxpress.core.blocks import Z
from vxpress.core.covariates import Covariates
from vxpress.core.inference.posterior import PART, Draws, Encoded, Genes, expected_expression
from vxpress.core.model import VAE

# number of decoded cells, and how far a dimension is moved to each side, in standard deviations
N_CELLS, REACH = 32, 2.0


@torch.no_grad()
def decoder_response(model: VAE, encoded: Encoded, covariates: Covariates) -> np.ndarray:
    """Compute how much a cell changes as one dimension of z goes from 2 sd below its mean to 2 sd above, (d,).

    Mean and sd are those of the aggregate posterior in that dimension. The cells are evenly spaced in the data and keep
    their other dimensions, latent blocks and covariates. For count distributions the result is the share of the molecules of modelled
    genes that move to other genes, half the sum of absolute differences, from 0 to 1.  For the Bernoulli likelihood the
    shares are those of the rates. For the Gaussian likelihood the result is the mean absolute change of the location.
    """
    mean_nd, var_nd = encoded.mean_nd, encoded.var_nd
    n, d = mean_nd.shape
    chosen = np.unique(np.linspace(0, n - 1, min(n, N_CELLS)).astype(int))
    center_d = mean_nd.mean(0, dtype=np.float64)
    sd_d = np.sqrt(mean_nd.var(0, dtype=np.float64) + var_nd.mean(0, dtype=np.float64))
    z = np.repeat(mean_nd[chosen].astype(np.float64), 2 * d, axis=0).reshape(len(chosen), d, 2, d)
    at = np.arange(d)
    z[:, at, 0, at], z[:, at, 1, at] = center_d - REACH * sd_d, center_d + REACH * sd_d
    rows_m = np.repeat(chosen, 2 * d)
    point = {name: mean[rows_m] for name, mean in encoded.mean.items()} | {Z: z.reshape(-1, d)}
    nothing_outside = Genes(outside=torch.empty(0, dtype=torch.int64))
    moved, own = Encoded.at(point), covariates[torch.from_numpy(rows_m)]
    chunks = expected_expression(model, moved, own, Draws(1, (None,), 0), nothing_outside)
    found = np.empty(len(moved) // 2)
    assert PART % 2 == 0  # noqa: S101 - the two ends of a move are in one part
    for part, location, _ in chunks:
        change_n = model.decoder.output.change(location[0::2], location[1::2])
        found[part.start // 2 : part.stop // 2] = change_n.numpy()
    return found.reshape(len(chosen), d).mean(0)
