"""Posteriors and decoded expression of all cells, in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells
from vxpress.core.progress import steps
from vxpress.core.vae import VAE

CHUNK = 1024
# entries of one block of decoded cells (2 MB), and its least number of rows
BLOCK_ENTRIES, MIN_BLOCK = 2**19, 32
# entries of all draws of a chunk that are kept for quantiles (64 MB)
DRAWN_ENTRIES = 2**24


@dataclass(frozen=True)
class Encoded:
    """Posterior mean and variance of z, float32 (n, d), and the mean of a latent log library (n,), or None."""

    mean_nd: np.ndarray
    var_nd: np.ndarray
    log_library_n: np.ndarray | None = None


@torch.no_grad()
def encode(model: VAE, cells: Cells) -> Encoded:
    """Compute the posterior of every cell."""
    model.eval()
    n, device = len(cells), cells.log_library_n1.device
    mean_nd = np.empty((n, model.config.n_latent), dtype=np.float32)
    var_nd = np.empty_like(mean_nd)
    log_library_n = np.empty(n, dtype=np.float32) if model.config.latent_library else None
    for start in steps(range(0, n, CHUNK), "encoding"):
        rows = torch.arange(start, min(start + CHUNK, n), device=device)
        part = slice(start, start + CHUNK)
        batch = cells.batch(rows)
        q = model.posterior(batch)
        mean_nd[part], var_nd[part] = q.loc.cpu().numpy(), q.scale.square().cpu().numpy()
        if log_library_n is not None:
            log_library_n[part] = model.library_posterior(batch).loc.squeeze(-1).cpu().numpy()
    return Encoded(mean_nd, var_nd, log_library_n)


@dataclass(frozen=True)
class Draws:
    """Which posterior draws are decoded: ``n`` per cell, divided among ``batches`` (None: the cell's own batch)."""

    n: int
    batches: Sequence[int | None]
    seed: int

    def per_cell(self) -> list[int | None]:
        """Return the batch in which each draw is decoded; all batches occur equally often."""
        return [batch for batch in self.batches for _ in range(max(1, -(-self.n // len(self.batches))))]


@dataclass(frozen=True)
class Genes:
    """Requested columns of the modelled genes and of the readout; None means all."""

    inside: Tensor | None = None
    outside: Tensor | None = None


ALL_GENES = Genes()


@torch.no_grad()
def expected_expression(
    model: VAE, mean_nd: Tensor, var_nd: Tensor, covariates: Covariates, draws: Draws, genes: Genes = ALL_GENES
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Yield E_q[rho] in chunks of cells: rows, modelled genes (n, g), and the genes of the readout, or None.

    For the Gaussian likelihood, whose location is not a composition, it is the expected location. The tensors are valid
    until the next chunk is requested, which reuses their memory.
    """
    model.eval()
    generator = torch.Generator().manual_seed(draws.seed)
    plan = draws.per_cell()
    layers = _OutputLayers(model, genes, min(CHUNK, len(mean_nd)))
    for start in steps(range(0, len(mean_nd), CHUNK), "decoding"):
        part = slice(start, min(start + CHUNK, len(mean_nd)))
        rows = torch.arange(part.start, part.stop, device=mean_nd.device)
        own, sd_nd = covariates[rows], var_nd[part].sqrt()
        layers.clear()
        for code in plan:
            eps_nd = torch.randn(sd_nd.shape, generator=generator).to(mean_nd.device)
            here = own if code is None else own.with_batch(code)
            layers.add(model.decoder.features(mean_nd[part] + sd_nd * eps_nd, model.conditioner(here)))
        yield part, *layers.mean(len(rows), len(plan))


@torch.no_grad()
def credible_expression(
    model: VAE,
    mean_nd: Tensor,
    var_nd: Tensor,
    covariates: Covariates,
    draws: Draws,
    levels: Sequence[float],
    genes: Genes = ALL_GENES,
) -> Iterator[tuple[slice, list[tuple[Tensor, Tensor | None]]]]:
    """Yield E_q[rho] and quantiles of rho under q(z | x) in chunks.

    A chunk is the rows, and for the mean and each quantile a pair (modelled genes, genes of the readout or None).

    Every draw of z is decoded in every batch and averaged over batches before quantiles are computed. The quantiles are
    therefore those of the mean over batches, without the differences between batches. Quantiles are interpolated
    linearly between order statistics.
    """
    model.eval()
    generator = torch.Generator().manual_seed(draws.seed)
    layers = _OutputLayers(model, genes, min(CHUNK, len(mean_nd)))
    n_inside = layers.inside.shape[1]
    width = n_inside + (0 if layers.outside is None else layers.outside.shape[1])
    step = max(1, min(CHUNK, len(mean_nd), DRAWN_ENTRIES // max(1, draws.n * width)))
    drawn = torch.empty(draws.n, step, width)
    for start in steps(range(0, len(mean_nd), step), "decoding"):
        part = slice(start, min(start + step, len(mean_nd)))
        n = part.stop - part.start
        own, sd_nd = covariates[torch.arange(part.start, part.stop, device=mean_nd.device)], var_nd[part].sqrt()
        for k in range(draws.n):
            z_nd = mean_nd[part] + sd_nd * torch.randn(sd_nd.shape, generator=generator).to(mean_nd.device)
            layers.clear()
            for code in draws.batches:
                here = own if code is None else own.with_batch(code)
                layers.add(model.decoder.features(z_nd, model.conditioner(here)))
            inside, outside = layers.mean(n, len(draws.batches))
            drawn[k, :n, :n_inside] = inside
            if outside is not None:
                drawn[k, :n, n_inside:] = outside
        found = [drawn[:, :n].mean(0), *_quantiles(drawn[:, :n], levels)]
        yield part, [(value[:, :n_inside], None if layers.outside is None else value[:, n_inside:]) for value in found]


def _quantiles(drawn: Tensor, levels: Sequence[float]) -> list[Tensor]:
    """Compute quantiles over the first axis, which is reordered in place."""
    values, last = drawn.numpy(), len(drawn) - 1
    places = [min(int(level * last), last - 1) if last else 0 for level in levels]
    values.partition(sorted({p for place in places for p in (place, min(place + 1, last))}), axis=0)
    return [
        torch.from_numpy(
            values[place] + np.float32(level * last - place) * (values[min(place + 1, last)] - values[place])
        )
        for level, place in zip(levels, places, strict=True)
    ]


class _OutputLayers:
    """Sums of decoded expression over draws, for the requested genes.

    A draw passes through the output layers one block of cells at a time, in reused memory that fits the caches of the
    processor. Values are normalised over all genes within the block, and only requested genes are copied out of it.
    """

    def __init__(self, model: VAE, genes: Genes, n: int) -> None:
        decoder, config = model.decoder, model.config
        self.genes, self.composition = genes, decoder.likelihood.composition
        self.outside_share = model.outside_share if decoder.readout is not None and self.composition else None
        self.remainder = decoder.location.out_features > config.n_genes
        self.n_genes = config.n_genes
        location, readout = decoder.location, decoder.readout
        n_inside = config.n_genes if genes.inside is None else len(genes.inside)
        n_outside = 0 if readout is None else config.n_readout if genes.outside is None else len(genes.outside)
        layers: dict[str, tuple[Tensor, Tensor]] = {}
        # with a remainder, the share of the genes outside follows from the location
        if n_inside or (n_outside and self.remainder):
            layers["location"] = self._wanted(location, genes.inside)
        if n_outside and readout is not None:
            layers["readout"] = self._wanted(readout, genes.outside)
        widest = max((len(bias) for _, bias in layers.values()), default=1)
        self.block = max(MIN_BLOCK, min(n, BLOCK_ENTRIES // widest))
        device = location.weight.device
        self.layers = {
            name: (weight, bias, *torch.empty(2, self.block, len(bias), device=device))
            for name, (weight, bias) in layers.items()
        }
        self.inside = torch.empty(n, n_inside, device=device)
        self.outside = None if readout is None else torch.empty(n, n_outside, device=device)

    def _wanted(self, layer: nn.Linear, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return weight and bias; only those of the requested columns if these do not depend on the others."""
        weight, bias = layer.weight.detach(), layer.bias.detach()
        return (weight, bias) if self.composition or columns is None else (weight[columns], bias[columns])

    def clear(self) -> None:
        """Reset the sums for a new chunk of cells."""
        self.inside.zero_()
        if self.outside is not None:
            self.outside.zero_()

    def add(self, f_nf: Tensor) -> None:
        """Add a draw of every cell of the chunk, given the decoder's features."""
        for start in range(0, len(f_nf), self.block):
            part = slice(start, min(start + self.block, len(f_nf)))
            self._add_block(f_nf[part], part)

    def _add_block(self, f_nf: Tensor, part: slice) -> None:
        rest_n1 = None
        if "location" in self.layers:
            location = self._values("location", f_nf)
            rest_n1 = location[:, self.n_genes :] if self.remainder else None
            location = location[:, : self.n_genes] if self.remainder else location
            self.inside[part].add_(self._select(location, self.genes.inside))
        if self.outside is not None and "readout" in self.layers:
            readout = self._select(self._values("readout", f_nf), self.genes.outside)
            if rest_n1 is None:
                self.outside[part].add_(readout)
            else:
                self.outside[part].addcmul_(readout, rest_n1)

    def _values(self, name: str, f_nf: Tensor) -> Tensor:
        """Apply a linear map to the features, and a softmax if the likelihood is a composition."""
        weight, bias, logits, shares = self.layers[name]
        logits, shares = logits[: len(f_nf)], shares[: len(f_nf)]
        torch.addmm(bias, f_nf, weight.t(), out=logits)
        return torch.softmax(logits, dim=-1, out=shares) if self.composition else logits

    def _select(self, values: Tensor, columns: Tensor | None) -> Tensor:
        return values if columns is None or not self.composition else values[:, columns]

    def mean(self, n: int, n_draws: int) -> tuple[Tensor, Tensor | None]:
        """Return means over draws of the ``n`` cells of the chunk."""
        inside, outside = (
            self.inside[:n].div_(n_draws),
            None if self.outside is None else self.outside[:n].div_(n_draws),
        )
        if self.outside_share is not None and outside is not None:
            outside.mul_(self.outside_share)
            if not self.remainder:
                inside.mul_(1.0 - self.outside_share)
        return inside, outside
