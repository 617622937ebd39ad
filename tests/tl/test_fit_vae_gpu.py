"""Whole fits on a GPU: every part of a call meets tensors of that device."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

import vxpress as vx
from vxpress.core.data import Batch
from vxpress.core.training import Training

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


def test_a_fit_on_a_gpu_continues_from_a_checkpoint(
    adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"max_epochs": 8, "n_hidden": 16, "n_latent": 4, "batch_size": 32, "device": "cuda"}
    whole = vx.tl.fit_vae(adata, copy=True, **settings)
    step = Training.step

    def stopped(training: Training, batch: Batch) -> None:
        step(training, batch)
        # within an epoch, when the step is a graph
        if training.outcome.n_steps == 17:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", stopped)
        with pytest.raises(vx.tl.Stopped):
            vx.tl.fit_vae(adata, **settings, checkpoint_dir=tmp_path)
    continued = vx.tl.fit_vae(adata, copy=True, **settings, checkpoint_dir=tmp_path, resume=True)
    assert whole is not None
    assert continued is not None
    expected, found = (fit.uns["vae"]["history"]["elbo_validation"] for fit in (whole, continued))
    np.testing.assert_allclose(found, expected, rtol=0.01)
