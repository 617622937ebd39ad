"""Draw counts from the likelihood, at a draw from a cell's posterior (posterior predictive) or at given z."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from vxpress.core.blocks import Z
from vxpress.core.covariates import Covariates
from vxpress.core.inference.posterior import Encoded, normal_from
from vxpress.core.model import VAE
from vxpress.core.progress import steps
from vxpress.core.threads import in_order

# entries of one block of drawn cells (2 MB per array), and its least number of rows
BLOCK_ENTRIES, MIN_BLOCK = 2**19, 16


def block_rows(n_genes: int) -> int:
    """Return the number of cells decoded at once; it depends only on the fit, so draws do not depend on free memory."""
    return max(MIN_BLOCK, BLOCK_ENTRIES // n_genes)


@torch.no_grad()
def predictive_draws(
    model: VAE,
    encoded: Encoded,
    covariates: Covariates,
    log_library_n1: Tensor,
    *,
    n_draws: int,
    seed: int,
) -> Iterator[tuple[int, slice, Tensor]]:
    """Yield draws of every cell in blocks: number of the draw, rows, and values (n, g) on the scale of the likelihood.

    Every block of every draw has its own seed, so draw 0 is the same for any number of draws.
    """
    model.eval()
    n, step = len(encoded), block_rows(model.config.n_genes)
    blocks = product(range(n_draws), enumerate(range(0, n, step)))
    for draw, (block, start) in steps(blocks, "drawing counts", n_draws * -(-n // step)):
        part = slice(start, min(start + step, n))
        state = np.random.SeedSequence([seed, draw, block]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        point = encoded.posterior(model, part).draw(normal_from(generator))
        distribution = model.likelihood(point, covariates[torch.arange(part.start, part.stop)], log_library_n1[part])
        yield draw, part, distribution.sample(generator=generator)


@torch.no_grad()
def likelihood_draws(
    model: VAE, z_nd: Tensor, covariates: Covariates, log_library_n1: Tensor, *, seed: int
) -> sparse.csr_matrix | np.ndarray:
    """Draw values of cells at the given ``z_nd``, (n, g); sparse if they are counts.

    Latent blocks other than z are drawn from their priors, except a size factor, which is given.
    Blocks, each with its own seed, are drawn in parallel by several threads.
    """
    model.eval()
    n, step = len(z_nd), block_rows(model.config.n_genes)
    discrete = model.decoder.likelihood.discrete

    def draw(block: int) -> sparse.csr_matrix | np.ndarray:
        part = slice(block * step, min((block + 1) * step, n))
        state = np.random.SeedSequence([seed, block]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        some = covariates[torch.arange(part.start, part.stop)]
        point = {Z: z_nd[part]} | model.sample_others(some, generator)
        x_ng = model.likelihood(point, some, log_library_n1[part]).sample(generator=generator).numpy()
        return sparse.csr_matrix(x_ng) if discrete else x_ng

    n_blocks = -(-n // step)
    blocks = list(steps(in_order(draw, range(n_blocks)), "drawing counts", n_blocks))
    return sparse.vstack(blocks, format="csr") if discrete else np.concatenate(blocks)
