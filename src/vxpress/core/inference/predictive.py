"""Counts from the likelihood: at z drawn from a cell's posterior (posterior predictive), or at z that are given."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from vxpress.core.covariates import Covariates
from vxpress.core.progress import steps
from vxpress.core.vae import VAE

# entries of one block of drawn cells, 2 MB an array, and its rows at least
BLOCK_ENTRIES, MIN_BLOCK = 2**19, 16


def block_rows(n_genes: int) -> int:
    """Cells decoded at once; it hangs on the fit alone, so that draws do not hang on the memory at hand."""
    return max(MIN_BLOCK, BLOCK_ENTRIES // n_genes)


@torch.no_grad()
def predictive_draws(
    model: VAE,
    mean_nd: Tensor,
    var_nd: Tensor,
    covariates: Covariates,
    log_library_n1: Tensor,
    *,
    n_draws: int,
    seed: int,
) -> Iterator[tuple[int, slice, Tensor]]:
    """Draws of every cell in blocks: which draw, which rows, and values (n, g) of the distribution's own kind.

    Every block of every draw has a seed of its own, so draw 0 is the same however many follow it.
    """
    model.eval()
    n, step = len(mean_nd), block_rows(model.config.n_genes)
    blocks = product(range(n_draws), enumerate(range(0, n, step)))
    for draw, (block, start) in steps(blocks, "drawing counts", n_draws * -(-n // step)):
        part = slice(start, min(start + step, n))
        state = np.random.SeedSequence([seed, draw, block]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        eps_nd = torch.randn(mean_nd[part].shape, generator=generator)
        distribution = model.likelihood(
            torch.addcmul(mean_nd[part], var_nd[part].sqrt(), eps_nd),
            covariates[torch.arange(part.start, part.stop)],
            log_library_n1[part],
        )
        yield draw, part, distribution.sample(generator=generator)


@torch.no_grad()
def likelihood_draws(
    model: VAE, z_nd: Tensor, covariates: Covariates, log_library_n1: Tensor, *, seed: int
) -> sparse.csr_matrix | np.ndarray:
    """Values of cells at the very ``z_nd`` given, (n, g): sparse where they are counts.

    Blocks, each with a seed of its own, are drawn side by side by as many threads as torch was given.
    """
    model.eval()
    n, step = len(z_nd), block_rows(model.config.n_genes)
    discrete = model.decoder.likelihood.discrete

    def draw(block: int) -> sparse.csr_matrix | np.ndarray:
        part = slice(block * step, min((block + 1) * step, n))
        state = np.random.SeedSequence([seed, block]).generate_state(1, np.uint64)[0]
        with torch.no_grad():
            distribution = model.likelihood(
                z_nd[part], covariates[torch.arange(part.start, part.stop)], log_library_n1[part]
            )
            x_ng = distribution.sample(generator=torch.Generator().manual_seed(int(state >> np.uint64(1)))).numpy()
        return sparse.csr_matrix(x_ng) if discrete else x_ng

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        n_blocks = -(-n // step)
        blocks = list(steps(pool.map(draw, range(n_blocks)), "drawing counts", n_blocks))
    return sparse.vstack(blocks, format="csr") if discrete else np.concatenate(blocks)
