"""Decode the expression of all cells into matrices: dense or sparse, of all genes or some, with credible intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import DTypeLike
from scanpy import logging as logg
from scipy import sparse
from torch import Tensor

from vxpress.core.covariates import Covariates
from vxpress.core.data import Source
from vxpress.core.inference.own_counts import updated_expression
from vxpress.core.inference.posterior import ALL_GENES, Draws, Encoded, Genes, credible_expression, expected_expression
from vxpress.core.model import VAE

DENOISING_DRAWS = 10
DENOISING_SEED = 0

FloatName = Literal["float32", "float16"]
Matrix: TypeAlias = np.ndarray | sparse.csr_matrix


NewArray: TypeAlias = Callable[[tuple[int, int], DTypeLike], np.ndarray]


@dataclass(frozen=True)
class DecodingRequest:
    """What to decode, and the form of the result.

    ``scale`` multiplies shares: one number, or one per cell, (n, 1) float32. ``genes`` are positions among all genes of the
    fit (None: all). ``columns`` gives the column of each gene in a matrix of ``width`` columns (None: in order); the other
    columns are NaN.
    """

    draws: Draws
    scale: np.float32 | np.ndarray
    genes: np.ndarray | None = None
    columns: np.ndarray | None = None
    width: int | None = None
    dtype: FloatName = "float32"
    drop_below: float | None = None
    interval: float | None = None
    new_array: NewArray = np.empty
    """Makes the dense matrices, from their shape and dtype."""

    def levels(self) -> tuple[float, ...]:
        """Return the levels of the quantiles at the ends of the interval; empty without an interval."""
        return () if self.interval is None else ((1.0 - self.interval) / 2, (1.0 + self.interval) / 2)


def decode(
    model: VAE,
    encoded: Encoded,
    covariates: Covariates,
    *,
    modelled_g: np.ndarray,
    request: DecodingRequest,
    counts: Source | None = None,
) -> list[Matrix]:
    """Compute the posterior mean of expression, and the lower and upper end of its interval if one is requested.

    With ``counts``, the mean also uses the counts of the cell, and there is no interval. Genes without readout are NaN. Apart
    from the results, only one chunk of cells is in memory at a time.
    """
    wanted = np.arange(len(modelled_g)) if request.genes is None else request.genes
    # position of each gene among the modelled genes, or among the others
    rank_g = np.where(modelled_g, np.cumsum(modelled_g), np.cumsum(~modelled_g)) - 1
    inside, outside = np.flatnonzero(modelled_g[wanted]), np.flatnonzero(~modelled_g[wanted])
    chosen = ALL_GENES
    if request.genes is not None:
        chosen = Genes(*(torch.from_numpy(rank_g[wanted[to]]) for to in (inside, outside)))
    columns = np.arange(len(wanted)) if request.columns is None else request.columns
    width = len(wanted) if request.width is None else request.width
    place = _Place(width, columns[inside], columns[outside])
    n_out = 1 + len(request.levels())
    sinks: list[_Dense | _Sparse] = [
        _Dense(request.new_array((len(encoded), width), request.dtype), place)
        if request.drop_below is None
        else _Sparse(place, request.drop_below)
        for _ in range(n_out)
    ]
    scale = request.scale if model.decoder.output.scalable else np.float32(1.0)
    for rows, values in _chunks(model, encoded, covariates, request=request, genes=chosen, counts=counts):
        scale_here = scale[rows] if isinstance(scale, np.ndarray) else scale
        for sink, (modelled, others) in zip(sinks, values, strict=True):
            sink.put(rows, modelled.numpy(), None if others is None else others.numpy(), scale_here)
    return [sink.result() for sink in sinks]


def denoised_matrix(
    model: VAE,
    encoded: Encoded,
    covariates: Covariates,
    *,
    modelled_g: np.ndarray,
    batches: tuple[int, ...],
    target_sum: float,
    new_array: NewArray = np.empty,
) -> np.ndarray:
    """Compute the layer that a fit writes: float32 (n, all genes)."""
    draws = Draws(DENOISING_DRAWS, batches or (None,), DENOISING_SEED)
    request = DecodingRequest(draws, np.float32(target_sum), new_array=new_array)
    matrix = decode(model, encoded, covariates, modelled_g=modelled_g, request=request)[0]
    assert isinstance(matrix, np.ndarray)  # noqa: S101 - nothing is dropped
    return matrix


def _chunks(
    model: VAE,
    encoded: Encoded,
    covariates: Covariates,
    *,
    request: DecodingRequest,
    genes: Genes,
    counts: Source | None,
) -> Iterator[tuple[slice, list[tuple[Tensor, Tensor | None]]]]:
    if request.interval is not None:
        yield from credible_expression(model, encoded, covariates, request.draws, request.levels(), genes)
        return
    parts = (
        expected_expression(model, encoded, covariates, request.draws, genes)
        if counts is None
        else updated_expression(model, encoded, counts, request.draws, genes)
    )
    for rows, inside, outside in parts:
        yield rows, [(inside, outside)]


class _Place:
    """The columns of modelled and other genes in a matrix."""

    def __init__(self, width: int, inside: np.ndarray, outside: np.ndarray) -> None:
        self.width, self.inside, self.outside = width, inside, outside
        self.filled = len(inside) + len(outside) == width
        self.in_order = len(inside) == width and bool((inside == np.arange(width)).all())

    def fill(
        self, out: np.ndarray, inside: np.ndarray, outside: np.ndarray | None, scale: np.float32 | np.ndarray
    ) -> None:
        if self.in_order:
            np.multiply(inside, scale, out=out, casting="same_kind")
            return
        out[:, self.inside] = inside * scale
        if len(self.outside):
            out[:, self.outside] = np.nan if outside is None else outside * scale


class _Dense:
    """A dense matrix, filled chunk by chunk."""

    def __init__(self, out: np.ndarray, place: _Place) -> None:
        self.out, self.place = out, place

    def put(self, rows: slice, inside: np.ndarray, outside: np.ndarray | None, scale: np.float32 | np.ndarray) -> None:
        if not self.place.filled:
            self.out[rows] = np.nan
        with np.errstate(over="ignore"):
            self.place.fill(self.out[rows], inside, outside, scale)
        if self.out.dtype == np.float16 and np.isinf(self.out[rows]).any():
            msg = (
                "dtype='float16' holds numbers up to 65,504, and some values are larger. Choose a smaller target_sum=, for "
                "example 1e4, or dtype='float32'."
            )
            raise ValueError(msg)

    def result(self) -> np.ndarray:
        return self.out


class _Sparse:
    """Rows of a CSR matrix without entries below a limit; NaN is kept."""

    def __init__(self, place: _Place, drop_below: float) -> None:
        self.place, self.drop_below = place, np.float32(drop_below)
        self.data: list[np.ndarray] = []
        self.indices: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []
        self.total = self.kept = 0.0

    def put(self, rows: slice, inside: np.ndarray, outside: np.ndarray | None, scale: np.float32 | np.ndarray) -> None:
        block = np.full((rows.stop - rows.start, self.place.width), np.nan, np.float32)
        self.place.fill(block, inside, outside, scale)
        kept = ~(block < self.drop_below)
        self.total += np.nansum(block, dtype=np.float64)
        self.kept += np.nansum(block[kept], dtype=np.float64)
        self.data.append(block[kept])
        self.indices.append(np.nonzero(kept)[1].astype(np.int32))
        self.lengths.append(kept.sum(1))

    def result(self) -> sparse.csr_matrix:
        lengths = np.concatenate(self.lengths)
        indptr = np.concatenate(([0], np.cumsum(lengths)))
        share = indptr[-1] / max(1, len(lengths) * self.place.width)
        logg.info(
            f"    kept the {share:.1%} of the entries that are {self.drop_below:g} or more; they hold "
            f"{self.kept / max(self.total, 1e-300):.1%} of the sum"
        )
        index = np.int32 if indptr[-1] < np.iinfo(np.int32).max else np.int64
        data, indices = np.concatenate(self.data), np.concatenate(self.indices).astype(index, copy=False)
        return sparse.csr_matrix((data, indices, indptr.astype(index)), shape=(len(lengths), self.place.width))
