"""Models in files: what goes in comes out, and what was damaged is said to be."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vxpress as vx
from vxpress.bridge.fit import Fit, expected_shapes, load_weights
from vxpress.core.config import ModelConfig


@pytest.fixture
def path(fitted: ad.AnnData, tmp_path: Path) -> Path:
    vx.save_model(fitted, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_a_loaded_model_encodes_the_same_bits(fitted: ad.AnnData, path: Path) -> None:
    model = vx.load_model(path)
    assert model.n_obs == 0
    assert list(model.var_names) == list(fitted.var_names)
    for source in (model, path, str(path)):
        query = _bare(fitted)
        vx.tl.encode(query, source)
        np.testing.assert_array_equal(query.obsm["X_vae"], fitted.obsm["X_vae"])


def test_a_model_keeps_its_stem(adata: ad.AnnData, quick: dict, tmp_path: Path) -> None:
    vx.tl.fit_vae(adata, key_added="mine", **quick)
    vx.save_model(adata, tmp_path / "m.safetensors", key="mine")
    assert set(vx.load_model(tmp_path / "m.safetensors").uns) == {"mine"}


def test_saving_replaces_whole_files_only(fitted: ad.AnnData, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        vx.save_model(fitted, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_every_flipped_byte_is_noticed(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    damaged = tmp_path / "d.safetensors"
    (header,) = struct.unpack("<Q", data[:8])
    rng = np.random.default_rng(0)
    spots = [0, 3, 9, 8 + header, len(data) - 1, *rng.integers(8 + header, len(data), 30).tolist()]
    for at in spots:
        damaged.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(ValueError, match=r"damaged|version"):
            vx.load_model(damaged)


@pytest.mark.parametrize("length", [0, 7, 8, 100])
def test_a_truncated_file_is_refused(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="damaged"):
        vx.load_model(path)
    data = b"x" * 10_000
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        vx.load_model(path)


def test_other_peoples_safetensors_are_refused(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3)}, tmp_path / "o.safetensors")
    with pytest.raises(ValueError, match="not a model file"):
        vx.load_model(tmp_path / "o.safetensors")


def test_another_version_says_so(path: Path) -> None:
    data = path.read_bytes()
    (header,) = struct.unpack("<Q", data[:8])
    meta = json.loads(data[8 : 8 + header])["__metadata__"]["vxpress"]
    changed = json.dumps(json.loads(meta) | {"version": 99})
    save_file(load_file(path), path, metadata={"vxpress": changed})
    with pytest.raises(ValueError, match="version 99"):
        vx.load_model(path)


def test_no_pickle_is_ever_opened(fitted: ad.AnnData, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    vx.load_model(path)
    Fit.from_uns(fitted.uns["vae"])


def test_shapes_are_checked_before_anything_is_allocated(fitted: ad.AnnData) -> None:
    huge = ModelConfig(n_genes=10_000_000, n_hidden=65_536)
    assert expected_shapes(huge)["encoder.body.linears.0.weight"] == (65_536, 10_000_000)
    with pytest.raises(ValueError, match="do not fit"):
        load_weights(huge, fitted.uns["vae"]["weights"])


@pytest.mark.parametrize(
    ("part", "name", "value", "match"),
    [
        ("weights", "decoder.location.bias", np.zeros(3, dtype=np.float32), "do not fit"),
        ("weights", "decoder.location.bias", np.full(41, np.nan, dtype=np.float32), "not finite"),
        ("weights", "extra", np.zeros(3, dtype=np.float32), "do not fit"),
        ("genes", "modelled", np.ones(60, dtype=bool), "damaged"),
        ("covariates", "categories_0", np.array(["a"], dtype=object), "damaged"),
    ],
)
def test_a_damaged_fit_in_uns_is_refused(
    fitted: ad.AnnData, part: str, name: str, value: np.ndarray, match: str
) -> None:
    fitted.uns["vae"][part][name] = value
    with pytest.raises(ValueError, match=match):
        vx.tl.encode(fitted)


def test_a_fit_without_a_part_is_refused(fitted: ad.AnnData) -> None:
    del fitted.uns["vae"]["weights"]
    with pytest.raises(ValueError, match="weights"):
        vx.tl.denoise(fitted)


def test_paths_that_do_not_serve_are_named(fitted: ad.AnnData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="safetensors"):
        vx.save_model(fitted, tmp_path / "m.pt")
    with pytest.raises(FileNotFoundError):
        vx.load_model(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none\.h5ad"):
        vx.tl.encode(fitted, tmp_path / "none.h5ad")
    (tmp_path / "text.h5ad").write_text("hello")
    with pytest.raises(ValueError, match="neither"):
        vx.tl.encode(fitted, tmp_path / "text.h5ad")
    with pytest.raises(TypeError, match="model="):
        vx.tl.encode(fitted, 3)  # type: ignore[arg-type]


def _bare(adata: ad.AnnData) -> ad.AnnData:
    return ad.AnnData(adata.X, obs=adata.obs[["batch", "age", "library_size"]], var=adata.var)
