"""Make the stored fits of this folder with the version of the package on the path.

    PYTHONPATH=/path/of/that/version/src python tests/bridge/fits/data/make.py FOLDER

It writes ``fit-N.h5ad`` and ``fit-N.safetensors`` for the format N of that version. The cells in ``fit-N.h5ad`` hold
what that version computed: its own posterior and denoised expression under the name ``vae``, those of the model file
under ``model``, and log likelihoods of both. A file here is never made again by a later version.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

import vxpress as vx

SMALL = {"n_latent": 3, "n_hidden": 8, "max_epochs": 8, "batch_size": 32, "progress": False, "denoised": False}


def main(folder: Path) -> None:
    """Fit, evaluate and write."""
    adata = vx.datasets.simulate(60, 30, n_groups=3, n_batches=2, library_mean=400, rng=4)
    for place in (adata.uns, adata.obsm, adata.varm):
        place.clear()
    adata.var, rng = adata.var[[]].copy(), np.random.default_rng(0)
    adata.obs["donor"] = pd.Categorical(rng.choice(["p", "q"], adata.n_obs))
    adata.obs["age"] = rng.normal(50.0, 10.0, adata.n_obs)
    adata.var["highly_variable"] = np.arange(adata.n_vars) % 5 != 0
    vx.tl.fit_vae(
        adata,
        "batch",
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["age"],
        library="latent",
        likelihood="zinb",
        dispersion="gene-batch",
        prior="vamp",
        options=vx.tl.FitOptions(encode_covariates=True, prior_components=5),
        **SMALL,
    )
    other = adata.copy()
    vx.tl.fit_vae(
        other,
        mask_var=None,
        labels_key="group",
        dispersion="gene-label",
        prior="flow",
        options=vx.tl.FitOptions(decoder="skip"),
        key_added="model",
        **SMALL,
    )
    number = str(adata.uns["vae"]["format"]).rsplit("-", 1)[-1]
    vx.save_model(other, folder / f"fit-{number}.safetensors", key="model")
    vx.tl.denoise(other, key="model")
    for key in ("model", "model_var"):
        adata.obsm[key] = other.obsm[key]
    adata.obs["model_library"] = other.obs["model_library"]
    adata.layers["model_normalized"] = other.layers["model_normalized"]
    vx.tl.log_likelihood(other, key="model", n_samples=10)
    adata.obs["model_log_likelihood"] = other.obs["model_log_likelihood"]
    vx.tl.denoise(adata)
    before = adata.copy()
    vx.tl.log_likelihood(before, n_samples=10)
    adata.obs["vae_log_likelihood"] = before.obs["vae_log_likelihood"]
    adata.write_h5ad(folder / f"fit-{number}.h5ad")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
