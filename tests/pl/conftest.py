"""A fit with used dimensions and a collapsed one, on small simulated counts."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import pytest
from anndata import AnnData

mpl.use("Agg")

import matplotlib.pyplot as plt

import vxpress as vx

N_OBS, N_LATENT = 200, 3


@pytest.fixture(autouse=True)
def _no_figure_left() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def _used() -> AnnData:
    adata = vx.datasets.simulate(N_OBS, 80, library_mean=3000, de_log_fold_change=2.0)
    vx.tl.fit_vae(adata, n_latent=N_LATENT, n_hidden=32, max_epochs=40, denoised=False)
    assert adata.uns["vae"]["diagnostics"]["active"].all()
    return adata


@pytest.fixture(scope="session")
def _collapsed() -> AnnData:
    adata = vx.datasets.simulate(N_OBS, 80)
    vx.tl.fit_vae(adata, n_latent=N_LATENT, beta=100.0, max_epochs=30, denoised=False)
    assert not adata.uns["vae"]["diagnostics"]["active"].any()
    return adata


@pytest.fixture
def used(_used: AnnData) -> AnnData:
    return _used.copy()


@pytest.fixture
def collapsed(_collapsed: AnnData) -> AnnData:
    return _collapsed.copy()
