"""Counts of cells under a changed distribution: expected, or drawn so that each cell keeps its deviation from the model.

A count x that was observed under one distribution has a level u, its probability integral transform: a uniform number
between P(X < x) and P(X <= x). The paired count under another distribution is the quantile of that distribution at u.
If x follows the first distribution, the paired count follows the second. A gene whose distribution does not change keeps
its count, and so do the correlations of genes that the model does not describe.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vxpress.core.blocks import Point
from vxpress.core.covariates import Covariates
from vxpress.core.likelihoods import Likelihood
from vxpress.core.model import VAE
from vxpress.core.progress import steps

# a level above this cannot be told from 1 reliably: the count is beyond what the first distribution describes
HIGHEST = 1.0 - 1e-9
# entries of cells x genes that are decoded at once (4 MB per array)
BLOCK_ENTRIES = 2**20


@torch.no_grad()
def scaled(
    model: VAE, point: Point, covariates: Covariates, log_library_n1: Tensor, log_factor_g: Tensor | None = None
) -> Likelihood:
    """Return the distribution of counts at a point, with the rate of every gene multiplied by exp(``log_factor_g``)."""
    inputs = model.inputs(point, covariates, log_library_n1)
    log_library = inputs.log_library_n1 if log_factor_g is None else inputs.log_library_n1 + log_factor_g
    return model.decoder(inputs.z_nd, inputs.condition_nc, inputs.covariates, log_library)


@torch.no_grad()
def paired_counts(x_ng: Tensor, before: Likelihood, after: Likelihood, level_ng: Tensor) -> Tensor:
    """Return the counts under ``after`` that are paired with the counts ``x_ng`` under ``before``.

    ``level_ng`` are uniform numbers that place a level between the steps of a count. A count beyond what ``before``
    describes is multiplied by the ratio of the means and rounded at random.
    """
    below, upto = before.steps(x_ng)
    u = below + level_ng * (upto - below)
    out = quantile(after, u.clamp(max=HIGHEST)).to(x_ng.dtype)
    beyond = torch.nonzero(u > HIGHEST, as_tuple=True)
    if len(beyond[0]):
        ratio = (after.at(*beyond).mean.double() / before.at(*beyond).mean.double().clamp_min(1e-30)).clamp(max=1e4)
        out[beyond] = torch.floor(x_ng[beyond] * ratio + level_ng[beyond]).to(out.dtype)
    return out


def quantile(distribution: Likelihood, u_ng: Tensor) -> Tensor:
    """Return the smallest counts k with P(X <= k) >= ``u_ng``, float64 (n, g), for levels below 1."""
    out = torch.zeros_like(u_ng)
    left = torch.nonzero(distribution.steps(out)[1] < u_ng, as_tuple=True)
    # double the upper end until it reaches the level, then halve the interval between the ends
    low, high = (torch.full((len(left[0]),), k, dtype=u_ng.dtype) for k in (0.0, 1.0))
    u, some = u_ng[left], distribution.at(*left)
    short = torch.arange(len(u))
    while len(short):
        short = short[some.at(short).steps(high[short])[1] < u[short]]
        low[short] = high[short]
        high[short] *= 2.0
    wide = torch.nonzero(high - low > 1.0)[:, 0]
    while len(wide):
        middle = torch.floor((low[wide] + high[wide]) / 2.0)
        reached = some.at(wide).steps(middle)[1] >= u[wide]
        high[wide] = torch.where(reached, middle, high[wide])
        low[wide] = torch.where(reached, low[wide], middle)
        wide = wide[high[wide] - low[wide] > 1.0]
    out[left] = high
    return out


def blocks(n: int, n_genes: int, what: str) -> Iterator[tuple[int, slice]]:
    """Yield numbered blocks of consecutive cells; they depend only on the numbers of cells and genes."""
    step = max(16, BLOCK_ENTRIES // n_genes)
    starts = range(0, n, step)
    for block, start in enumerate(steps(starts, what)):
        yield block, slice(start, min(start + step, n))


def spread(n: int, n_genes: int, *seed: int) -> Tensor:
    """Draw uniform numbers (n, genes), float64, from a seed of several whole numbers.

    Each gene has one number in each of n equal parts of [0, 1], in random order, so that means over cells vary little.
    """
    state = np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
    order = torch.rand(n, n_genes, generator=generator).argsort(0)
    return (order + torch.rand(n, n_genes, generator=generator, dtype=torch.float64)) / n
