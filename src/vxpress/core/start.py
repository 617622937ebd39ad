r"""Start encoder and decoder at the principal components of the data, so that fits with different seeds agree.

Weights that are random at the start lead every seed to another latent space. Here z starts as the principal components
of log-normalised counts: the first hidden units of the encoder are :math:`\mathrm{relu}(\pm u_k)` for the standardised
components :math:`u_k`, and :math:`z_k = \mathrm{relu}(u_k) - \mathrm{relu}(-u_k) = u_k`. The decoder undoes this in the
same way. All other weights stay random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vxpress.core.blocks import Z
from vxpress.core.bodies import differences
from vxpress.core.data import Batch, Source
from vxpress.core.isolation import seeded
from vxpress.core.model import VAE

# most cells, and most values of a dense matrix, from which the components are computed
MAX_CELLS, MAX_VALUES = 5_000, 40_000_000
# log shares start at this part of what the components explain; other values were not compared
STRENGTH = 0.5
# dimensions that start at random differ between seeds if the data need them; more components than needed keep noise
LEAST = 5
# by how much a component has to exceed the first one of noise
MARGIN = 1.05
# further directions and iterations of the randomised decomposition (Halko et al. 2011)
OVERSAMPLING, ITERATIONS = 10, 4
SEED = 0


@torch.no_grad()
def start_at_components(model: VAE, source: Source, rows: Tensor) -> None:
    """Start z at the principal components of the cells ``rows``, without the mean differences between categories.

    These are the categories of the covariates that the networks always receive: z keeps the effects of optional ones where
    their categories are hidden.
    """
    rows = _some(rows, source.n_genes)
    batch = source.batch(rows)
    log_x_ng = batch.x_ng.float().log1p()
    always = [k for k, _ in model.config.received if k not in model.config.optional]
    codes_nk = batch.covariates.categorical_nk[:, always]
    normalised_ng = _without_categories(_normalised(batch.x_ng.float()), codes_nk)
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
    at_ng = (torch.arange(n, device=centred_ng.device)[:, None] + shift_g) % n
    return components(centred_ng[order_n].gather(0, at_ng), 1)[1][0]


def _some(rows: Tensor, n_genes: int) -> Tensor:
    """Select cells at random, the same for every seed of a fit."""
    most = max(2, min(MAX_CELLS, MAX_VALUES // max(1, n_genes)))
    if len(rows) <= most:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))[:most].sort().values
    return rows[chosen.to(rows.device)]


def _normalised(x_ng: Tensor) -> Tensor:
    """Return log1p of counts scaled to the median library of the cells."""
    library_n1 = x_ng.sum(1, keepdim=True).clamp_min(1.0)
    return (x_ng * (library_n1.median() / library_n1)).log1p()


def _without_categories(value_ng: Tensor, codes_nk: Tensor) -> Tensor:
    """Subtract the mean, and then the mean of each category of each categorical covariate in turn."""
    value_ng = value_ng - value_ng.mean(0)
    for code_n in codes_nk.t():
        _, group_n = code_n.unique(return_inverse=True)
        sums = torch.zeros(int(group_n.max()) + 1, value_ng.shape[1], device=value_ng.device)
        sums.index_add_(0, group_n, value_ng)
        value_ng = value_ng - (sums / group_n.bincount()[:, None])[group_n]
    return value_ng


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
