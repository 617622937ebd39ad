"""Whole fits on a GPU: every part of a call meets tensors of that device."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

import vxpress as vx

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "batches": {"batch_key": "batch"},
    "optional covariate": {"batch_key": "batch", "optional_covariate_keys": ["donor"]},
    "integration": {"batch_key": "batch", "preset": "integration"},
    "scvi": {"batch_key": "batch", "preset": "scvi"},
    "latent library": {"batch_key": "batch", "library": "latent"},
    "several fits": {"n_fits": 2},
    "flow prior": {"prior": "flow"},
    "labels": {"labels_key": "group", "unlabeled_category": "unknown"},
    "perturbations": {"perturbation_key": "donor", "control": "d1"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_fit_on_a_gpu_is_as_good_as_on_a_cpu(adata: ad.AnnData, name: str) -> None:
    settings = {"max_epochs": 8, "n_hidden": 16, "n_latent": 4} | SETTINGS[name]
    bound = {}
    for device in ("cpu", "cuda"):
        fitted = vx.tl.fit_vae(adata, device=device, copy=True, **settings)
        assert fitted is not None
        assert np.isfinite(fitted.obsm["X_vae"]).all()
        bound[device] = float(fitted.uns["vae"]["history"]["elbo_validation"][-1])
    # other noise; 16 held-out cells
    assert bound["cuda"] == pytest.approx(bound["cpu"], rel=0.05)


def test_a_fit_of_a_gpu_is_used_on_a_cpu(adata: ad.AnnData) -> None:
    query = adata[:20].copy()
    vx.tl.fit_vae(adata, "batch", device="cuda", max_epochs=4)
    vx.tl.encode(query, adata)
    np.testing.assert_allclose(query.obsm["X_vae"], adata.obsm["X_vae"][:20], rtol=1e-3, atol=1e-3)
