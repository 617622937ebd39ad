"""Fits and analyses have the same bits with any number of threads."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

import vxpress as vx

# minibatches of several groups, weights of several runs, and arrays that torch would divide among threads
FIT: dict[str, Any] = {"n_latent": 12, "n_hidden": 64, "max_epochs": 1, "batch_size": 130, "progress": False}
Options = vx.tl.FitOptions
SETTINGS: dict[str, dict[str, Any]] = {
    "nb": {},
    "zinb, latent library": {"likelihood": "zinb", "library": "latent"},
    "vamp, 2 layers": {"prior": "vamp", "n_layers": 2},
    "embedding, gene-batch": {"dispersion": "gene-batch", "options": Options(covariate_code="embedding")},
    "batch norm, free bits": {"free_bits": 0.1, "options": Options(norm="batch")},
    "iwae": {"objective": "iwae", "likelihood": "zinb"},
    "poisson": {"likelihood": "poisson"},
    "gene-cell": {"dispersion": "gene-cell"},
}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    adata = vx.datasets.simulate(320, 290, n_batches=2, library_mean=500, rng=3)
    # the others are read out
    adata.var["highly_variable"] = np.arange(adata.n_vars) < 270
    return adata


def _results(cells: ad.AnnData, n_threads: int, **settings: Any) -> dict[str, np.ndarray]:
    """Fit and ask with a number of threads, whatever the machine has; return all arrays that are written."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VXPRESS_NUM_THREADS", str(n_threads))
            adata = cells.copy()
            vx.tl.fit_vae(adata, "batch", **FIT, **settings)
            fitted = adata.obsm["X_vae"].copy()
            vx.tl.encode(adata)
            vx.tl.denoise(adata)
            vx.tl.log_likelihood(adata, n_samples=5)
            vx.tl.diagnose(adata)
            assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    found = {"fitted": fitted, **{f"obsm {key}": np.asarray(value) for key, value in adata.obsm.items()}}
    found |= {f"layer {key}": np.asarray(value) for key, value in adata.layers.items() if key == "vae_normalized"}
    found |= {f"obs {key}": adata.obs[key].to_numpy() for key in adata.obs if adata.obs[key].dtype.kind == "f"}
    record = adata.uns["vae"]
    return found | {f"weight {key}": np.asarray(value) for key, value in record["weights"].items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_bits_do_not_depend_on_the_number_of_threads(cells: ad.AnnData, name: str) -> None:
    one = _results(cells, 1, **SETTINGS[name])
    assert {"obsm X_vae", "layer vae_normalized"} <= one.keys()
    for n_threads in (2, 4):
        other = _results(cells, n_threads, **SETTINGS[name])
        assert other.keys() == one.keys()
        different = [key for key, value in one.items() if value.tobytes() != other[key].tobytes()]
        assert not different, f"{n_threads} threads"
