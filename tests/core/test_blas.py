from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp
from threadpoolctl import threadpool_info, threadpool_limits

from vxpress.core.aggregate import log_aggregate
from vxpress.core.blas import one_blas_thread


def _numbers() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_the_number_returns_when_the_last_block_ends() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    with threadpool_limits(3, user_api="blas"):
        before = _numbers()
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        assert _numbers() == {1}
        # not in the order of a stack, as in two threads
        first.__exit__(None, None, None)
        assert _numbers() == {1}
        second.__exit__(None, None, None)
        assert _numbers() == before
        with pytest.raises(KeyError), one_blas_thread():
            raise KeyError
        assert _numbers() == before


def test_the_aggregate_is_the_mean_of_densities_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    mean_nd, var_nd = rng.normal(size=(40, 3)), rng.uniform(0.1, 2.0, (40, 3))
    # far away, where densities underflow
    z_md = np.concatenate((rng.normal(size=(7, 3)), np.full((1, 3), 200.0)))
    log_mnd = -0.5 * ((z_md[:, None] - mean_nd) ** 2 / var_nd + np.log(2 * np.pi * var_nd))
    np.testing.assert_allclose(
        log_aggregate(z_md, mean_nd, var_nd), logsumexp(log_mnd.sum(-1), axis=1) - np.log(40), rtol=1e-10
    )
