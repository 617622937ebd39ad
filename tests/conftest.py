"""Data that many tests share; each test gets its own copy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# on matrices this small threads only wait for each other; read once, when numpy and torch are first imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.pop("VXPRESS_NUM_THREADS", None)

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import torch

import vxpress as vx
from vxpress.core import rule
from vxpress.core.training import Training


@pytest.fixture(autouse=True)
def _quiet_and_single_threaded() -> None:
    sc.settings.verbosity = 1
    # numba raises torch's thread count as it goes; on matrices this small threads only wait for each other
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def compiled() -> Iterator[None]:
    """Let calls for small data use the compiled loops, as those for large data do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rule, "SMALL", 0)
        yield


@pytest.fixture(scope="session")
def _simulated() -> ad.AnnData:
    adata = vx.datasets.simulate(160, 60, n_groups=3, n_batches=2, library_mean=300, rng=1)
    adata.obs["age"] = np.random.default_rng(0).normal(50, 10, adata.n_obs)
    adata.obs["donor"] = np.random.default_rng(1).choice(["d1", "d2", "d3"], adata.n_obs)
    return adata


@pytest.fixture
def adata(_simulated: ad.AnnData) -> ad.AnnData:
    """160 cells x 60 genes in two batches and three groups."""
    return _simulated.copy()


@pytest.fixture(scope="session")
def _fitted(_simulated: ad.AnnData) -> ad.AnnData:
    adata = _simulated.copy()
    adata.var["highly_variable"] = np.arange(adata.n_vars) % 3 != 0
    vx.tl.fit_vae(
        adata, "batch", continuous_covariate_keys=["age"], n_latent=4, n_hidden=16, max_epochs=4, batch_size=64
    )
    return adata


@pytest.fixture
def fitted(_fitted: ad.AnnData) -> ad.AnnData:
    """The same cells with a fit of 40 of the 60 genes, with batch and age, under the default names."""
    return _fitted.copy()


@pytest.fixture
def quick() -> dict:
    """Arguments of a fit that takes a blink."""
    return {"n_latent": 3, "n_hidden": 8, "max_epochs": 2, "batch_size": 64}


@pytest.fixture
def interrupt_look(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list]:
    """Called with n, lets the n-th look at the held-out cells be interrupted; returns the list of looks."""

    def install(n: int) -> list:
        calls: list = []
        validate = Training.validate

        def interrupted(training: Training) -> object:
            calls.append(training)
            if len(calls) == n:
                raise KeyboardInterrupt
            return validate(training)

        monkeypatch.setattr(Training, "validate", interrupted)
        return calls

    return install


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What scanpy's logger was told at level "warning" while the test ran."""
    messages: list[str] = []
    monkeypatch.setattr("scanpy.logging.warning", lambda message, **_: messages.append(message))
    return messages


@pytest.fixture
def real_data() -> Callable[[str], ad.AnnData]:
    """Reads a real data set kept outside the project, or skips."""

    def read(name: str) -> ad.AnnData:
        folder = Path(os.environ.get("VXPRESS_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
        path = folder / f"{name}.h5ad"
        if not path.exists():
            pytest.skip(f"{name}.h5ad is not in $VXPRESS_DATA, nor in ../shared/data")
        return ad.read_h5ad(path)

    return read
