"""Comparison of generated with real cells.

Compare every number with the same number for two samples of real cells, which is its best possible value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from scipy import sparse, stats

from vxpress._entry import entry
from vxpress._names import Names
from vxpress._seeds import seed_of

Rng: TypeAlias = int | np.random.Generator | None
Matrix: TypeAlias = np.ndarray | sparse.csr_matrix

_BLOCK = 1024
# largest number of steps in the search for the kernel width, and tolerance of the entropy
_STEPS, _TOLERANCE = 50, 1e-5


@entry
def two_sample_auroc(
    real_ng: Matrix, generated_mg: Matrix, *, n_folds: int = 5, n_trees: int = 500, rng: Rng = 0
) -> float:
    """Measure how well a random forest distinguishes two samples of cells.

    Parameters
    ----------
    real_ng, generated_mg
        Two samples with the same columns, dense or sparse: counts, depth-normalised counts, principal components. Use
        the same number of cells in both, and report it, because the score grows with it.
    n_folds
        Number of folds of the cross-validation, stratified by sample.
    n_trees
        Number of trees of the forest (:class:`sklearn.ensemble.RandomForestClassifier` with its other defaults). With
        100 trees, the default of scikit-learn, votes are noisy and the score is lower.
    rng
        Seed of folds and forest.

    Returns
    -------
    Area under the receiver operating characteristic on held-out cells, mean over folds: .5 if the samples cannot be
    distinguished, 1 if every cell is recognised. This is the classifier two-sample test of :cite:t:`LopezPaz2017`, with
    the random forest and the area of :cite:t:`Marouf2020`. With few columns and similar samples it scatters around .5
    and may be lower.

    Raises
    ------
    ValueError
        If the samples differ in their number of columns, or one has fewer cells than folds.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> vx.metrics.two_sample_auroc(x[:100], x[100:] + 9.0, n_trees=20)
    1.0
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    x, y = _pair(real_ng, generated_mg)
    if min(x.shape[0], y.shape[0]) < n_folds:
        msg = f"The samples have {x.shape[0]} and {y.shape[0]} cells; at least {n_folds}, one per fold, are expected of each."
        raise ValueError(msg)
    both = sparse.vstack([x, y], format="csr") if sparse.issparse(x) or sparse.issparse(y) else np.concatenate([x, y])
    is_generated = np.repeat([0, 1], [x.shape[0], y.shape[0]])
    seeds = seed_of(rng).integers(2**31, size=n_folds + 1)
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=int(seeds[0]))
    scores = []
    for seed, (train, test) in zip(seeds[1:], folds.split(np.zeros(len(is_generated)), is_generated), strict=True):
        forest = RandomForestClassifier(n_trees, random_state=int(seed), n_jobs=1)
        forest.fit(both[train], is_generated[train])
        scores.append(roc_auc_score(is_generated[test], forest.predict_proba(both[test])[:, 1]))
    return float(np.mean(scores))


@entry
def mixing_lisi(x_nd: np.ndarray, y_md: np.ndarray, *, perplexity: float = 30.0) -> float:
    """Measure how well two samples are mixed among their nearest neighbours.

    Parameters
    ----------
    x_nd, y_md
        Two samples with the same columns, usually principal components. They should have the same size; otherwise the
        score cannot reach 2.
    perplexity
        Effective number of neighbours; three times as many are searched. 30 is the value of the source.

    Returns
    -------
    Local inverse Simpson's index of :cite:t:`Korsunsky2019`, mean over all cells: the effective number of samples in a
    neighbourhood, from 1 (separate) to 2 (mixed). A perfect mixture gives 1.87 to 1.9 at the default, because a finite
    neighbourhood is never exactly even. Compare with the score of two samples of real cells.

    Raises
    ------
    ValueError
        If the samples differ in their number of columns, or have together no more cells than neighbours are searched.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> x = np.random.default_rng(0).normal(size=(400, 3))
    >>> vx.metrics.mixing_lisi(x[:200], x[200:] + 100.0)
    1.0
    >>> vx.metrics.mixing_lisi(x[:200], x[200:]) > 1.85
    True
    """
    from sklearn.neighbors import NearestNeighbors

    x, y = _dense_pair(x_nd, y_md)
    both, from_y = np.concatenate([x, y]), np.repeat([0.0, 1.0], [len(x), len(y)])
    k = int(3 * perplexity)
    if len(both) <= k:
        msg = f"The samples have {len(both)} cells together; more than {k}, three times the perplexity, are expected. Lower perplexity=."
        raise ValueError(msg)
    distance_nk, near_nk = NearestNeighbors(n_neighbors=k + 1).fit(both).kneighbors(both)
    distance_nk, near_nk = _without_self(distance_nk, near_nk)
    share_n = (_perplexity_weights(distance_nk, perplexity) * from_y[near_nk]).sum(1)
    return float((1.0 / (share_n**2 + (1.0 - share_n) ** 2)).mean())


def _without_self(distance_nk: np.ndarray, near_nk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remove the cell itself from its neighbours; if identical cells hide it, remove the last neighbour."""
    itself = near_nk == np.arange(len(near_nk))[:, None]
    itself[~itself.any(1), -1] = True
    shape = (len(near_nk), near_nk.shape[1] - 1)
    return distance_nk[~itself].reshape(shape), near_nk[~itself].reshape(shape)


def _perplexity_weights(distance_nk: np.ndarray, perplexity: float) -> np.ndarray:
    """Compute weights exp(-beta d) that sum to one per row, with beta such that their entropy is log(perplexity)."""
    distance_nk = distance_nk - distance_nk[:, :1]
    low, high = np.zeros(len(distance_nk)), np.full(len(distance_nk), np.inf)
    beta = 1.0 / np.maximum(distance_nk.mean(1), 1e-12)
    weight_nk = np.empty_like(distance_nk)
    for _ in range(_STEPS):
        weight_nk = np.exp(-beta[:, None] * distance_nk)
        total_n = weight_nk.sum(1)
        weight_nk /= total_n[:, None]
        gap = np.log(total_n) + beta * (weight_nk * distance_nk).sum(1) - np.log(perplexity)
        if (np.abs(gap) < _TOLERANCE).all():
            break
        low, high = np.where(gap > 0, beta, low), np.where(gap > 0, high, beta)
        beta = np.where(np.isinf(high), beta * 2.0, 0.5 * (low + np.where(np.isinf(high), 0.0, high)))
    return weight_nk


@entry
def energy_distance(x_nd: np.ndarray, y_md: np.ndarray) -> float:
    """Compute the energy distance of two samples, with Euclidean distances.

    Parameters
    ----------
    x_nd, y_md
        Two samples with the same columns.

    Returns
    -------
    ``2 E|x - y| - E|x - x'| - E|y - y'|`` of :cite:t:`Szekely2013`, without the distance of a cell to itself. On
    average it is 0 if the distributions are the same, and positive otherwise. With squared distances, which some tools
    use, it would only measure the means: twice the squared distance between them.

    Raises
    ------
    ValueError
        If the samples differ in their number of columns, or one has fewer than two cells.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> vx.metrics.energy_distance(np.array([[0.0], [2.0]]), np.array([[5.0], [7.0]]))
    6.0
    """
    x, y = _dense_pair(x_nd, y_md)
    if min(len(x), len(y)) < 2:
        msg = f"The samples have {len(x)} and {len(y)} cells; at least two of each are expected."
        raise ValueError(msg)
    within = _distance_sum(x, x) / (len(x) * (len(x) - 1)) + _distance_sum(y, y) / (len(y) * (len(y) - 1))
    return float(2.0 * _distance_sum(x, y) / (len(x) * len(y)) - within)


def _distance_sum(x: np.ndarray, y: np.ndarray) -> float:
    from scipy.spatial.distance import cdist

    return float(sum(cdist(x[start : start + _BLOCK], y).sum() for start in range(0, len(x), _BLOCK)))


class Memorization(NamedTuple):
    """Share of generated cells that are closer to a training cell than most real cells are, and its upper bound."""

    share: float
    upper: float
    distance: float


@entry
def memorization(
    generated_md: np.ndarray,
    train_nd: np.ndarray,
    held_out_kd: np.ndarray,
    *,
    quantile: float = 0.05,
    confidence: float = 0.95,
) -> Memorization:
    """Test whether generated cells are closer to the training cells than held-out real cells are.

    Parameters
    ----------
    generated_md
        Generated cells, usually in principal components of the training cells.
    train_nd
        All training cells of the model.
    held_out_kd
        Real cells of the same kind that were not used in training. They set the scale, so use as many as possible.
    quantile
        The limit is this quantile of the distances of held-out cells to their nearest training cell.
    confidence
        Confidence level of the upper bound.

    Returns
    -------
    ``share``
        Share of generated cells closer to a training cell than the limit. It is close to ``quantile`` if nothing is
        memorised. A low share alone does not show good cells: noise is far from everything.
    ``upper``
        One-sided upper bound of the share (:cite:t:`Clopper1934`) for the given limit.
    ``distance``
        The limit.

    Raises
    ------
    ValueError
        If the samples differ in their number of columns, or one is empty.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> x = np.random.default_rng(0).normal(size=(3000, 4))
    >>> copied = vx.metrics.memorization(x[:1000] + 1e-9, x[:1000], x[1000:2000])
    >>> copied.share
    1.0
    >>> fresh = vx.metrics.memorization(x[2000:], x[:1000], x[1000:2000])
    >>> fresh.upper < 0.08
    True
    """
    from sklearn.neighbors import NearestNeighbors

    generated, train = _dense_pair(generated_md, train_nd)
    held_out = _dense_pair(held_out_kd, train_nd)[0]
    nearest = NearestNeighbors(n_neighbors=1).fit(train)
    limit = float(np.quantile(nearest.kneighbors(held_out)[0], quantile))
    near = int((nearest.kneighbors(generated)[0][:, 0] < limit).sum())
    n = len(generated)
    upper = 1.0 if near == n else float(stats.beta.ppf(confidence, near + 1, n - near))
    return Memorization(near / n, upper, limit)


class FoldChangeSlope(NamedTuple):
    """Slope of log fold changes in generated cells on those in real cells, and the number of pairs used."""

    slope: float
    n_genes: int


@entry
def fold_change_slope(
    real_ng: Matrix,
    real_groups: Sequence[str] | np.ndarray,
    generated_mg: Matrix,
    generated_groups: Sequence[str] | np.ndarray,
    *,
    select_ng: Matrix | None = None,
    select_groups: Sequence[str] | np.ndarray | None = None,
    fdr: float = 0.05,
    min_log2_fold_change: float = 1.0,
    pseudocount: float = 0.1,
) -> FoldChangeSlope:
    """Compare the size of differences between groups in generated and in real cells.

    Every group is compared with all other cells. Differing genes are chosen by Welch's test of ``log1p`` values, with
    false discovery rate ``fdr``, and by fold change. The log2 fold changes of means in generated cells are then
    regressed on those in real cells, over all chosen genes and groups, through the origin.

    Parameters
    ----------
    real_ng, real_groups
        Real cells: depth-normalised counts (as after ``sc.pp.normalize_total(adata, target_sum=1e4)``), **not**
        log-transformed, and the group of each cell.
    generated_mg, generated_groups
        The same for generated cells. Groups with fewer than three cells, or fewer than three other cells, in any sample
        are left out.
    select_ng, select_groups
        Other real cells, such as the training cells, on which genes are chosen. Without them, genes are chosen on the
        same cells from which fold changes are computed. The slope is then too small, because genes are chosen whose
        fold change is large by chance.
    fdr, min_log2_fold_change
        Thresholds for the choice of genes.
    pseudocount
        Added to means before the ratio, in units of the normalised counts. 0.1 of 10,000 prevents genes that are almost
        absent on one side from dominating the slope.

    Returns
    -------
    ``slope``
        1 if differences are preserved, smaller if they are attenuated, NaN if no gene was chosen. Noise in the real
        fold changes lowers it (regression dilution): compare with the slope between two halves of the real cells.
    ``n_genes``
        Number of pairs of gene and group used.

    Raises
    ------
    ValueError
        If the samples differ in their number of columns, or groups are not one name per cell.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> rng = np.random.default_rng(0)
    >>> mean = np.array([[50.0, 5.0], [5.0, 50.0]]).repeat(100, 0)
    >>> groups = ["a"] * 100 + ["b"] * 100
    >>> slope, n_genes = vx.metrics.fold_change_slope(rng.poisson(mean), groups, rng.poisson(mean), groups)
    >>> round(slope, 1), n_genes
    (1.0, 4)
    """
    real, generated = _pair(real_ng, generated_mg)
    select = real if select_ng is None else _pair(select_ng, real_ng)[0]
    chosen_on = real_groups if select_groups is None else select_groups
    groups = {"real_groups": real_groups, "generated_groups": generated_groups, "select_groups": chosen_on}
    named = [_names(argument, of_cells) for argument, of_cells in groups.items()]
    samples = (real, generated, select)
    for x, names in zip(samples, named, strict=True):
        if len(names) != x.shape[0]:
            msg = f"{x.shape[0]} cells and {len(names)} group names were given; one name per cell is expected."
            raise ValueError(msg)
    of_real, of_generated = [], []
    for group in np.unique(named[0]):
        members = [names == group for names in named]
        if any(min(m.sum(), (~m).sum()) < 3 for m in members):
            continue
        x, y, s = (_log2_ratio(z, m, pseudocount) for z, m in zip(samples, members, strict=True))
        chosen = (_welch_fdr(select, members[2]) <= fdr) & (np.abs(s) >= min_log2_fold_change)
        of_real.append(x[chosen])
        of_generated.append(y[chosen])
    x, y = (np.concatenate(parts) if parts else np.empty(0) for parts in (of_real, of_generated))
    square = float(x @ x)
    return FoldChangeSlope(float(x @ y) / square if square > 0 else float("nan"), len(x))


def _names(argument: str, groups: Any) -> np.ndarray:
    """Return the group of each cell as strings."""
    if sparse.issparse(groups) or np.ndim(groups) != 1:
        msg = f"{argument}= should name the group of each cell, as adata.obs['cell_type'] does; found {type(groups).__name__}."
        raise ValueError(msg)
    column = groups if isinstance(groups, pd.Series) else pd.Series(groups)
    return Names.of(column, f"{argument}=").labels("nan")


def _log2_ratio(x: Matrix, inside_n: np.ndarray, pseudocount: float) -> np.ndarray:
    inside, outside = (np.asarray(x[rows].mean(0), dtype=np.float64).reshape(-1) for rows in (inside_n, ~inside_n))
    return np.asarray(np.log2((inside + pseudocount) / (outside + pseudocount)))


def _welch_fdr(x: Matrix, inside_n: np.ndarray) -> np.ndarray:
    """Compute adjusted p-values (Benjamini-Hochberg) of Welch's test of log1p values, inside against outside.

    They are 1 for constant genes.
    """
    moments: list[np.ndarray] = []
    for rows in (inside_n, ~inside_n):
        part = sparse.csr_matrix(x[rows]).astype(np.float64)
        part.data = np.log1p(part.data)
        n = part.shape[0]
        mean = np.asarray(part.mean(0)).reshape(-1)
        square = np.asarray(part.multiply(part).mean(0)).reshape(-1)
        moments += [mean, np.sqrt(np.maximum(square - mean**2, 0.0) * n / (n - 1)), np.array(n)]
    with np.errstate(divide="ignore", invalid="ignore"):
        p = stats.ttest_ind_from_stats(*moments, equal_var=False).pvalue
    return np.asarray(stats.false_discovery_control(np.nan_to_num(p, nan=1.0)))


def _pair(x: Matrix, y: Matrix) -> tuple[Matrix, Matrix]:
    for z in (x, y):
        if hasattr(z, "obs_names"):
            msg = "Arrays are expected, cells x genes; found an AnnData. Pass its counts, adata.X."
            raise TypeError(msg)
    x, y = (sparse.csr_matrix(z) if sparse.issparse(z) else np.asarray(z) for z in (x, y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        msg = f"Two samples of cells with the same columns are expected; found shapes {x.shape} and {y.shape}."
        raise ValueError(msg)
    if not (x.shape[0] and y.shape[0]):
        msg = f"One of the samples has no cells (shapes {x.shape} and {y.shape})."
        raise ValueError(msg)
    if not all(np.isfinite(z.data if sparse.issparse(z) else z).all() for z in (x, y)):
        msg = "The samples contain NaN or infinite values; finite numbers are expected."
        raise ValueError(msg)
    return x, y


def _dense_pair(x: Matrix, y: Matrix) -> tuple[np.ndarray, np.ndarray]:
    x, y = _pair(x, y)
    return _dense(x), _dense(y)


def _dense(x: Matrix) -> np.ndarray:
    return np.asarray(x.toarray() if isinstance(x, sparse.csr_matrix) else x, dtype=np.float64)
