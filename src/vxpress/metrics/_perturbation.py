"""Scores of a predicted response to a perturbation against the measured one.

All scores are on the scale ``log1p(10,000 x / library)`` of single cells: its means over cells, and the change of the
mean from control to treated cells.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from scipy import sparse

from vxpress._checks import check_choice, check_range
from vxpress._entry import entry
from vxpress.core.evaluation import change, distances
from vxpress.metrics._generation import Matrix, _dense_pair, _pair

RankDistance: TypeAlias = Literal["l1", "l2", "cosine"]


@entry
def log1p_normalized(
    x_ng: Matrix, library_n: np.ndarray | None = None, *, target_sum: float = 1e4
) -> sparse.csr_matrix:
    """Compute the scale of all scores of perturbations, ``log1p(target_sum * x / library)`` of every cell.

    Parameters
    ----------
    x_ng
        Counts of cells and genes, dense or sparse; expected counts are allowed.
    library_n
        Molecules of every cell; by default the sum over the given genes. A cell without molecules stays at 0.
    target_sum
        Molecules to which every cell is scaled. 10,000 is the convention of this scale.

    Returns
    -------
    The values as a float64 CSR matrix.

    Raises
    ------
    ValueError
        If there are negative or infinite values, or not one positive library size per cell with molecules.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> vx.metrics.log1p_normalized(np.array([[1, 3], [0, 0]])).toarray().round(2)
    array([[7.82, 8.92],
           [0.  , 0.  ]])
    """
    if hasattr(x_ng, "obs_names"):
        msg = "An array of counts is expected, cells x genes; found an AnnData. Pass its counts, adata.X."
        raise TypeError(msg)
    found: Any = x_ng if sparse.issparse(x_ng) else np.asarray(x_ng)
    if found.ndim != 2:
        msg = f"Counts of cells x genes are expected; found {found.ndim} dimension(s)."
        raise ValueError(msg)
    x = sparse.csr_matrix(found, dtype=np.float64, copy=True)
    if x.data.size and (not np.isfinite(x.data).all() or x.data.min() < 0):
        msg = "The counts hold negative, infinite or missing values; numbers of at least 0 are expected."
        raise ValueError(msg)
    total = np.asarray(x.sum(1)).reshape(-1)
    library = total if library_n is None else np.asarray(library_n, dtype=np.float64).reshape(-1)
    if len(library) != x.shape[0] or not np.isfinite(library).all() or (library[total > 0] <= 0).any():
        msg = (
            f"{x.shape[0]} library sizes, positive for cells with molecules, are expected; found {len(library)} values."
        )
        raise ValueError(msg)
    scale = np.divide(target_sum, library, out=np.zeros_like(library), where=library > 0)
    x.data = np.log1p(x.data * np.repeat(scale, np.diff(x.indptr)))
    return x


class ChangeScores(NamedTuple):
    """Agreement of a predicted with a measured change of gene means."""

    pearson: float
    r2: float
    mse: float
    slope: float
    sign_agreement: float


@entry
def change_scores(
    predicted_g: np.ndarray, measured_g: np.ndarray, *, weights_g: np.ndarray | None = None
) -> ChangeScores:
    """Compare a predicted with a measured change of gene means, or two vectors of means.

    Parameters
    ----------
    predicted_g, measured_g
        A number per gene: the mean of the treated cells minus that of the control cells, on the scale of
        :func:`log1p_normalized`. Do not subtract the same control cells from both: their sampling noise correlates
        the two. :func:`vxpress.tl.evaluate_perturbation` splits them.
    weights_g
        Weights of the genes, at least 0; they are scaled to sum to one. By default genes count alike. With
        :func:`de_weights`, ``mse`` and ``r2`` are the weighted scores of :cite:t:`Mejia2025`.

    Returns
    -------
    ``pearson``
        Correlation over genes, which ignores the size of the change; NaN if one of the two is constant.
    ``r2``
        Coefficient of determination, ``1 - sum w (m - p)^2 / sum w (m - mean(m))^2``: 1 is best, and at most 0 if
        no change is predicted.
    ``mse``
        Mean squared error.
    ``slope``
        Slope of the regression of predicted on measured changes through the origin: 1 is best, and smaller if the
        change is attenuated. Noise of the measured change lowers it.
    ``sign_agreement``
        Share of genes with the same sign.

    Raises
    ------
    ValueError
        If the arrays are not finite numbers of the same length, or all weights are 0.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> measured = np.array([2.0, -1.0, 0.0, 1.0])
    >>> vx.metrics.change_scores(measured / 2, measured).slope
    0.5
    """
    predicted, measured = _vectors(predicted_g, measured_g)
    weights = np.ones(len(measured)) if weights_g is None else _vectors(weights_g, measured_g)[0]
    if weights.min() < 0 or weights.sum() <= 0:
        msg = "The weights of genes should be at least 0, and not all 0."
        raise ValueError(msg)
    weight_gs = (weights / weights.sum())[:, None]
    moments = change.Moments.of(predicted, measured, weight_gs)
    signs = change.sign_agreement(predicted, measured, weight_gs)
    scores = (moments.pearson(), moments.r2(), moments.mse(), moments.slope(), signs)
    return ChangeScores(*(float(score[0]) for score in scores))


@entry
def welch_t(x_ng: Matrix, y_mg: Matrix) -> np.ndarray:
    """Compute Welch's t statistic of every gene between two samples of cells.

    Parameters
    ----------
    x_ng, y_mg
        Treated and control cells, log values, dense or sparse.

    Returns
    -------
    One t per gene, positive if the mean is higher in ``x_ng``; 0 for genes that are constant in both.

    Raises
    ------
    ValueError
        If the samples differ in their number of columns, or one has fewer than two cells.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> vx.metrics.welch_t(np.array([[1.0], [3.0]]), np.array([[0.0], [2.0]])).round(3)
    array([0.707])
    """
    x, y = _pair(x_ng, y_mg)
    n, m = x.shape[0], y.shape[0]
    if min(n, m) < 2:
        msg = f"The samples have {n} and {m} cells; at least two of each are expected."
        raise ValueError(msg)
    mean, variance = _moments(x)
    mean0, variance0 = _moments(y)
    return change.welch(mean, variance, n, mean0, variance0, m)[0]


@entry
def de_weights(t_g: np.ndarray) -> np.ndarray:
    """Compute weights of genes from their t statistics between real treated and control cells.

    Parameters
    ----------
    t_g
        A statistic per gene, as from :func:`welch_t`. Only its size matters.

    Returns
    -------
    ``|t|`` scaled to 0-1, squared, and scaled to sum to one, as in :cite:t:`Mejia2025`. Genes that do not respond,
    which are most, then hardly count.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> vx.metrics.de_weights(np.array([0.0, 1.0, -2.0]))
    array([0. , 0.2, 0.8])
    """
    t = np.asarray(t_g, dtype=np.float64)
    if t.ndim != 1 or not len(t):
        msg = f"A statistic per gene is expected; found shape {t.shape}."
        raise ValueError(msg)
    return change.weights_of(t)


@entry
def deg_overlap(
    predicted_g: np.ndarray, measured_g: np.ndarray, k: int = 50, *, error_g: np.ndarray | None = None
) -> float:
    """Compute which share of the ``k`` genes that change most is among the ``k`` with the largest predicted change.

    Parameters
    ----------
    predicted_g, measured_g
        Predicted and measured change per gene.
    k
        Number of genes; 50 is a usual choice.
    error_g
        Standard error of the measured change per gene, by which both changes are divided, so that genes are ranked
        by ``|t|``. By default genes are ranked by the absolute change.

    Returns
    -------
    The share, 0 to 1; ``k / n_genes`` is expected by chance.

    Raises
    ------
    ValueError
        If the arrays are not finite numbers of the same length.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> vx.metrics.deg_overlap(np.array([3.0, 0.1, -2.0]), np.array([1.0, 0.5, 0.1]), k=2)
    0.5
    """
    predicted, measured = _vectors(predicted_g, measured_g)
    check_range("k", k, 1, 10_000_000, integer=True)
    error = np.ones(len(measured)) if error_g is None else _vectors(error_g, measured_g)[0]
    first, second = (change.listed(z, error, [int(k)]) for z in (predicted, measured))
    return float(change.overlaps(first, second, [int(k)])[0])


@entry
def mmd(x_nd: np.ndarray, y_md: np.ndarray, *, bandwidths: tuple[float, ...] = distances.BANDWIDTHS) -> float:
    """Compute the maximum mean discrepancy of two samples, squared and unbiased, with Gaussian kernels.

    Parameters
    ----------
    x_nd, y_md
        Real and predicted cells with the same columns.
    bandwidths
        Bandwidths of the kernels, whose mean is used, in units of the median distance between different cells of
        ``x_nd``. Results with other bandwidths, or in other coordinates, are not comparable.

    Returns
    -------
    The estimate of :cite:t:`Gretton2012` without pairs of a cell with itself: 0 on average if the distributions are
    the same, so it can be slightly negative. Compare with the value for two halves of the real cells.

    Raises
    ------
    ValueError
        If the samples differ in their number of columns, or one has fewer than two cells.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> x = np.random.default_rng(0).normal(size=(400, 3))
    >>> abs(vx.metrics.mmd(x[:200], x[200:])) < 0.01 < vx.metrics.mmd(x[:200], x[200:] + 1)
    True
    """
    x, y = _dense_pair(x_nd, y_md)
    if min(len(x), len(y)) < 2:
        msg = f"The samples have {len(x)} and {len(y)} cells; at least two of each are expected."
        raise ValueError(msg)
    scale = distances.median_distance(x)
    k = [distances.kernel(distances.pairwise(a, b), scale, bandwidths) for a, b in ((x, y), (y, y), (x, x))]
    one = np.ones((1, len(x))), np.ones((1, len(y)))
    return -float(distances.energy(k[0], k[1], k[2], *one)[0])


@entry
def rank_discrimination(
    predicted_pg: np.ndarray,
    measured_pg: np.ndarray,
    *,
    metric: RankDistance = "l1",
    left_out_pg: np.ndarray | None = None,
) -> np.ndarray:
    """Measure whether each predicted change is nearer to its own measured change than to those of other perturbations.

    Parameters
    ----------
    predicted_pg, measured_pg
        Predicted and measured changes of the same perturbations, perturbations x genes.
    metric
        Distance: ``"l1"``, which the Virtual Cell Challenge uses, ``"l2"`` or ``"cosine"``.
    left_out_pg
        Genes that are not compared for a perturbation, booleans; usually its target, whose change is trivial.

    Returns
    -------
    ``1 - rank / P`` per perturbation, where the rank is the number of measured changes nearer than the right one: 1
    is best, ``(P + 1) / 2P`` is expected by chance. A prediction that is the same for all perturbations scores as
    chance, however well it agrees with the mean.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> vx.metrics.rank_discrimination(np.eye(3), np.eye(3))
    array([1., 1., 1.])
    """
    check_choice("metric", metric, RankDistance)
    predicted, measured = _dense_pair(predicted_pg, measured_pg)
    left_out = np.zeros(measured.shape, dtype=bool) if left_out_pg is None else np.asarray(left_out_pg, dtype=bool)
    if predicted.shape != measured.shape or left_out.shape != measured.shape:
        msg = f"Arrays of one shape are expected; found {predicted.shape}, {measured.shape} and {left_out.shape}."
        raise ValueError(msg)
    return change.rank_of_truth(predicted, measured, metric, left_out)


def _vectors(x_g: Any, y_g: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x_g, dtype=np.float64), np.asarray(y_g, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        msg = f"Two arrays with a number per gene are expected; found shapes {x.shape} and {y.shape}."
        raise ValueError(msg)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        msg = "The arrays contain NaN or infinite values; finite numbers are expected."
        raise ValueError(msg)
    return x, y


def _moments(x: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean and the unbiased variance of every column."""
    if sparse.issparse(x):
        x = x.astype(np.float64)
        mean = np.asarray(x.mean(0)).reshape(-1)
        square = np.asarray(sparse.csr_matrix(x).power(2).mean(0)).reshape(-1)
        return mean, np.maximum(square - mean**2, 0.0) * x.shape[0] / (x.shape[0] - 1)
    dense = np.asarray(x, dtype=np.float64)
    return dense.mean(0), dense.var(0, ddof=1)
