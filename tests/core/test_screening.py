from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from vxpress.core.data import Counts
from vxpress.core.screening import MIN_CELLS, differing

N_CELLS, N_GENES = 240, 60


@pytest.fixture(scope="module")
def cells() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return counts without any batch effect, of three types; size factors; and the types."""
    rng = np.random.default_rng(0)
    type_n = rng.integers(0, 3, N_CELLS)
    rate_ng = rng.gamma(1.0, 1.0, (3, N_GENES))[type_n] * rng.lognormal(0.0, 0.5, (N_CELLS, 1))
    return rng.poisson(rate_ng), rate_ng.sum(1), type_n


def _differing(x_ng: np.ndarray, library_n: np.ndarray, *code_n: np.ndarray) -> list[bool]:
    counts = Counts.from_scipy(sparse.csr_matrix(x_ng.astype(np.float32)))
    return [bool(found) for found in differing(counts, library_n, np.stack(code_n, axis=1))]


@pytest.mark.parametrize("sizes", [(0.5, 0.5), (0.9, 0.1), (0.025,) * 40])
def test_random_labels_pass_in_one_of_twenty_draws(
    cells: tuple[np.ndarray, np.ndarray, np.ndarray], sizes: tuple[float, ...]
) -> None:
    x_ng, library_n, _ = cells
    rng = np.random.default_rng(1)
    drawn = [rng.choice(len(sizes), N_CELLS, p=sizes) for _ in range(200)]
    # the probability that more than 22 of 200 pass at a rate of 0.05 is 1e-4
    assert sum(_differing(x_ng, library_n, *drawn)) <= 22


def test_types_and_batches_with_an_effect_are_found_among_random_labels(
    cells: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    x_ng, _, type_n = cells
    rng = np.random.default_rng(2)
    batch_n = rng.integers(0, 4, N_CELLS)
    shifted_ng = x_ng + rng.poisson(0.5 * rng.gamma(0.5, 1.0, (4, N_GENES))[batch_n])
    random_n = rng.integers(0, 4, N_CELLS)
    assert _differing(shifted_ng, shifted_ng.sum(1), random_n, batch_n, type_n) == [False, True, True]


def test_a_batch_that_differs_in_depth_alone_does_not_differ(
    cells: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    rng = np.random.default_rng(3)
    batch_n = rng.integers(0, 2, N_CELLS)
    depth_n = np.where(batch_n == 0, 3e3, 6e3)
    x_ng = rng.poisson(np.outer(depth_n, np.full(N_GENES, 1 / N_GENES)))
    assert _differing(x_ng, depth_n, batch_n) == [False]


def test_a_single_category_does_not_differ_and_few_cells_are_not_tested(
    cells: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    x_ng, library_n, _ = cells
    one_n, random_n = np.zeros(N_CELLS, dtype=int), np.random.default_rng(4).integers(0, 5, N_CELLS)
    assert _differing(x_ng, library_n, one_n, random_n) == [False, False]
    few = slice(MIN_CELLS - 1)
    assert _differing(x_ng[few], library_n[few], one_n[few], random_n[few]) == [False, True]


def test_genes_without_counts_or_variance_are_no_obstacle(cells: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, _, type_n = cells
    x_ng = np.zeros((N_CELLS, 3), dtype=int)
    x_ng[:, 1] = 7
    assert _differing(x_ng, np.full(N_CELLS, 7.0), type_n) == [False]
