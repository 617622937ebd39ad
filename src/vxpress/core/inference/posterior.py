"""Posteriors and decoded expression of all cells, in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vxpress.core.blocks import Point, Posterior, Z
from vxpress.core.covariates import Covariates
from vxpress.core.data import Batch, Source, walk
from vxpress.core.data.rows import rows_array
from vxpress.core.likelihoods import Sums
from vxpress.core.model import VAE
from vxpress.core.normal import DiagonalNormal
from vxpress.core.parallel import SINGLE, World
from vxpress.core.progress import steps
from vxpress.core.threads import in_order, same_bits, share

S = TypeVar("S", bound=Source)
CHUNK = 1024
# cells of a part of a chunk, which one thread decodes
PART = 256
# entries of all draws of a chunk that are kept for quantiles (64 MB)
DRAWN_ENTRIES = 2**24


@dataclass(frozen=True)
class Encoded:
    """Posterior means and variances of the latent blocks of some cells by name, float32 (n, columns)."""

    mean: dict[str, np.ndarray]
    var: dict[str, np.ndarray]

    @classmethod
    def empty(cls, model: VAE, n: int, *, in_memory: bool = True) -> Encoded:
        """Return the record of ``n`` cells, to be filled in; in temporary files if it is large and not ``in_memory``."""
        mean, var = (
            {name: rows_array(n, block.n_noise, in_memory=in_memory) for name, block in model.blocks.items()}
            for _ in range(2)
        )
        return cls(mean, var)

    @classmethod
    def at(cls, point: Mapping[str, np.ndarray]) -> Encoded:
        """Return the record of cells whose latent variables are known, (n, columns) for each block."""
        mean = {name: value.astype(np.float32) for name, value in point.items()}
        return cls(mean, {name: np.zeros_like(value) for name, value in mean.items()})

    def __len__(self) -> int:
        return len(self.mean[Z])

    def __getitem__(self, rows: np.ndarray | slice) -> Encoded:
        mean, var = ({name: value[rows] for name, value in part.items()} for part in (self.mean, self.var))
        return Encoded(mean, var)

    def of(self, names: Iterable[str]) -> Encoded:
        """Return the record of some blocks."""
        chosen = list(names)
        mean, var = ({name: part[name] for name in chosen} for part in (self.mean, self.var))
        return Encoded(mean, var)

    def posterior(self, model: VAE, part: slice = slice(None)) -> Posterior:
        """Return the posterior of some cells from which they are decoded, without that of an inferred size factor."""
        mean, var = (
            {name: torch.from_numpy(values[name][part]) for name in model.decoded_blocks}
            for values in (self.mean, self.var)
        )
        return Posterior({name: DiagonalNormal(loc, var[name].sqrt()) for name, loc in mean.items()})

    @property
    def mean_nd(self) -> np.ndarray:
        """Posterior mean of z, (n, d)."""
        return self.mean[Z]

    @property
    def var_nd(self) -> np.ndarray:
        """Posterior variance of z, (n, d)."""
        return self.var[Z]

    def put(self, part: slice, name: str, mean: Tensor, variance: Tensor) -> None:
        """Write the posterior of a block of some cells."""
        self.mean[name][part], self.var[name][part] = mean.cpu().numpy(), variance.cpu().numpy()


@same_bits
@torch.no_grad()
def encode(model: VAE, cells: Source, world: World = SINGLE) -> Encoded:
    """Compute the posterior of every cell; each process of ``world`` encodes a part, and all return the whole."""
    model.eval()
    encoded = Encoded.empty(model, len(cells), in_memory=cells.in_memory)
    own = world.part(len(cells))
    rows = torch.arange(own.start, own.stop, device=cells.device) if world.several else None

    def posterior(item: tuple[slice, Batch]) -> None:
        part, batch = item
        place = slice(own.start + part.start, own.start + part.stop)
        for name, q in model.posterior(batch).items():
            encoded.put(place, name, q.loc, q.scale.square())

    for _ in in_order(posterior, walk(cells, rows, size=CHUNK, stage="encoding"), cells.device):
        pass
    world.collect_((*encoded.mean.values(), *encoded.var.values()))
    return encoded


# posteriors with the effects of optional covariates removed, and with them kept: None if there are no such covariates
Views = tuple[Encoded, Encoded | None]


def encode_views(model: VAE, cells: Source, world: World = SINGLE) -> Views:
    """Compute the posterior of every cell, and that without the categories of optional covariates if there are any."""
    kept = encode(model, hidden(model, cells), world) if model.config.optional else None
    return encode(model, cells, world), kept


def hidden(model: VAE, cells: S) -> S:
    """Return the same cells without the categories of optional covariates."""
    return cells.with_covariates(model.conditioner.hide(cells.covariates))


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


def _sums(model: VAE, genes: Genes, n: int, n_decoded: int) -> Sums:
    """Return sums of decoded expression for at most ``n`` cells at a time, and ``n_decoded`` draws of all cells together."""
    sums = model.decoder.output.sums(model.layers, n, genes.inside, genes.outside)
    sums.prepare(n_decoded)
    return sums


def _batch_matters(model: VAE) -> bool:
    """Whether decoded expression can depend on the batch: it is not left out, or a block other than z may read it."""
    return 0 not in model.config.left_out or tuple(model.decoded_blocks) != (Z,)


def normal_from(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Return a function that draws standard noise with the shape of a given tensor."""
    return lambda like: torch.randn(like.shape, generator=generator)


def _draw(q: Posterior, generator: torch.Generator) -> Point:
    noise = q.noise(normal_from(generator))
    return {name: part.loc + part.scale * noise[name] for name, part in q.items()}


@dataclass(frozen=True)
class _Drawn:
    """Some cells, their covariates, and draws of their latent blocks."""

    rows: slice
    covariates: Covariates
    points: list[Point]


def _drawn(
    encoded: Encoded, covariates: Covariates, model: VAE, n_draws: int, generator: torch.Generator
) -> Iterator[_Drawn]:
    """Draw from the posteriors of the cells in chunks, and yield the draws of a chunk in parts of ``PART`` cells."""
    for start in range(0, len(encoded), CHUNK):
        chunk = slice(start, min(start + CHUNK, len(encoded)))
        q = encoded.posterior(model, chunk)
        points = [_draw(q, generator) for _ in range(n_draws)]
        for first in range(chunk.start, chunk.stop, PART):
            part = slice(first, min(first + PART, chunk.stop))
            here = slice(part.start - chunk.start, part.stop - chunk.start)
            own = covariates[torch.arange(part.start, part.stop)]
            yield _Drawn(part, own, [{name: value[here] for name, value in point.items()} for point in points])


@torch.no_grad()
def expected_expression(
    model: VAE, encoded: Encoded, covariates: Covariates, draws: Draws, genes: Genes = ALL_GENES
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Yield E_q[rho] in parts of at most ``PART`` cells: rows, modelled genes (n, g), and the genes of the readout, or None.

    Decoded expression is what the output of the likelihood makes of the location: shares rho for count distributions,
    expected log values for the Gaussian likelihood.
    """
    model.eval()
    generator = torch.Generator().manual_seed(draws.seed)
    # the draws are those of a model without batches if the batch has no effect
    plan = (draws if _batch_matters(model) else replace(draws, batches=(None,))).per_cell()
    n = len(encoded)
    sums = _sums(model, genes, min(PART, n), n * len(plan))

    def decoded(drawn: _Drawn) -> tuple[slice, Tensor, Tensor | None]:
        n_here = drawn.rows.stop - drawn.rows.start
        own, found = drawn.covariates, sums.again(n_here)
        for code, point in zip(plan, drawn.points, strict=True):
            found.add(model.features(point, own if code is None else own.with_batch(code)))
        return drawn.rows, *found.mean(n_here, len(plan))

    parts = _drawn(encoded, covariates, model, len(plan), generator)
    yield from steps(in_order(decoded, parts), "decoding", -(-n // PART))


@torch.no_grad()
def credible_expression(
    model: VAE,
    encoded: Encoded,
    covariates: Covariates,
    draws: Draws,
    levels: Sequence[float],
    genes: Genes = ALL_GENES,
) -> Iterator[tuple[slice, list[tuple[Tensor, Tensor | None]]]]:
    """Yield E_q[rho] and quantiles of rho under the posterior in chunks.

    A chunk is the rows, and for the mean and each quantile a pair (modelled genes, genes of the readout or None).

    Every draw of the latent blocks is decoded in every batch and averaged over batches before quantiles are computed. The quantiles are
    therefore those of the mean over batches, without the differences between batches. Quantiles are interpolated
    linearly between order statistics.
    """
    model.eval()
    generator = torch.Generator().manual_seed(draws.seed)
    n_cells, batches = len(encoded), draws.batches
    sums = _sums(model, genes, min(CHUNK, n_cells), n_cells * draws.n * len(batches))
    n_inside = sums.inside.shape[1]
    width = n_inside + (0 if sums.outside is None else sums.outside.shape[1])
    step = max(1, min(CHUNK, n_cells, DRAWN_ENTRIES // max(1, draws.n * width)))
    drawn = torch.empty(draws.n, step, width)

    def decode(some: _Drawn, k: int) -> None:
        n = some.rows.stop - some.rows.start
        found = sums.again(n)
        for code in batches:
            found.add(
                model.features(some.points[k], some.covariates if code is None else some.covariates.with_batch(code))
            )
        inside, outside = found.mean(n, len(batches))
        drawn[k, :n, :n_inside] = inside
        if outside is not None:
            drawn[k, :n, n_inside:] = outside

    for start in steps(range(0, n_cells, step), "decoding"):
        part = slice(start, min(start + step, n_cells))
        n, q = part.stop - part.start, encoded.posterior(model, part)
        own = covariates[torch.arange(part.start, part.stop)]
        share(partial(decode, _Drawn(part, own, [_draw(q, generator) for _ in range(draws.n)])), draws.n)
        values = [drawn[:, :n].mean(0), *_quantiles(drawn[:, :n], levels)]
        yield part, [(value[:, :n_inside], None if sums.outside is None else value[:, n_inside:]) for value in values]


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
