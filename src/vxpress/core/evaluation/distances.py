"""Energy distance and maximum mean discrepancy of two samples of cells, also for resampled cells.

Distances between cells are computed once. A resample is a row of weights, so its statistic is a quadratic form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# bandwidths of the kernel in units of the median distance between real cells
BANDWIDTHS = (0.5, 1.0, 2.0)


def between(matrix_nm: Floats, weight_bn: Floats, weight_bm: Floats) -> Floats:
    """Compute the weighted mean over pairs of a cell of one sample and a cell of the other, (b,)."""
    total = weight_bn.sum(1) * weight_bm.sum(1)
    value = np.einsum("bm,bm->b", weight_bn @ matrix_nm, weight_bm)
    return np.divide(value, total, out=np.full(len(total), np.nan), where=total > 0)


def within(matrix: Floats, weight_bn: Floats) -> Floats:
    """Compute the weighted mean over pairs of different cells of one sample, (b,)."""
    diagonal = np.diagonal(matrix)
    square = weight_bn**2
    total = weight_bn.sum(1) ** 2 - square.sum(1)
    value = np.einsum("bn,bn->b", weight_bn @ matrix, weight_bn) - square @ diagonal
    return np.divide(value, total, out=np.full(len(total), np.nan), where=total > 0)


def pairwise(x_nd: Floats, y_md: Floats) -> Floats:
    """Compute Euclidean distances between cells, (n, m)."""
    square = (x_nd**2).sum(1)[:, None] + (y_md**2).sum(1) - 2.0 * (x_nd @ y_md.T)
    return np.sqrt(np.maximum(square, 0.0))


def energy(across: Floats, own_p: Floats, own_m: Floats, w_m: Floats, w_p: Floats) -> Floats:
    """Compute the energy distance from distances (measured, predicted), and within each, for every resample."""
    return 2.0 * between(across, w_m, w_p) - within(own_p, w_p) - within(own_m, w_m)


def median_distance(x: Floats) -> float:
    """Return the median distance between different cells; 1 if all cells are the same."""
    distance = pairwise(x, x)[np.triu_indices(len(x), 1)]
    found = float(np.median(distance)) if len(distance) else 0.0
    if found <= 0 and len(distance):
        found = float(distance.mean())
    return found if found > 0 else 1.0


def kernel(distance: Floats, scale: float, bandwidths: Sequence[float] = BANDWIDTHS) -> Floats:
    """Compute the mean of Gaussian kernels with these bandwidths, in units of ``scale``."""
    square = distance * distance
    out = np.zeros_like(square)
    for width in bandwidths:
        out += np.exp(square * (-0.5 / (width * scale) ** 2))
    return np.asarray(out / len(bandwidths))


@dataclass(frozen=True)
class Space:
    """Genes in which cells are compared (None: all), and the measured cells there."""

    name: str
    genes: Ints | None
    measured_nd: Floats
    control_nd: Floats
    distance: Floats
    scale: float
    kernel: Floats

    @classmethod
    def of(cls, name: str, genes: Ints | None, observed: sparse.csr_matrix, control: sparse.csr_matrix) -> Space:
        """Compute the distances and kernels within the measured cells."""
        measured_nd = _columns(observed, genes)
        distance = pairwise(measured_nd, measured_nd)
        scale = median_distance(measured_nd)
        return cls(name, genes, measured_nd, _columns(control, genes), distance, scale, kernel(distance, scale))


@dataclass(frozen=True)
class Drawn:
    """Cells drawn for the comparison of distributions, in each set of genes.

    Principal components are avoided: those of the compared cells fit their noise, and no other cells need be there.
    """

    rows: Ints
    rows0: Ints
    max_cells: int
    spaces: list[Space]

    @classmethod
    def of(
        cls,
        observed: sparse.csr_matrix,
        control: sparse.csr_matrix,
        order_g: Ints,
        n_top: Sequence[int],
        max_cells: int,
        rng: np.random.Generator,
    ) -> Drawn:
        """Draw at most ``max_cells`` of each sample."""
        rows, rows0 = _draw(observed.shape[0], max_cells, rng), _draw(control.shape[0], max_cells, rng)
        sets: list[tuple[str, Ints | None]] = [("all", None), *((f"top{k}", order_g[:k]) for k in n_top)]
        spaces = [Space.of(name, genes, observed[rows], control[rows0]) for name, genes in sets]
        return cls(rows, rows0, max_cells, spaces)

    def scores(
        self,
        predicted: sparse.csr_matrix | Floats,
        weight_bn: Floats,
        weight_bm: Floats,
        rng: np.random.Generator,
    ) -> dict[tuple[str, str], Floats]:
        """Score predicted cells, or control cells plus a predicted change, for all resamples.

        ``weight_bm`` are the weights of the predicted cells, or of the control cells.
        """
        shifted = not sparse.issparse(predicted)
        rows = self.rows0 if shifted else _draw(predicted.shape[0], self.max_cells, rng)
        x = predicted if shifted else predicted[rows]
        w, v = weight_bn[:, self.rows], weight_bm[:, rows]
        found: dict[tuple[str, str], Floats] = {}
        for space in self.spaces:
            every = slice(None) if space.genes is None else space.genes
            y = space.control_nd + x[every] if shifted else _columns(x, space.genes)
            across, own = pairwise(space.measured_nd, y), pairwise(y, y)
            found[space.name, "energy_distance"] = energy(across, own, space.distance, w, v)
            kernels = kernel(across, space.scale), kernel(own, space.scale)
            found[space.name, "mmd"] = -energy(*kernels, space.kernel, w, v)
        return found

    def ceiling(self, block_n: Ints, ways: NDArray[np.bool_]) -> dict[tuple[str, str], float]:
        """Compute the same between two halves of the measured cells, on average over ways to split them."""
        w = ways[:, block_n[self.rows]].astype(np.float64)
        found: dict[tuple[str, str], float] = {}
        for space in self.spaces:
            d, k = space.distance, space.kernel
            found[space.name, "energy_distance"] = float(np.mean(energy(d, d, d, w, 1.0 - w)))
            found[space.name, "mmd"] = -float(np.mean(energy(k, k, k, w, 1.0 - w)))
        return found


def _draw(n: int, most: int, rng: np.random.Generator) -> Ints:
    rows = np.arange(n) if n <= most else np.sort(rng.permutation(n)[:most])
    return rows.astype(np.int64)


def _columns(x: sparse.csr_matrix, genes: Ints | None) -> Floats:
    return np.asarray((x if genes is None else x[:, genes]).toarray(), dtype=np.float64)
