"""Small simulated data sets as objects of the core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
import torch
from scipy import sparse

from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts


def _cells(n: int = 120, n_genes: int = 20, *, signal: float = 1.5, theta: float = 5.0, n_batches: int = 1) -> Cells:
    """Negative binomial counts whose log composition is linear in two latent dimensions."""
    rng = np.random.default_rng(7)
    z, slope = rng.normal(size=(n, 2)), rng.normal(size=(2, n_genes)) * signal
    rho = np.exp(z @ slope + rng.normal(size=n_genes))
    rho /= rho.sum(1, keepdims=True)
    library = rng.lognormal(np.log(400), 0.3, size=(n, 1))
    x = rng.poisson(rng.gamma(theta, library * rho / theta)).astype(np.float32)
    codes = torch.arange(n)[:, None] % n_batches
    log_library = torch.tensor(np.log(library), dtype=torch.float32)
    return Cells(Counts.from_scipy(sparse.csr_matrix(x)), log_library, Covariates(codes, torch.zeros(n, 0)))


@pytest.fixture
def make_cells() -> Callable[..., Cells]:
    """Return the function that simulates cells."""
    return _cells


@contextmanager
def _global_noise_untouched() -> Iterator[None]:
    before_torch, before_numpy = torch.get_rng_state(), np.random.get_state(legacy=True)  # noqa: NPY002 - the state under guard
    yield
    assert torch.equal(before_torch, torch.get_rng_state())
    after_numpy = np.random.get_state(legacy=True)  # noqa: NPY002
    np.testing.assert_equal(after_numpy, before_numpy)


@pytest.fixture
def global_noise_untouched() -> Callable[[], AbstractContextManager[None]]:
    """Return a context that fails if its block uses the global random state of torch or numpy."""
    return _global_noise_untouched
