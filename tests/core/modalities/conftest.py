"""Simulated cells with RNA and proteins, some of which lack either."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import sparse

from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts, Joined

N, GENES, PROTEINS = 150, 20, 6


def _poisson(z: np.ndarray, n_features: int, depth: float, rng: np.random.Generator) -> np.ndarray:
    rho = np.exp(z @ rng.normal(size=(z.shape[1], n_features)) + rng.normal(size=n_features))
    return np.asarray(rng.poisson(depth * rho / rho.sum(1, keepdims=True)), dtype=np.float32)


def _cells(x: np.ndarray) -> Cells:
    library = np.maximum(x.sum(1, keepdims=True), 1.0)
    covariates = Covariates(torch.zeros(len(x), 0, dtype=torch.int64), torch.zeros(len(x), 0))
    return Cells(Counts.from_scipy(sparse.csr_matrix(x)), torch.from_numpy(np.log(library)).float(), covariates)


@pytest.fixture(scope="module")
def make_joined() -> Callable[..., Joined]:
    """Return a function that simulates cells; with ``lacking``, a third lacks RNA, and another third proteins."""

    def make(*, lacking: bool = False, n: int = N) -> Joined:
        rng = np.random.default_rng(3)
        z = rng.normal(size=(n, 2))
        rna, protein = _poisson(z, GENES, 300, rng), _poisson(z, PROTEINS, 200, rng)
        if not lacking:
            return Joined(_cells(rna), {"protein": _cells(protein)})
        of_rna, of_protein = (torch.arange(n) % 3 != third for third in (0, 1))
        rna, protein = rna * of_rna.numpy()[:, None], protein * of_protein.numpy()[:, None]
        return Joined(_cells(rna), {"protein": _cells(protein)}, {"rna": of_rna, "protein": of_protein})

    return make
