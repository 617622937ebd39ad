"""Fits and analyses have the same bits with any number of threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

import vxpress as vx
from vxpress.core import threads
from vxpress.core.training import Training

pytestmark = pytest.mark.usefixtures("compiled")

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


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of threads at the start of each training, next to other busy programs."""
    seen: list[int] = []
    run = Training.run

    def spy(training: Training, *args: Any) -> Any:
        seen.append(threads.number())
        return run(training, *args)

    monkeypatch.setattr(Training, "run", spy)
    monkeypatch.setattr(threads.load, "free", lambda: 1)
    return seen


QUICK: dict[str, Any] = {"max_epochs": 1, "n_latent": 2, "n_hidden": 8, "denoised": False, "progress": False}


def test_the_argument_decides_then_the_environment(
    adata: ad.AnnData, numbers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    vx.tl.fit_vae(adata.copy(), **QUICK)
    monkeypatch.setenv(threads.VARIABLE, "5")
    vx.tl.fit_vae(adata.copy(), **QUICK)
    vx.tl.fit_vae(adata.copy(), **QUICK, n_threads=np.int64(3))
    vx.tl.fit_vae(adata.copy(), **QUICK, n_threads=10_000)
    assert numbers == [1, 5, 3, threads.MOST]
    assert torch.get_num_threads() == 2


def test_the_number_is_not_part_of_a_fit(adata: ad.AnnData, tmp_path: Path) -> None:
    one, two = adata.copy(), adata.copy()
    vx.tl.fit_vae(one, **QUICK, n_threads=1, checkpoint_dir=tmp_path)
    # a fit continues with another number
    vx.tl.fit_vae(two, **QUICK, n_threads=2, checkpoint_dir=tmp_path, resume=True)
    assert not [name for name in one.uns["vae"]["params"] if "thread" in name]
    assert one.uns["vae"]["params"].keys() == two.uns["vae"]["params"].keys()
    np.testing.assert_array_equal(one.obsm["X_vae"], two.obsm["X_vae"])


@pytest.mark.parametrize("n_threads", [0, -2, 1.5, "2", True])
def test_a_number_that_cannot_be_is_an_error(adata: ad.AnnData, n_threads: Any) -> None:
    with pytest.raises(ValueError, match=r"n_threads=.* was given; a whole number of at least 1 is expected"):
        vx.tl.fit_vae(adata, **QUICK, n_threads=n_threads)
    assert "X_vae" not in adata.obsm


@pytest.mark.parametrize("call", [vx.tl.fit_vae, vx.tl.encode, vx.tl.denoise, vx.pp.library_size])
def test_an_environment_that_cannot_be_is_an_error_of_every_call(
    adata: ad.AnnData, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(threads.VARIABLE, "many")
    with pytest.raises(ValueError, match=f"{threads.VARIABLE} is 'many'; a whole number of at least 1 is expected"):
        call(adata)
