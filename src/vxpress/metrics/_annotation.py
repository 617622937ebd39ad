"""Metrics of predicted labels."""

from __future__ import annotations

import numpy as np

from vxpress._checks import check_range
from vxpress._entry import entry


@entry
def expected_calibration_error(prob: np.ndarray, labels: np.ndarray, n_bins: int = 15) -> float:
    """Compute how far the confidence of predictions is from the share that is right.

    Cells are divided by the probability of their most probable label into bins of equal width. The result is the mean
    distance between mean confidence and share of right labels over bins, weighted by their cells (Naeini et al. 2015).

    Parameters
    ----------
    prob
        Probabilities of the labels, n_cells x n_labels; rows sum to 1.
    labels
        Position of the right label of each cell among the columns, (n_cells,); -1 if it is none of them.
    n_bins
        Number of bins; 15 as in Guo et al. (2017).

    Returns
    -------
    A number from 0, for calibrated predictions, to 1.

    Raises
    ------
    ValueError
        If there are no cells, or the shapes do not match.

    Examples
    --------
    Two predictions with confidence 0.5, of which one is right:

    >>> import numpy as np, vxpress as vx
    >>> vx.metrics.expected_calibration_error(np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([0, 1]))
    0.0
    """
    check_range("n_bins", n_bins, 1, 100_000, integer=True)
    prob_nc, code_n = np.asarray(prob, dtype=np.float64), np.asarray(labels)
    if prob_nc.ndim != 2 or code_n.shape != (len(prob_nc),) or not len(prob_nc) or code_n.dtype.kind not in "iu":
        msg = (
            f"prob has shape {prob_nc.shape} and labels shape {code_n.shape} and type {code_n.dtype}; probabilities of cells x labels, "
            "and a whole number for each cell, are expected."
        )
        raise ValueError(msg)
    confidence_n, right_n = prob_nc.max(1), prob_nc.argmax(1) == code_n
    bin_n = np.minimum((confidence_n * n_bins).astype(np.int64), n_bins - 1)
    sums = [np.bincount(bin_n, weights=part, minlength=n_bins) for part in (confidence_n, right_n)]
    return float(np.abs(sums[0] - sums[1]).sum() / len(prob_nc))
