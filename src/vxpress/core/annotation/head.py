"""The classifier: logistic regression on latent features and on expression, pooled with weights learned by cross-fitting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from scipy.optimize import minimize
from torch import Tensor

from vxpress.core.annotation.features import balanced, floor
from vxpress.core.annotation.softmax import Softmax

# ridge penalties to choose from, over the number of labelled cells
LATENT, GENES = (0.1, 1.0, 10.0), (1.0, 10.0)
N_FOLDS = 5
# up to this many labelled cells, penalties are chosen on all folds
MAX_CHOOSING = 500
# the cells span a small space if they are fewer than this share of the features, and than this number
SPANNED, MAX_SPANNED = 0.7, 1_500
# penalty on the squared logarithm of twice a weight of the pool, in nats
PRIOR_CELLS = 2.0


@dataclass(frozen=True)
class Head:
    """Two classifiers and the weights of their log probabilities, which also set how confident the pool is."""

    latent: Softmax
    genes: Softmax
    pool: tuple[float, float]

    def log_prob(self, latent_nf: Tensor, expression_ng: Tensor) -> Tensor:
        """Compute the log probabilities of the labels, (n, labels)."""
        return pooled((self.latent.log_prob(latent_nf), self.genes.log_prob(expression_ng)), self.pool)


@dataclass(frozen=True)
class Learned:
    """A head, and the log probabilities that heads learned without a cell give to its labels, (n, labels).

    ``known_n`` are the cells whose label occurred among the others.
    """

    head: Head
    held_out_nc: Tensor
    known_n: Tensor


def learn(latent_nf: Tensor, expression_ng: Tensor, code_n: Tensor, n_labels: int, fold_n: Tensor) -> Learned:
    """Learn a head from labelled cells with codes 0 to ``n_labels`` - 1; cells of a fold are predicted from the others."""
    coordinates = Coordinates.of(expression_ng)
    expression_ng = coordinates.of_cells
    kinds = (latent_nf, expression_ng)
    chosen = [_choose(x, code_n, n_labels, fold_n, among) for x, among in zip(kinds, (LATENT, GENES), strict=True)]
    penalties, parts = zip(*chosen, strict=True)
    known_n = torch.stack([_met(code_n, fold_n != fold)[code_n] & (fold_n == fold) for fold in fold_n.unique()]).any(0)
    weights = _pool_weights([part[known_n] for part in parts], code_n[known_n])
    latent, genes = (_fit(x, code_n, n_labels, penalty) for x, penalty in zip(kinds, penalties, strict=True))
    return Learned(Head(latent, coordinates.back(genes), weights), pooled(parts, weights), known_n)


@dataclass(frozen=True)
class Coordinates:
    """Cells in the coordinates of the space that they span, which gives the same classifier with fewer numbers.

    ``basis_gr`` has orthonormal columns, or is None if the cells are too many.
    """

    of_cells: Tensor
    basis_gr: Tensor | None

    @classmethod
    def of(cls, x_ng: Tensor) -> Coordinates:
        """Rotate the features of few cells."""
        n, n_features = x_ng.shape
        if n > min(SPANNED * n_features, MAX_SPANNED):
            return cls(x_ng, None)
        values, vectors = torch.linalg.eigh((x_ng @ x_ng.t()).double())
        kept = values > 1e-7 * values[-1].clamp_min(1e-12)
        basis_gr = (x_ng.t().double() @ vectors[:, kept] * values[kept].rsqrt()).float()
        return cls(x_ng @ basis_gr, basis_gr)

    def back(self, found: Softmax) -> Softmax:
        """Return a classifier of these coordinates as one of the features."""
        return found if self.basis_gr is None else Softmax(found.weight_cd @ self.basis_gr.t(), found.bias_c)


def pooled(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted geometric mean of probabilities, as logarithms."""
    return sum(weight * floor(part) for weight, part in zip(weights, parts, strict=True)).log_softmax(-1)  # type: ignore[union-attr]


def _fit(x_nf: Tensor, code_n: Tensor, n_labels: int, penalty: float) -> Softmax:
    return Softmax.fit(x_nf, code_n, n_labels, penalty / len(code_n), balanced(code_n))


def _cross_fit(x_nf: Tensor, code_n: Tensor, n_labels: int, fold_n: Tensor, penalty: float) -> Tensor:
    """Return the log probabilities of each cell by a classifier learned without its fold."""
    out = torch.empty(len(code_n), n_labels)
    for fold in fold_n.unique():
        rest = fold_n != fold
        out[~rest] = _fit(x_nf[rest], code_n[rest], n_labels, penalty).log_prob(x_nf[~rest])
    return out


def _choose(
    x_nf: Tensor, code_n: Tensor, n_labels: int, fold_n: Tensor, among: Sequence[float]
) -> tuple[float, Tensor]:
    """Return the penalty with the lowest held-out loss, and what held-out cells are predicted to be with it.

    With many cells, one fold and a part of the others decide.
    """
    if len(code_n) <= MAX_CHOOSING:
        found = {p: _cross_fit(x_nf, code_n, n_labels, fold_n, p) for p in among}
        best = min(found, key=lambda p: _loss(found[p], code_n))
        return best, found[best]
    held = fold_n == fold_n[0]
    rest = torch.nonzero(~held).squeeze(-1)
    rest = rest[:: max(1, len(rest) // MAX_CHOOSING)]
    loss = {p: _loss(_fit(x_nf[rest], code_n[rest], n_labels, p).log_prob(x_nf[held]), code_n[held]) for p in among}
    best = min(loss, key=loss.__getitem__)
    return best, _cross_fit(x_nf, code_n, n_labels, fold_n, best)


def _loss(log_prob: Tensor, code_n: Tensor) -> float:
    return float(-floor(log_prob).gather(1, code_n[:, None]).mean())


def _met(code_n: Tensor, chosen_n: Tensor) -> Tensor:
    return torch.bincount(code_n[chosen_n], minlength=int(code_n.max()) + 1) > 0


def _pool_weights(parts: Sequence[Tensor], code_n: Tensor) -> tuple[float, float]:
    """Choose the weights under which held-out cells have their labels with the highest probability."""
    start = math.log(1.0 / len(parts))
    if not len(code_n):
        return math.exp(start), math.exp(start)
    floored, rows = [floor(part).double().numpy() for part in parts], np.arange(len(code_n))

    def loss(log_weight: np.ndarray) -> float:
        logits = sum(w * part for w, part in zip(np.exp(log_weight), floored, strict=True))
        value = float((special.logsumexp(logits, axis=1) - logits[rows, code_n.numpy()]).mean())
        return value + PRIOR_CELLS / len(code_n) * float(np.square(log_weight - start).sum())

    found = minimize(loss, np.full(len(parts), start), method="L-BFGS-B").x
    latent, genes = np.exp(found).tolist()
    return latent, genes
