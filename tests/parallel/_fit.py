"""What each of several processes runs: fits through the public function, whose results are written for the tests."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

import vxpress as vx
from vxpress.core.data import Batch
from vxpress.core.training import Training

RANK = int(os.environ.get("RANK", "0"))
SMALL: dict[str, Any] = {"n_latent": 3, "n_hidden": 16, "max_epochs": 3, "batch_size": 64}


def cells() -> ad.AnnData:
    """160 cells x 60 genes, 40 of them modelled, in two batches."""
    adata = vx.datasets.simulate(160, 60, n_groups=3, n_batches=2, library_mean=300, rng=1)
    adata.var["highly_variable"] = np.arange(adata.n_vars) % 3 != 0
    adata.obs["label"] = np.where(np.arange(adata.n_obs) % 4 == 0, "Unknown", adata.obs["group"].astype(str))
    return adata


def layers(adata: ad.AnnData) -> dict[str, Any]:
    """Return the layers; newer versions of anndata count X among them, as None."""
    return {name: value for name, value in adata.layers.items() if name is not None}


def _fit(**settings: Any) -> ad.AnnData:
    adata = cells()
    vx.tl.fit_vae(adata, "batch", **SMALL | settings)
    return adata


def _error(call: Callable[[], object]) -> str:
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


FITS: dict[str, dict[str, Any]] = {
    "default": {},
    "new seeds": {"rng": None, "split_rng": None},
    "several": {"n_fits": 2, "optional_covariate_keys": ["batch"], "batch_key": None},
    "cured": {"cure": True, "max_epochs": 1, "beta": 4.0},
    "labels": {"labels_key": "label", "unlabeled_category": "Unknown"},
    "on disk": {"options": vx.tl.FitOptions(source="mapped")},
    "nothing held out": {"validation_fraction": 0},
}


def main(folder: Path) -> None:
    """Fit with several settings, and let the second process sleep in the middle of a last training."""
    # of the folder of this script
    from _core import with_accident  # type: ignore[import-not-found]

    results: dict[str, Any] = {}
    for name, settings in FITS.items():
        adata = cells()
        vx.tl.fit_vae(adata, **{"batch_key": "batch"} | SMALL | settings)
        results[name] = {
            "obsm": dict(adata.obsm), "layers": layers(adata), "split": adata.obs["vae_split"].astype(str).to_numpy(),
            "uns": adata.uns["vae"],
        }  # fmt: skip
    results["stopped"], continued = _stopped_and_continued(folder / "checkpoints")
    results["continued"] = {"obsm": dict(continued.obsm), "layers": layers(continued), "uns": continued.uns["vae"]}
    results["small minibatches"] = _error(lambda: _fit(batch_size=3))
    results["other cells"] = _error(_fit_other_cells)
    (folder / f"rank{RANK}.pkl").write_bytes(pickle.dumps(results))
    with_accident(folder, lambda: time.sleep(600))


def _stopped_and_continued(folder: Path) -> tuple[int, ad.AnnData]:
    """Stop the second process within a fit, and continue the fit; return the status of the stop, and the result."""
    step, n_steps = Training.step, 0

    def asked(training: Training, batch: Batch) -> None:
        nonlocal n_steps
        step(training, batch)
        n_steps += 1
        if RANK == 1 and n_steps == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    status = 0
    setattr(Training, "step", asked)  # noqa: B010 - another signature
    try:
        _fit(checkpoint_dir=folder)
    except vx.tl.Stopped as stopped:
        status = stopped.status
    setattr(Training, "step", step)  # noqa: B010
    return status, _fit(checkpoint_dir=folder, resume=True)


def _fit_other_cells() -> None:
    """Fit to other cells in the second process."""
    adata = cells()
    if RANK == 1:
        adata = adata[::-1].copy()
    vx.tl.fit_vae(adata, "batch", **SMALL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
