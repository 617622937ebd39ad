"""Bad input: a clear error that names the remedy, and an unchanged AnnData."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

import vxpress as vx


def _fingerprint(adata: ad.AnnData) -> tuple:
    """Names and values of everything that a fit could change."""
    x = adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)
    return (
        adata.obs.to_csv(),
        adata.var.to_csv(),
        [(k, np.asarray(v).tobytes()) for k, v in adata.obsm.items()],
        repr(dict(adata.uns)),
        [(k, _bytes(adata.layers[k])) for k in adata.layers if k is not None],
        x.tobytes(),
    )


def _bytes(layer: Any) -> bytes:
    return layer.toarray().tobytes() if sparse.issparse(layer) else np.asarray(layer).tobytes()


def _set(value: float) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        x = adata.X.toarray().astype(np.float64)
        x[3, 4] = value
        adata.X = sparse.csr_matrix(x)

    return change


def _normalise(adata: ad.AnnData) -> None:
    adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray() / 7.0))


def _duplicate_names(adata: ad.AnnData) -> None:
    names = list(adata.var_names)
    names[1] = names[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.var_names = names


def _obs(name: str, row: int, value: object) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        column = adata.obs[name].astype(object)
        column.iloc[row] = value
        adata.obs[name] = column

    return change


def _take_key(slot: str, name: str) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        value = {"uns": "mine", "obsm": np.zeros((adata.n_obs, 2)), "layers": adata.X, "obs": 1}[slot]
        getattr(adata, slot)[name] = value

    return change


CASES: list[tuple[str, Callable[[ad.AnnData], object], dict, type[Exception], str]] = [
    ("log values", _normalise, {}, ValueError, "layer="),
    ("negative", _set(-2.0), {}, ValueError, "layer="),
    ("NaN", _set(np.nan), {}, ValueError, "NaN"),
    ("infinite", _set(np.inf), {}, ValueError, "infinite"),
    ("above 2^24", _set(2.0**24 + 2), {}, ValueError, "2\\^24"),
    ("missing layer", lambda a: None, {"layer": "raw"}, KeyError, "layer=None"),
    ("missing batch", lambda a: None, {"batch_key": "bath"}, KeyError, "found"),
    ("missing covariate", lambda a: None, {"continuous_covariate_keys": ["x"]}, KeyError, "found"),
    ("missing library", lambda a: None, {"library": "n_umis"}, KeyError, "found"),
    ("missing mask", lambda a: None, {"mask_var": "hvg"}, KeyError, "highly_variable_genes"),
    ("NaN batch", _obs("batch", 2, None), {"batch_key": "batch"}, ValueError, "fillna"),
    ("NaN number", _obs("age", 2, np.nan), {"continuous_covariate_keys": ["age"]}, ValueError, "notna"),
    ("duplicate names", _duplicate_names, {}, ValueError, "var_names_make_unique"),
    ("latent above genes", lambda a: None, {"n_latent": 61}, ValueError, "n_latent=60"),
    ("one gene", lambda a: None, {"mask_var": np.arange(60) == 0, "n_latent": 3}, ValueError, "n_latent=1"),
    ("no gene", lambda a: None, {"mask_var": np.zeros(60, dtype=bool)}, ValueError, "mask_var=None"),
    ("mask shape", lambda a: None, {"mask_var": np.ones(3, dtype=bool)}, ValueError, "60 booleans"),
    ("unknown device", lambda a: None, {"device": "quantum"}, ValueError, "auto"),
    ("likelihood", lambda a: None, {"likelihood": "magic"}, ValueError, "choose one of"),
    ("dispersion", lambda a: None, {"dispersion": "cell"}, ValueError, "choose one of"),
    ("preset", lambda a: None, {"preset": "best"}, ValueError, "choose one of"),
    ("options", lambda a: None, {"options": {"dropout": 0.1}}, TypeError, "FitOptions"),
    ("labels unused", lambda a: None, {"labels_key": "group"}, ValueError, "gene-label"),
    ("gene-batch without batch", lambda a: None, {"dispersion": "gene-batch"}, ValueError, "batch_key="),
    ("gene-label without labels", lambda a: None, {"dispersion": "gene-label"}, ValueError, "labels_key="),
    ("n_hidden", lambda a: None, {"n_hidden": 0}, ValueError, "n_hidden"),
    ("batch_size", lambda a: None, {"batch_size": 1}, ValueError, "batch_size"),
    ("max_epochs", lambda a: None, {"max_epochs": 0}, ValueError, "max_epochs"),
    ("beta", lambda a: None, {"beta": float("nan")}, ValueError, "beta"),
    ("kl_warmup", lambda a: None, {"kl_warmup": 2.0}, ValueError, "kl_warmup"),
    ("validation_fraction", lambda a: None, {"validation_fraction": 1.0}, ValueError, "validation_fraction"),
    ("name with a slash", lambda a: None, {"key_added": "a/b"}, ValueError, "without '/'"),
    ("empty name", lambda a: None, {"key_added": ""}, ValueError, "without '/'"),
    ("seed", lambda a: None, {"rng": -1}, ValueError, "Generator"),
    ("split seed", lambda a: None, {"split_rng": "a"}, ValueError, "split_rng"),
    ("device", lambda a: None, {"device": None}, ValueError, "auto"),
    ("single precision device", lambda a: None, {"device": "mps"}, ValueError, "double precision"),
    ("switch", lambda a: None, {"options": vx.tl.FitOptions(keep_best="n")}, ValueError, "True or False"),
    ("denoised", lambda a: None, {"denoised": "no"}, ValueError, "denoised"),
    ("fraction", lambda a: None, {"validation_fraction": "x"}, ValueError, "validation_fraction"),
    ("batch list", lambda a: None, {"batch_key": ["batch"]}, TypeError, "name of a column"),
    ("target_sum", lambda a: None, {"target_sum": -1}, ValueError, "target_sum"),
    ("uns taken", _take_key("uns", "vae"), {}, ValueError, "key_added="),
    ("obsm taken", _take_key("obsm", "X_vae"), {}, ValueError, "key_added="),
    ("layer taken", _take_key("layers", "vae_normalized"), {}, ValueError, "key_added="),
    ("obs taken", _take_key("obs", "vae_split"), {}, ValueError, "key_added="),
    ("stale library", lambda a: a.obs.__setitem__("library_size", 1.0), {}, ValueError, "overwrite=True"),
]


@pytest.mark.parametrize(("change", "arguments", "error", "match"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_input_is_refused_with_the_remedy(
    adata: ad.AnnData, quick: dict, change: Callable, arguments: dict, error: type[Exception], match: str
) -> None:
    change(adata)
    before = _fingerprint(adata)
    with pytest.raises(error, match=match):
        vx.tl.fit_vae(adata, **(quick | arguments))
    assert _fingerprint(adata) == before


def test_a_refused_call_does_not_change_an_earlier_fit(fitted: ad.AnnData, quick: dict) -> None:
    before = _fingerprint(fitted)
    for arguments in ({"n_latent": 61}, {"batch_key": "bath"}, {"rng": -1}):
        with pytest.raises((ValueError, KeyError)):
            vx.tl.fit_vae(fitted, **(quick | arguments))
    assert _fingerprint(fitted) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is present")
def test_an_absent_device(adata: ad.AnnData, quick: dict) -> None:
    for device in ("cuda", "cuda:7"):
        with pytest.raises(ValueError, match="device='cpu'"):
            vx.tl.fit_vae(adata, device=device, **quick)


def test_more_than_one_process(adata: ad.AnnData, quick: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="WORLD_SIZE"):
        vx.tl.fit_vae(adata, **quick)
    monkeypatch.setenv("WORLD_SIZE", "1")
    vx.tl.fit_vae(adata, **quick)


def test_one_cell(adata: ad.AnnData, quick: dict) -> None:
    with pytest.raises(ValueError, match="at least 4"):
        vx.tl.fit_vae(adata[:1].copy(), **quick)
    with pytest.raises(ValueError, match="0 cells"):
        vx.tl.fit_vae(adata[:0].copy(), **quick)


@pytest.mark.parametrize("n", [4, 5, 17])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_fewer_cells_than_a_minibatch_and_a_last_one_of_one(adata: ad.AnnData, n: int, norm: str) -> None:
    small = adata[:n].copy()
    vx.tl.fit_vae(small, n_latent=2, n_hidden=8, max_epochs=2, batch_size=4, options=vx.tl.FitOptions(norm=norm))
    assert np.isfinite(small.obsm["X_vae"]).all()


def test_one_gene(adata: ad.AnnData, quick: dict) -> None:
    one = adata[:, :1].copy()
    vx.tl.fit_vae(one, **(quick | {"n_latent": 1}))
    assert np.isfinite(one.layers["vae_normalized"]).all()


def test_a_covariate_of_one_category_raises_a_warning(adata: ad.AnnData, quick: dict, warned: list[str]) -> None:
    adata.obs["batch"] = "only"
    vx.tl.fit_vae(adata, "batch", **quick)
    assert "one category" in " ".join(warned)
    assert np.isfinite(adata.obsm["X_vae"]).all()


def test_empty_cells_are_not_fitted_but_get_a_latent_mean(adata: ad.AnnData, quick: dict, warned: list[str]) -> None:
    x = adata.X.toarray()
    x[[2, 9]] = 0
    adata.X = sparse.csr_matrix(x)
    del adata.obs["library_size"]
    vx.tl.fit_vae(adata, "batch", **quick)
    assert "filter_cells" in " ".join(warned)
    assert adata.obs["vae_split"].iloc[[2, 9]].tolist() == ["query", "query"]
    assert np.isfinite(adata.obsm["X_vae"]).all()
    assert np.isfinite(adata.layers["vae_normalized"]).all()
    np.testing.assert_array_equal(adata.obs["vae_library"].iloc[[2, 9]], 0)


def test_empty_genes_are_modelled_near_zero_and_named(adata: ad.AnnData, quick: dict, warned: list[str]) -> None:
    x = adata.X.toarray()
    x[:, 5] = 0
    adata.X = sparse.csr_matrix(x)
    vx.tl.fit_vae(adata, **quick)
    assert "filter_genes" in " ".join(warned)
    layer = adata.layers["vae_normalized"]
    assert np.isfinite(layer).all()
    assert layer[:, 5].mean() < np.delete(layer, 5, axis=1).mean(0).min()


def test_nothing_to_fit(adata: ad.AnnData, quick: dict) -> None:
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
    del adata.obs["library_size"]
    with pytest.raises(ValueError, match=r"adata\.X"):
        vx.tl.fit_vae(adata, **quick)


def test_errors_for_backed_data_name_to_memory(adata: ad.AnnData, quick: dict, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "b.h5ad")
    backed = ad.read_h5ad(tmp_path / "b.h5ad", backed="r")
    with pytest.raises(ValueError, match="to_memory"):
        vx.tl.fit_vae(backed, copy=True, **quick)
    with pytest.raises(ValueError, match="to_memory"):
        vx.tl.fit_vae(backed[:50], **quick)
    backed.file.close()


def test_unsorted_and_duplicate_indices_are_summed(adata: ad.AnnData, quick: dict) -> None:
    expected = vx.tl.fit_vae(adata, copy=True, **quick)
    assert expected is not None
    x = adata.X.tocsr()
    rng = np.random.default_rng(0)
    data, indices = x.data.copy(), x.indices.copy()
    for i in range(x.shape[0]):
        part = slice(x.indptr[i], x.indptr[i + 1])
        order = rng.permutation(part.stop - part.start)
        data[part], indices[part] = data[part][order], indices[part][order]
    adata.X = sparse.csr_matrix((data, indices, x.indptr), shape=x.shape)
    vx.tl.fit_vae(adata, **quick)
    np.testing.assert_array_equal(adata.obsm["X_vae"], expected.obsm["X_vae"])
    np.testing.assert_array_equal(adata.X.indices, indices)


def test_an_interrupt_keeps_the_best_state_so_far(
    adata: ad.AnnData, quick: dict, monkeypatch: pytest.MonkeyPatch, warned: list[str]
) -> None:
    from vxpress.core.training import Training

    calls, real = [], Training.validate

    def interrupt(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "validate", interrupt)
    vx.tl.fit_vae(adata, **(quick | {"max_epochs": 10}))
    assert "interrupted" in " ".join(warned)
    assert adata.uns["vae"]["params"]["stopped"] == "interrupted"
    assert len(adata.uns["vae"]["history"]["lr"]) == 3
    assert np.isfinite(adata.obsm["X_vae"]).all()


def test_diverged_training_names_the_cells_and_writes_nothing(
    adata: ad.AnnData, quick: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vxpress.core.data import Batch, Cells
    from vxpress.core.training import TrainingError

    real = Cells.batch

    def broken(self: Cells, *args: Any) -> Batch:
        batch = real(self, *args)
        return replace(batch, log_library_n1=batch.log_library_n1 * torch.nan)

    monkeypatch.setattr(Cells, "batch", broken)
    before = _fingerprint(adata)
    with pytest.raises(TrainingError, match=re.escape(repr(str(adata.obs_names[0])))):
        vx.tl.fit_vae(adata, **quick)
    assert _fingerprint(adata) == before


def test_encode_refuses_unknown_genes_and_categories(fitted: ad.AnnData) -> None:
    new = fitted[:20].copy()
    for make, error, match in (
        (lambda a: a[:, 59:].copy(), ValueError, "missing from adata.var_names"),
        (_renamed, ValueError, "annotation of the fit"),
        (lambda a: _with(a, "batch", np.nan), ValueError, "fillna"),
        (lambda a: _without(a, "age"), KeyError, "age"),
        (lambda a: _without(a, "library_size"), KeyError, "library_size"),
    ):
        query = make(new)
        before = _fingerprint(query)
        with pytest.raises(error, match=match):
            vx.tl.encode(query)
        assert _fingerprint(query) == before


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"fine_tune": -1}, "fine_tune"),
        ({"fine_tune": 2.5}, "number of epochs"),
        ({"fine_tune": "yes"}, "number of epochs"),
        ({"rng": -1}, "rng"),
        ({"fine_tune": True}, "at least 4"),
    ],
)
def test_invalid_fine_tuning_is_refused(fitted: ad.AnnData, arguments: dict, match: str) -> None:
    query = _with(fitted[:3], "batch", "new")
    before = _fingerprint(query)
    with pytest.raises(ValueError, match=match):
        vx.tl.encode(query, **arguments)
    assert _fingerprint(query) == before


def test_the_error_names_counts_normalised_in_place(fitted: ad.AnnData) -> None:
    import scanpy as sc

    fitted.layers["counts"] = fitted.X.copy()
    latent = fitted.obsm["X_vae"].copy()
    sc.pp.normalize_total(fitted)
    sc.pp.log1p(fitted)
    with pytest.raises(ValueError, match="layer='counts'"):
        vx.tl.encode(fitted)
    vx.tl.encode(fitted, layer="counts")
    np.testing.assert_array_equal(fitted.obsm["X_vae"], latent)
    vx.tl.denoise(fitted)


def _with(adata: ad.AnnData, key: str, value: object) -> ad.AnnData:
    adata = adata.copy()
    adata.obs[key] = value
    return adata


def _renamed(adata: ad.AnnData) -> ad.AnnData:
    adata = adata.copy()
    adata.var_names = [f"other_{name}" for name in adata.var_names]
    return adata


def _without(adata: ad.AnnData, key: str) -> ad.AnnData:
    adata = adata.copy()
    del adata.obs[key]
    return adata
