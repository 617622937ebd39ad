"""Files of every stored format are read, and give the values that were computed when they were made.

``data/fit-1.h5ad`` was made by release 0.1.0, ``data/fit-2.h5ad`` and ``data/fit-2.safetensors`` by the first version
that writes this format, each with ``PYTHONPATH=src python tests/bridge/fits/data/make.py FOLDER``, run in a checkout of that
version. The fits have what is easily forgotten: a latent library, several covariates, a dispersion per batch or label,
genes outside the model, and learned priors.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import vxpress as vx

DATA = Path(__file__).parent / "data"
FORMATS = ("1", "2")
MOST_BYTES = 200_000


def _stored(number: str) -> ad.AnnData:
    return ad.read_h5ad(DATA / f"fit-{number}.h5ad")


def _cells(stored: ad.AnnData) -> ad.AnnData:
    """Return the cells as they were before the fit."""
    obs = stored.obs[["batch", "donor", "age", "group", "library_size"]]
    return ad.AnnData(stored.X.copy(), obs=obs.copy(), var=stored.var[[]].copy())


def _check(computed: np.ndarray, stored: np.ndarray) -> None:
    np.testing.assert_allclose(computed, stored, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", FORMATS)
@pytest.mark.parametrize("where", ["path", "memory"])
def test_a_stored_fit_encodes_as_the_version_that_made_it(number: str, where: str) -> None:
    stored = _stored(number)
    assert stored.uns["vae"]["format"] == f"vxpress-fit-{number}"
    cells = _cells(stored)
    vx.tl.encode(cells, DATA / f"fit-{number}.h5ad" if where == "path" else stored)
    for name in ("X_vae", "X_vae_var"):
        _check(cells.obsm[name], stored.obsm[name])
    _check(cells.obs["vae_library"], stored.obs["vae_library"])


@pytest.mark.parametrize("number", FORMATS)
def test_a_stored_fit_denoises_and_scores_as_the_version_that_made_it(number: str) -> None:
    stored = _stored(number)
    used = stored.copy()
    vx.tl.denoise(used, key_added="again")
    _check(used.layers["again"], stored.layers["vae_normalized"])
    vx.tl.log_likelihood(used, n_samples=10, key_added="again")
    _check(used.obs["again_log_likelihood"], stored.obs["vae_log_likelihood"])


def test_a_model_file_gives_the_values_of_the_version_that_made_it() -> None:
    stored, path = _stored("2"), DATA / "fit-2.safetensors"
    cells = _cells(stored)
    vx.tl.encode(cells, path)
    _check(cells.obsm["X_vae"], stored.obsm["model"])
    _check(cells.obsm["X_vae_var"], stored.obsm["model_var"])
    vx.tl.denoise(cells, path)
    _check(cells.layers["vae_normalized"], stored.layers["model_normalized"])
    vx.tl.log_likelihood(cells, path, n_samples=10)
    _check(cells.obs["vae_log_likelihood"], stored.obs["model_log_likelihood"])
    assert vx.load_model(path).var_names.equals(stored.var_names)


@pytest.mark.parametrize("number", FORMATS)
def test_a_stored_fit_can_be_written_and_continued(number: str, tmp_path: Path) -> None:
    stored = _stored(number)
    vx.save_model(stored, tmp_path / "model.safetensors")
    new = vx.tl.generate(stored, 5, model=tmp_path / "model.safetensors")
    assert new.n_obs == 5
    vx.tl.diagnose(stored, n_cells=5)
    assert str(stored.uns["vae"]["diagnostics"]["verdict"])


def test_the_files_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in DATA.iterdir() if path.is_file()}
    assert max(sizes.values()) < MOST_BYTES, sizes
