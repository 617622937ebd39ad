"""The posterior of cells in which some genes were not measured.

The encoder treats a zero as a measurement. A gene that was not measured is therefore imputed by its expectation under
the model, E[log1p X | z, l], and the cell is encoded again, until both agree: this is the fixed point of imputation
with the encoder's own posterior (the chain of Rezende et al. 2014, in expectation). Missing genes carry no information,
so their share of the Fisher information is removed from the precision of the posterior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from vxpress.core.blocks import Point, Posterior, Z
from vxpress.core.data import Batch, Source, walk
from vxpress.core.data.rows import rows_array
from vxpress.core.inference.posterior import Encoded
from vxpress.core.likelihoods import Likelihood, Measured
from vxpress.core.model import VAE
from vxpress.core.query.surgery import forget_labels

CHUNK = 1024
ROUNDS = 4


@dataclass(frozen=True)
class Missing:
    """Which of the modelled genes were measured, and which genes the library size of the cells includes.

    With ``library_known``, the library includes all genes, also the missing ones. Otherwise it includes only measured
    genes: all except the missing modelled ones or, with ``inside``, only the measured modelled ones. With ``beyond``,
    the library of the model also includes genes outside the model.
    """

    observed_g: Tensor
    library_known: bool
    inside: bool = False
    beyond: bool = False


@dataclass(frozen=True)
class Masked:
    """Posterior of cells with missing genes, and their log library (n, 1).

    ``filled_nh`` is what the imputed genes add to the first layer of the encoder, or None if it was not requested.
    """

    encoded: Encoded
    log_library_n1: Tensor
    filled_nh: Tensor | None = None


@torch.no_grad()
def encode_masked(
    model: VAE, cells: Source, missing: Missing, *, n_rounds: int = ROUNDS, keep_filled: bool = False
) -> Masked:
    """Compute the posterior of every cell given the measured genes alone; counts of the others must be zero."""
    model.eval()
    if model.config.dispersion == "gene-label":
        model = forget_labels(model)
    n, device = len(cells), cells.device
    encoded = Encoded.empty(model, n, in_memory=cells.in_memory)
    log_library_n1 = torch.empty(n, 1, device=device)
    filled_nh = None
    if keep_filled:
        in_memory = cells.in_memory or device.type != "cpu"
        filled_nh = torch.from_numpy(rows_array(n, model.config.n_hidden, in_memory=in_memory)).to(device)
    n_rounds = 1 if bool(missing.observed_g.all()) else n_rounds
    prior_variance_d = model.prior.variance().to(device)
    for part, batch in walk(cells, size=CHUNK, stage="encoding"):
        chunk = _Chunk(model, batch, missing, prior_variance_d)
        for _ in range(n_rounds):
            chunk.fill_in()
        for name, q in chunk.q.items():
            encoded.put(part, name, q.loc, chunk.variance() if name == Z else q.scale.square())
        log_library_n1[part] = chunk.log_library_n1
        if filled_nh is not None:
            filled_nh[part] = chunk.encoders[Z].product(chunk.log_x_nm)
    return Masked(encoded, log_library_n1, filled_nh)


class _Chunk:
    """Cells during the fixed-point iteration, which starts with missing genes at zero."""

    def __init__(self, model: VAE, batch: Batch, missing: Missing, prior_variance_d: Tensor) -> None:
        self.model, self.batch, self.missing, self.prior_variance_d = model, batch, missing, prior_variance_d
        self.missing_g = torch.nonzero(~missing.observed_g).squeeze(-1)
        s_nc = model.encoder_condition(batch.covariates)
        self.encoders = {
            name: block.filled_encoder(batch, s_nc, self.missing_g) for name, block in model.blocks.items()
        }
        self.log_x_nm = torch.zeros(len(batch.rows), len(self.missing_g), device=missing.observed_g.device)
        self.log_library_n1 = batch.log_library_n1
        self.encode()

    def encode(self) -> None:
        """Compute the posterior of all blocks, given the missing genes as they are now."""
        found = Posterior({name: encoder(self.log_x_nm) for name, encoder in self.encoders.items()})
        self.q = self.model.basal(found, self.batch.covariates)

    def point(self, z_nd: Tensor) -> Point:
        """Return z with the posterior means of the other blocks; the size factor is given."""
        return {name: self.q[name].loc for name in self.model.decoded_blocks} | {Z: z_nd}

    def likelihood(self, z_nd: Tensor, log_library_n1: Tensor) -> Likelihood:
        """Return the distribution of all modelled genes; other latent blocks are at their posterior mean."""
        return self.model.likelihood(self.point(z_nd), self.batch.covariates, log_library_n1)

    def fill_in(self) -> None:
        """Run one round: decode, estimate the library, impute the missing genes, encode."""
        point, nothing_n1 = self.point(self.q[Z].loc), torch.zeros_like(self.batch.log_library_n1)
        # a block may multiply the size factor, which is not part of the share of a gene
        factor_n1 = self.model.log_library(point, self.batch.covariates, nothing_n1)
        distribution = self.likelihood(self.q[Z].loc, -factor_n1)
        if not self.missing.library_known:
            self.log_library_n1 = self.batch.log_library_n1 - self._share_n1(distribution).log()
        self.log_x_nm = distribution.at(slice(None), self.missing_g).expected_log1p(self.log_library_n1 + factor_n1)
        self.encode()

    def _share_n1(self, distribution: Likelihood) -> Tensor:
        """Estimate the share of a cell's molecules that the library includes, given the distribution of one molecule."""
        missing, decoder = self.missing, self.model.decoder
        read_out = self._read_out if missing.beyond and decoder.readout is not None else None
        measured = Measured(missing.observed_g, self.batch, missing.inside, read_out)
        return decoder.output.measured_share(distribution, measured).clamp(1e-6, 1.0)

    def _read_out(self) -> Tensor:
        """Return the outputs of the readout at the present posterior means."""
        decoder = self.model.decoder
        assert decoder.readout is not None  # noqa: S101 - the caller checks it
        f_nf = self.model.features(self.point(self.q[Z].loc), self.batch.covariates)
        return cast("Tensor", decoder.readout(f_nf))

    def variance(self) -> Tensor:
        """Return the encoder's variance with the information of the missing genes removed, (n, d)."""
        variance_nd = self.q[Z].scale.square()
        if not len(self.missing_g):
            return variance_nd
        share_nd = self._information_share()
        # the information of the prior is not lost with the genes; a learned prior is treated as normal here
        prior_d = self.prior_variance_d
        narrowed = 1.0 / (1.0 / prior_d + (1.0 / variance_nd - 1.0 / prior_d) * share_nd)
        return torch.where(variance_nd < prior_d, narrowed, variance_nd)

    def _information_share(self) -> Tensor:
        """Compute the share of the measured genes in the counts' Fisher information on each dimension of z, (n, d).

        The slope of a mean is a difference over one standard deviation to either side, the range of the posterior.
        """
        z_nd, observed = self.q[Z].loc, self.missing.observed_g
        variance_ng = self.likelihood(z_nd, self.log_library_n1).variance.clamp_min(1e-12)
        shares = []
        for along in torch.eye(z_nd.shape[1], device=z_nd.device):
            step_nd = self.q[Z].scale * along
            slope_ng = (
                self.likelihood(z_nd + step_nd, self.log_library_n1).mean
                - self.likelihood(z_nd - step_nd, self.log_library_n1).mean
            )
            information_ng = slope_ng.square() / variance_ng
            total_n = information_ng.sum(-1).clamp_min(1e-12)
            shares.append(information_ng[:, observed].sum(-1) / total_n)
        return torch.stack(shares, dim=-1)
