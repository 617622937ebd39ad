"""A class from outside is used through the public functions like one of the package: what holds for each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

import vxpress as vx
from vxpress import extend

from ._outside import EXTENSIONS, QUICK, Options, register


@pytest.fixture(scope="module")
def others() -> ad.AnnData:
    return vx.datasets.simulate(80, 60, n_groups=3, n_batches=2, library_mean=300, rng=2)


def _as_recorded(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: _as_recorded(value) for name, value in found.items()}
    return found.tolist() if isinstance(found, np.ndarray) else found


def test_a_fit_records_its_name_and_options(fit: ad.AnnData, kind: str) -> None:
    for part, expected in EXTENSIONS[kind].recorded.items():
        params = _as_recorded(fit.uns["vae"]["params"][part])
        assert {name: params[name] for name in expected} == expected
    history = fit.uns["vae"]["history"]
    assert all(np.isfinite(values).all() for values in history.values())
    assert max(history["elbo_validation"][1:]) > history["elbo_validation"][0]
    assert fit.layers["vae_normalized"].shape == fit.shape
    assert fit.uns["vae"]["diagnostics"]["verdict"]


def test_a_fit_is_stored_and_used_again(fit: ad.AnnData, adata: ad.AnnData, tmp_path: Path) -> None:
    fit.write_h5ad(tmp_path / "fit.h5ad")
    again = ad.read_h5ad(tmp_path / "fit.h5ad")
    vx.save_model(again, tmp_path / "fit.safetensors")
    model = vx.load_model(tmp_path / "fit.safetensors")
    query = adata[:40].copy()
    vx.tl.encode(query, model)
    np.testing.assert_allclose(query.obsm["X_vae"], fit.obsm["X_vae"][:40], rtol=1e-4, atol=1e-5)
    vx.tl.denoise(again, key_added="again")
    np.testing.assert_allclose(again.layers["again"], fit.layers["vae_normalized"], rtol=1e-4, atol=1e-4)


def test_all_questions_are_answered(fit: ad.AnnData, others: ad.AnnData) -> None:
    vx.tl.log_likelihood(fit, n_samples=5)
    assert np.isfinite(fit.obs["vae_log_likelihood"]).all()
    vx.tl.diagnose(fit, n_cells=8)
    vx.tl.sample(fit, key_added="drawn")
    new = vx.tl.generate(fit, 20)
    for drawn in (fit.layers["drawn"], new.X):
        values = drawn.toarray() if hasattr(drawn, "toarray") else np.asarray(drawn)
        assert (values >= 0).all()
        assert 0 < values.mean() < 100
    vx.tl.predictive_check(fit)
    vx.tl.outliers(others[:20].copy(), fit, calibration=others[20:].copy())
    vx.tl.rank_genes_groups(fit, "group")
    path = vx.tl.interpolate(fit, "group_0", "group_1", groupby="group", n_steps=3)
    assert np.isfinite(path.X).all()


def test_new_batches_and_missing_genes_are_encoded(fit: ad.AnnData, adata: ad.AnnData) -> None:
    query = adata[:50, 5:].copy()
    query.obs["batch"] = "new"
    vx.tl.encode(query, fit, fine_tune=2)
    assert np.isfinite(query.obsm["X_vae"]).all()


def test_all_together_are_cured_and_recorded(adata: ad.AnnData) -> None:
    settings = {"likelihood": "geometric", "prior": "laplace", "objective": "renyi"}
    options = Options(decoder="powers", blocks=("activity",), source="counting")
    vx.tl.fit_vae(adata, "batch", **QUICK, **settings, options=options, cure=True)
    assert np.isfinite(adata.obsm["X_vae"]).all()
    model = adata.uns["vae"]["params"]["model"]
    assert (model["likelihood"], model["prior"]["name"], model["decoder"]) == ("geometric", "laplace", "powers")
    vx.tl.encode(adata, key_added="again")
    np.testing.assert_allclose(adata.obsm["again"], adata.obsm["X_vae"], rtol=1e-4, atol=1e-5)


def test_a_fit_whose_class_is_not_registered_names_it(fit: ad.AnnData, kind: str, tmp_path: Path) -> None:
    if kind == "source":
        pytest.skip("a stored fit does not need its source")
    extension = EXTENSIONS[kind]
    vx.save_model(fit, tmp_path / "fit.safetensors")
    extend.unregister(kind, extension.name)
    try:
        message = rf"uses the [a-z ]*{kind} '{extension.name}', which is not registered.*vx\.extend\.register_{kind}\("
        for use in (
            lambda: vx.tl.encode(fit, key_added="again"),
            lambda: vx.tl.denoise(fit, key_added="again"),
            lambda: vx.load_model(tmp_path / "fit.safetensors"),
        ):
            with pytest.raises(ValueError, match=message) as caught:
                use()
            assert "damaged" not in str(caught.value)
    finally:
        register(kind)
    vx.load_model(tmp_path / "fit.safetensors")


def test_an_unknown_name_lists_the_registered_ones(adata: ad.AnnData, kind: str) -> None:
    settings: dict[str, Any] = {kind: "x"}
    if kind not in {"likelihood", "prior", "objective"}:
        settings = {"options": Options(**{"blocks": ("x",)} if kind == "block" else settings)}
    with pytest.raises(ValueError, match=rf"'x' is not known; choose one of .*'{EXTENSIONS[kind].name}'"):
        vx.tl.fit_vae(adata, **settings)
