"""Agreement of predicted with measured vectors over genes: means, changes, standard deviations.

Vectors may have leading dimensions (resamples of the cells). Sets of genes are columns of weights that sum to one, so
that one matrix product serves all sets. All scores but two follow from weighted moments, and so do their ceilings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Moments:
    """Weighted first and second moments over genes of predicted and measured values, each (..., sets)."""

    predicted: Floats
    measured: Floats
    predicted2: Floats
    measured2: Floats
    product: Floats
    product_of_means: Floats

    @classmethod
    def of(cls, predicted: Floats, measured: Floats, weight_gs: Floats) -> Moments:
        """Compute the moments of values (..., g); the two are broadcast against each other."""
        p, m = predicted @ weight_gs, measured @ weight_gs
        return cls(
            p,
            m,
            (predicted * predicted) @ weight_gs,
            (measured * measured) @ weight_gs,
            (predicted * measured) @ weight_gs,
            p * m,
        )

    def pearson(self) -> Floats:
        covariance = self.product - self.product_of_means
        predicted, measured = _variance(self.predicted2, self.predicted), _variance(self.measured2, self.measured)
        return np.clip(_ratio(covariance, np.sqrt(_steady(predicted) * _steady(measured))), -1.0, 1.0)

    def mse(self) -> Floats:
        return np.maximum(self.predicted2 + self.measured2 - 2.0 * self.product, 0.0)

    def r2(self) -> Floats:
        """Coefficient of determination, 1 - sum (m - p)^2 / sum (m - mean m)^2."""
        return 1.0 - _ratio(self.mse(), _steady(_variance(self.measured2, self.measured)))

    def slope(self) -> Floats:
        """Slope of the regression of predicted on measured values, through the origin."""
        return _ratio(self.product, _steady(self.measured2))

    def doubled(self, control_s: Floats | float = 0.0) -> Moments:
        """Return the moments of two samples of all cells from those of two independent halves.

        The product of halves contains no noise on average, for any number of cells, so the excess of a second moment
        over it is noise, which twice as many cells halve. For the correlation this is the formula of Spearman and
        Brown. ``control_s`` is the part of the excess that is not halved: the noise of control cells, of which the
        scores use halves too.
        """
        predicted2 = 0.5 * (self.predicted2 + self.product + control_s)
        measured2 = 0.5 * (self.measured2 + self.product + control_s)
        return Moments(self.predicted, self.measured, predicted2, measured2, self.product, self.product_of_means)

    @classmethod
    def stack(cls, moments: Sequence[Moments]) -> Moments:
        return cls(*(np.stack([getattr(m, name) for m in moments]) for name in cls.__dataclass_fields__))

    def mean(self) -> Moments:
        """Average over the first dimension."""
        return Moments(*(getattr(self, name).mean(0) for name in self.__dataclass_fields__))

    @classmethod
    def join(cls, moments: Sequence[Moments]) -> Moments:
        """Append the resamples of portions."""
        return cls(*(np.concatenate([getattr(m, name) for m in moments]) for name in cls.__dataclass_fields__))


def _steady(value_bs: Floats) -> Floats:
    """Scale a denominator of resamples (after that of the data, the first row) to that of the data on average.

    A resample adds noise to the noise of the data, so its variance over genes is larger: where the change is nothing but
    noise, twice as large. Without this, ratios would vary too little over resamples.
    """
    if value_bs.ndim < 2 or len(value_bs) < 2:
        return value_bs
    inflated = value_bs[1:].mean(0)
    factor = np.divide(value_bs[0], inflated, out=np.ones_like(inflated), where=inflated > 0)
    return np.concatenate([value_bs[:1], value_bs[1:] * factor])


def _variance(square: Floats, mean: Floats) -> Floats:
    """Compute a variance from moments; rounding errors count as 0."""
    variance = square - mean**2
    return np.where(variance > 1e-12 * np.maximum(square, 1e-300), variance, 0.0)


def _ratio(a: Floats, b: Floats) -> Floats:
    """Divide; NaN where the divisor is 0."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=np.asarray(b) > 0)


def sign_agreement(predicted: Floats, measured: Floats, weight_gs: Floats) -> Floats:
    """Compute the weighted share of genes whose predicted and measured change have the same sign, (..., sets)."""
    return (np.sign(predicted) == np.sign(measured)).astype(np.float64) @ weight_gs


def top_genes(strength_g: Floats, k: int) -> Ints:
    """Return the ``k`` genes of the largest strength, the strongest first; ties in the order of genes."""
    order = np.argsort(-np.nan_to_num(strength_g, nan=-np.inf), kind="stable")
    return order[:k].astype(np.int64)


def listed(change: Floats, scale_g: Floats, sizes: Sequence[int]) -> NDArray[np.bool_]:
    """Return which genes are among the k with the largest change in units of ``scale_g``, (sizes, ..., g).

    Genes that do not change are in no list; genes that are equal to the last of a list are in it too.
    """
    strength = np.abs(change) * np.nan_to_num(_ratio(np.ones_like(scale_g), scale_g), nan=0.0)
    n_genes = strength.shape[-1]
    inside = [n_genes - min(k, n_genes) for k in sizes]
    if not inside:
        return np.zeros((0, *strength.shape), dtype=bool)
    largest = np.partition(strength, inside, axis=-1)
    return np.stack([(strength >= largest[..., k, None]) & (strength > 0) for k in inside])


def overlaps(predicted: NDArray[np.bool_], measured: NDArray[np.bool_], sizes: Sequence[int]) -> Floats:
    """Compute which share of each measured list (sizes, ..., g) is in the predicted one, (..., sizes)."""
    n_genes = predicted.shape[-1]
    shared = (predicted & measured).sum(-1)
    return np.moveaxis(shared / np.array([min(k, n_genes) for k in sizes]).reshape(-1, *[1] * (shared.ndim - 1)), 0, -1)


def welch(
    mean: Floats, variance: Floats, n: float, mean0: Floats, variance0: Floats, n0: float
) -> tuple[Floats, Floats]:
    """Compute Welch's t of every gene and the standard error of the difference; t is 0 where the error is 0."""
    error = np.sqrt(variance / n + variance0 / n0)
    t = np.nan_to_num(_ratio(mean - mean0, error), nan=0.0)
    return t, error


def weights_of(t_g: Floats) -> Floats:
    """Compute the weights of genes from their t statistics: |t| scaled to 0-1, squared, scaled to sum to one."""
    size = np.abs(np.nan_to_num(t_g, nan=0.0))
    span = size.max() - size.min()
    scaled = ((size - size.min()) / span) ** 2 if span > 0 else np.ones_like(size)
    return np.asarray(scaled / scaled.sum())


def rank_of_truth(predicted_pg: Floats, measured_pg: Floats, metric: str, left_out_pg: NDArray[np.bool_]) -> Floats:
    """Compute 1 - rank / P of the true perturbation among all, by distance to the predicted change, (p,).

    ``left_out_pg`` are genes that are not compared for a perturbation. Ties have the middle rank.
    """
    from scipy.spatial.distance import cdist

    name = {"l1": "cityblock", "l2": "euclidean", "cosine": "cosine"}[metric]
    n = len(predicted_pg)
    rank_p = np.empty(n)
    for p in range(n):
        keep = ~left_out_pg[p]
        distance = cdist(measured_pg[:, keep], predicted_pg[p : p + 1, keep], name)[:, 0]
        rank_p[p] = (distance < distance[p]).sum() + ((distance == distance[p]).sum() - 1) / 2
        if not np.isfinite(distance[p]):
            rank_p[p] = np.nan
    return 1.0 - rank_p / n
