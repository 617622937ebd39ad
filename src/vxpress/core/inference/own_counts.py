"""Expected expression given also the cell's own counts: the posterior of the gamma rate of a negative binomial."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from vxpress.core.data import Source, walk
from vxpress.core.inference.posterior import ALL_GENES, PART, Draws, Encoded, Genes, expected_expression
from vxpress.core.model import VAE


@torch.no_grad()
def updated_expression(
    model: VAE, encoded: Encoded, cells: Source, draws: Draws, genes: Genes = ALL_GENES
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Yield E_q[rho] times (theta + x) / (theta + mu), in the parts of ``expected_expression``.

    x ~ NB(mu, theta) means x ~ Poisson(lambda) with lambda ~ Gamma(theta, mean mu), and (theta + x) / (theta + mu) is
    E[lambda | x] / mu.  mu is the mean of the cell in its own batch, also if ``draws`` are decoded in other batches.
    Genes that are read out have no dispersion and do not change, nor do genes that the panel of a cell lacks. With panels, mu is
    the mean at the posterior means of the cell.
    """
    parts = expected_expression(model, encoded, cells.covariates, draws, genes)
    observed = tuple(draws.batches) == (None,)
    # the same draws, so that the two decoded values differ only by the batch
    own_draws = replace(draws, n=len(draws.per_cell()), batches=(None,))
    own_parts = parts if observed else expected_expression(model, encoded, cells.covariates, own_draws, genes)
    decoder, layers = model.decoder, model.layers
    # the cells are walked in the same parts
    for (part, inside, outside), (_, batch) in zip(parts, walk(cells, size=PART, dense=False), strict=True):
        own = inside if observed else next(iter(own_parts))[1]
        rows = batch.rows
        x_ng, log_theta = batch.x_ng, decoder.dispersion_of(batch.covariates)
        if genes.inside is not None:
            x_ng, log_theta = x_ng[:, genes.inside], log_theta[:, genes.inside]
        means = encoded.posterior(model, part).mean()
        log_library_n1 = model.log_library(means, cells.covariates[rows], cells.log_library_n1[rows])
        measured_ng = model.measured(batch.covariates)
        if measured_ng is None:
            mean_ng = decoder.output.expected_counts(layers, own, log_library_n1)
            inside.mul_(decoder.likelihood.rate_update(x_ng, mean_ng, log_theta))
        else:
            mean_ng = model.likelihood(means, batch.covariates, cells.log_library_n1[rows]).mean
            if genes.inside is not None:
                mean_ng, measured_ng = mean_ng[:, genes.inside], measured_ng[:, genes.inside]
            update_ng = decoder.likelihood.rate_update(x_ng, mean_ng, log_theta)
            inside.mul_(torch.where(measured_ng, update_ng, 1.0))
        yield part, inside, outside
