r"""Start encoder and decoder at the principal components of the data, so that fits with different seeds agree.

Weights that are random at the start lead every seed to another latent space. Here z starts as the principal components
of log-normalised counts: the first hidden units of the encoder are :math:`\mathrm{relu}(\pm u_k)` for the standardised
components :math:`u_k`, and :math:`z_k = \mathrm{relu}(u_k) - \mathrm{relu}(-u_k) = u_k`. The decoder undoes this in the
same way. The components leave out the mean differences between the categories of covariates, with which the output layer
of the decoder starts. They keep the effects of perturbations: the embeddings start at the shifts of the components, and the
output layer at the rest of the effects on single genes. All other weights stay random.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from vxpress.core.blocks import Z
from vxpress.core.bodies import differences
from vxpress.core.config import RNA
from vxpress.core.data import Batch, Source
from vxpress.core.isolation import seeded
from vxpress.core.model import VAE
from vxpress.core.perturbations import OUTPUT_SCALE, hill
from vxpress.core.shrinkage import shrunk

# most cells, and most values of a dense matrix, from which the components are computed
MAX_CELLS, MAX_VALUES = 5_000, 40_000_000
# log shares start at this part of what the components explain; other values were not compared
STRENGTH = 0.5
# dimensions that start at random differ between seeds if the data need them; more components than needed keep noise
LEAST = 5
# by how much a component has to exceed the first one of noise
MARGIN = 1.05
# a category with this many cells starts at half of its mean difference
SHRINKAGE = 30
# further directions and iterations of the randomised decomposition (Halko et al. 2011)
OVERSAMPLING, ITERATIONS = 10, 4
SEED = 0
# logs of half-effect dose, in units of the highest, and of slope that are tried for a dose response; and their standard
# deviations, in units of which a shape is kept from being extreme unless the data ask for it
LOG_HALVES, LOG_SLOPES, SHAPE_SD = (-4.5, 2.0, 14), (-1.2, 1.4, 11), (1.5, 0.7)


@torch.no_grad()
def start_at_components(model: VAE, source: Source, rows: Tensor) -> None:
    """Start z at the principal components of the cells ``rows``, without the mean differences between categories.

    These are the categories of the covariates that the networks always receive: z keeps the effects of optional ones where
    their categories are hidden.
    """
    rows = _some(source.having(RNA, rows), source.n_genes)
    batch = source.batch(rows)
    log_x_ng, normalised_ng = _levels(model, batch)
    normalised_ng -= normalised_ng.mean(0)
    _start_condition(model, batch, normalised_ng)
    for k, n_categories in model.config.received:
        if k not in model.config.optional:
            code_n = batch.covariates.categorical_nk[:, k]
            normalised_ng = normalised_ng - category_means(normalised_ng, code_n, n_categories)[0][code_n]
    most = min(model.config.n_latent, model.config.n_hidden // 2, *(size - 1 for size in normalised_ng.shape))
    if most < 1:
        return
    loading_dg, sd_d = components(normalised_ng, most)
    n_signal, n_varying = ((sd_d > least).sum() for least in (MARGIN * noise_sd(normalised_ng), 0.0))
    n_components = min(max(LEAST, int(n_signal)), int(n_varying))
    if n_components == 0:
        return
    loading_dg, sd_d = loading_dg[:n_components], sd_d[:n_components]
    _start_encoder(model, loading_dg / sd_d[:, None], log_x_ng.mean(0))
    _start_shift(model, batch)
    _start_decoder(model, STRENGTH * loading_dg * sd_d[:, None])
    _start_perturbations(model, batch, normalised_ng, STRENGTH * loading_dg * sd_d[:, None])


def components(centred_ng: Tensor, n_components: int) -> tuple[Tensor, Tensor]:
    """Return loadings (d, genes) of unit length and the standard deviation (d,) of each principal component.

    The largest loading of a component is positive. The same data always give the same components.
    """
    q = min(n_components + OVERSAMPLING, *centred_ng.shape)
    with seeded(SEED):
        _, singular, v_gq = torch.svd_lowrank(centred_ng, q, ITERATIONS)
    loading_dg = v_gq.t()[:n_components]
    largest = loading_dg.gather(1, loading_dg.abs().argmax(1, keepdim=True))
    sd_d = singular[:n_components] / (len(centred_ng) - 1) ** 0.5
    return (loading_dg * torch.where(largest < 0, -1.0, 1.0)).contiguous(), sd_d


def noise_sd(centred_ng: Tensor) -> Tensor:
    """Return the standard deviation of the first component after each gene was shifted by its own number of cells.

    The shifts, of cells in random order, keep the values of each gene and remove all correlation between genes. Components
    above it are signal (parallel analysis, Horn 1965).
    """
    n, g = centred_ng.shape
    generator = torch.Generator().manual_seed(SEED)
    order_n = torch.randperm(n, generator=generator).to(centred_ng.device)
    shift_g = torch.randint(n, (g,), generator=generator).to(centred_ng.device)
    return components(shifted(centred_ng[order_n], shift_g), 1)[1][0]


def shifted(value_ng: Tensor, shift_g: Tensor) -> Tensor:
    """Move the cells of each gene up by its own number of places; the first ones follow after the last."""
    n = len(value_ng)
    if value_ng.device.type != "cpu":
        return value_ng.gather(0, (torch.arange(n, device=value_ng.device)[:, None] + shift_g) % n)
    # copies of contiguous memory take a fraction of the time of single values and their places
    value_gn = value_ng.t().contiguous().numpy()
    out_gn = np.empty_like(value_gn)
    for value_n, out_n, shift in zip(value_gn, out_gn, shift_g.tolist(), strict=True):
        out_n[: n - shift], out_n[n - shift :] = value_n[shift:], value_n[:shift]
    return torch.from_numpy(out_gn).t().contiguous()


def _some(rows: Tensor, n_genes: int) -> Tensor:
    """Select cells at random, the same for every seed of a fit."""
    most = max(2, min(MAX_CELLS, MAX_VALUES // max(1, n_genes)))
    if len(rows) <= most:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))[:most].sort().values
    return rows[chosen.to(rows.device)]


def _levels(model: VAE, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return log1p counts and normalised ones; a gene that a cell did not measure has the mean of the cells that did."""
    x_ng, measured_ng = batch.x_ng.float(), model.measured(batch.covariates)
    if measured_ng is None or model.panels is None:
        return x_ng.log1p(), _normalised(x_ng)
    log_share_g = model.decoder.location.bias[: x_ng.shape[1]].log_softmax(0)
    found = x_ng.log1p(), _normalised(x_ng, model.panels.coverage(log_share_g, batch.covariates))
    n_g = measured_ng.sum(0).clamp_min(1)
    log_x_ng, normalised_ng = (
        torch.where(measured_ng, y, torch.where(measured_ng, y, 0.0).sum(0) / n_g) for y in found
    )
    return log_x_ng, normalised_ng


def _normalised(x_ng: Tensor, coverage_n1: Tensor | float = 1.0) -> Tensor:
    """Return log1p of counts scaled to the median library of the cells, which counts this share of their molecules."""
    library_n1 = x_ng.sum(1, keepdim=True).clamp_min(1.0) / coverage_n1
    return (x_ng * (library_n1.median() / library_n1)).log1p()


def category_means(value_ng: Tensor, code_n: Tensor, n_categories: int) -> tuple[Tensor, Tensor]:
    """Return the mean of each category, (categories, g), and its number of cells; a category without cells has mean 0."""
    sums_cg = torch.zeros(n_categories, value_ng.shape[1], device=value_ng.device).index_add_(0, code_n, value_ng)
    size_c = code_n.bincount(minlength=n_categories)
    return sums_cg / size_c.clamp_min(1)[:, None], size_c


def _start_condition(model: VAE, batch: Batch, centred_ng: Tensor) -> None:
    """Start the output layer at the mean differences between categories, if it receives the covariates.

    The differences of each covariate are those that remain after the ones before it. Those of categories with few cells are
    shrunk toward 0.
    """
    decoder, conditioner = model.decoder, model.conditioner
    if not decoder.condition_output:
        return
    weight_gc = decoder.location.weight[: centred_ng.shape[1], decoder.body.n_features :]
    for k, n_categories in model.config.received:
        code_n = batch.covariates.categorical_nk[:, k]
        mean_cg, size_c = category_means(centred_ng, code_n, n_categories)
        mean_cg *= (size_c / (size_c + SHRINKAGE))[:, None]
        centred_ng = centred_ng - mean_cg[code_n]
        columns, weight_gw = conditioner.weights_of(k, mean_cg)
        weight_gc[:, columns] = weight_gw


def _start_encoder(model: VAE, scaled_dg: Tensor, mean_g: Tensor) -> None:
    """Make the means of z the components of log1p counts, up to the norms in between."""
    encoder = model.encoder
    d, g = scaled_dg.shape
    both_pg = torch.cat((scaled_dg, -scaled_dg))
    encoder.first.weight[: 2 * d, :g] = both_pg
    encoder.first.bias[: 2 * d] = -both_pg @ mean_g
    encoder.body.pass_on(d)
    encoder.mean.weight[:d] = 0.0
    encoder.mean.bias[:d] = 0.0
    encoder.mean.weight[:d, : 2 * d] = differences(d, scaled_dg)


def _start_shift(model: VAE, batch: Batch) -> None:
    """With optional covariates shown, take the mean differences between their categories out of z."""
    shift, training = model.encoder.shift, model.training
    s_nc = model.encoder_condition(batch.covariates)
    if shift is None or s_nc is None:
        return
    # batch norm would count these cells as a minibatch of the training
    model.eval()
    z_nd = model.posterior(batch)[Z].loc
    model.train(training)
    by_category = torch.linalg.pinv(s_nc - s_nc.mean(0)) @ (z_nd - z_nd.mean(0))
    shift.copy_(-by_category.t())


def _start_decoder(model: VAE, scaled_dg: Tensor) -> None:
    """Make the location change with z as the log counts do, if the body of the decoder has a linear start."""
    read_df = model.decoder.body.start_linear(len(scaled_dg))
    if read_df is not None:
        location = model.decoder.location.weight
        location[: scaled_dg.shape[1], : read_df.shape[1]] = (read_df.to(scaled_dg).t() @ scaled_dg).t()


def _start_perturbations(model: VAE, batch: Batch, normalised_ng: Tensor, scaled_dg: Tensor) -> None:
    """Start the embeddings at the shifts of z, and the output layer at what single genes do beyond these."""
    perturbations, strength_np = model.conditioner.perturbations, model.conditioner.strength(batch.covariates)
    if perturbations is None or strength_np is None:
        return
    if perturbations.log_half is not None and perturbations.log_slope is not None:
        log_half_p, log_slope_p = best_shapes(cast("Tensor", batch.covariates.dose_np), normalised_ng)
        perturbations.log_half.copy_(log_half_p)
        perturbations.log_slope.copy_(log_slope_p)
        strength_np = perturbations.strength(cast("Tensor", batch.covariates.dose_np))
    training = model.training
    # batch norm would count these cells as a minibatch of the training
    model.eval()
    perturbations.embedding.zero_()
    z_nd = model.posterior(batch)[Z].loc
    model.train(training)
    perturbations.embedding.copy_(least_squares(strength_np, z_nd, SHRINKAGE)[0])
    decoder = model.decoder
    if decoder.condition_output:
        beyond_pg = shrunk(*least_squares(strength_np, normalised_ng, 1.0)).to(normalised_ng.dtype)
        beyond_pg -= perturbations.embedding[:, : len(scaled_dg)] @ scaled_dg
        first = decoder.body.n_features + decoder.n_body_condition
        decoder.location.weight[: beyond_pg.shape[1], first:] = beyond_pg.t() / OUTPUT_SCALE


def least_squares(strength_np: Tensor, value_ng: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Estimate the effects of perturbations that add up, and their standard errors, each (p, g) in double precision.

    An effect is shrunk as if ``ridge`` more cells showed none.
    """
    x_np, y_ng = (part.double() - part.double().mean(0) for part in (strength_np, value_ng))
    gram_pp = x_np.t() @ x_np
    inverse_pp = torch.linalg.inv(gram_pp + ridge * torch.eye(len(gram_pp), dtype=x_np.dtype, device=x_np.device))
    effect_pg = inverse_pp @ (x_np.t() @ y_ng)
    variance_g = (y_ng - x_np @ effect_pg).square().mean(0)
    return effect_pg, (inverse_pp.diagonal()[:, None] * variance_g).sqrt()


def best_shapes(dose_np: Tensor, value_ng: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logs of half-effect dose and slope of each perturbation, (p,), that describe the cells best.

    They are those of a grid, judged on what is left of the values without the effects of the other perturbations, which are
    in proportion to the dose for this.
    """
    p = dose_np.shape[1]
    centred_ng = (value_ng - value_ng.mean(0)) / value_ng.std(0).clamp_min(1e-6)
    effect_pg = least_squares(dose_np, centred_ng, 1.0)[0].to(centred_ng.dtype)
    intercept_g = (centred_ng - dose_np @ effect_pg).mean(0)
    grids = (torch.linspace(*part, device=dose_np.device) for part in (LOG_HALVES, LOG_SLOPES))
    half_s, slope_s = (part.reshape(-1) for part in torch.meshgrid(*grids, indexing="ij"))
    penalty_s = (half_s / SHAPE_SD[0]).square() + (slope_s / SHAPE_SD[1]).square()
    # of the sum over genes of squares of standard normal numbers
    noise = (2.0 * centred_ng.shape[1]) ** 0.5
    log_half_p, log_slope_p = torch.zeros(2, p, device=dose_np.device)
    for i in range(p):
        rows = torch.nonzero(dose_np[:, i] > 0)[:, 0]
        dose_m = dose_np[rows, i]
        if len(rows) < 2 or bool((dose_m == dose_m[0]).all()):
            continue
        others_mp = dose_np[rows].clone()
        others_mp[:, i] = 0.0
        left_mg = centred_ng[rows] - intercept_g - others_mp @ effect_pg
        shape_sm = hill(dose_m, half_s[:, None], slope_s[:, None])
        explained_s = (shape_sm @ left_mg).square().sum(1) / shape_sm.square().sum(1)
        best = int((explained_s - noise * penalty_s).argmax())
        log_half_p[i], log_slope_p[i] = half_s[best], slope_s[best]
    return log_half_p, log_slope_p
