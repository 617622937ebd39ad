"""Models in files: they are read as written, and damage is detected."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save, save_file

import vxpress as vx
from vxpress.bridge.fits.model_file import MODEL, VERSION, read_fit, write_fit
from vxpress.bridge.fits.sealed_file import _digest, _split
from vxpress.bridge.fits.weights import load_weights
from vxpress.core.config import ModelConfig
from vxpress.core.model import expected_shapes


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


def test_a_model_keeps_the_name_of_the_fit(adata: ad.AnnData, quick: dict, tmp_path: Path) -> None:
    vx.tl.fit_vae(adata, key_added="mine", **quick)
    vx.save_model(adata, tmp_path / "m.safetensors", key="mine")
    assert set(vx.load_model(tmp_path / "m.safetensors").uns) == {"mine"}


def test_saving_replaces_files_completely_or_not_at_all(
    fitted: ad.AnnData, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        vx.save_model(fitted, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_every_flipped_byte_is_detected(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    damaged = tmp_path / "d.safetensors"
    (header,) = struct.unpack("<Q", data[:8])
    rng = np.random.default_rng(0)
    # testing every byte would read the file too often; a few hundred of them are tested
    in_header = rng.choice(np.arange(8, 8 + header), 400, replace=False)
    in_payload = rng.choice(np.arange(8 + header, len(data)), 30, replace=False)
    spots = [*range(12), 7 + header, 8 + header, len(data) - 1, *in_header.tolist(), *in_payload.tolist()]
    for at in spots:
        for bit in (0x01, 0x10):
            damaged.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            with pytest.raises(ValueError, match=r"damaged|version"):
                vx.load_model(damaged)


def test_changes_of_the_metadata_are_detected(path: Path) -> None:
    tensors, text = load_file(path), _metadata(path)
    meta = json.loads(text)
    settings = meta["fit"]["params"]["train"]
    learning_rate = settings["learning_rate"]
    settings["learning_rate"] = learning_rate * 2
    spelt = f'"learning_rate": {learning_rate}'
    assert spelt in text
    for changed in (
        json.dumps(meta),
        json.dumps(json.loads(text) | {"key": "other"}),
        text.replace(spelt, spelt + "0" * 20 + "1"),
        text.replace(spelt, f'"learning_rate": 3.0, {spelt}'),
    ):
        assert changed != text
        save_file(tensors, path, metadata={"vxpress": changed})
        with pytest.raises(ValueError, match="damaged"):
            vx.load_model(path)


@pytest.mark.parametrize(
    "tree",
    [
        {"$tensor": 3},
        {"$tensor": ["a"]},
        {"$tensor": {"b": "a"}},
        {"$tensor": "absent"},
        {"$strings": None},
        {"$strings": "s"},
        {"$strings": "flat"},
        {"$strings": "float"},
        {"$strings": "latin"},
        {"$strings": "sums"},
        [1, 2],
        3,
        None,
    ],
)
def test_crafted_metadata_is_reported_as_damaged(tree: object, tmp_path: Path) -> None:
    one = np.array([1], dtype=np.int64)
    tensors = {
        "s#bytes": np.zeros(1, dtype=np.uint8),
        "s#lengths": np.ones((1, 1), dtype=np.int64),
        "flat#bytes": np.zeros(1, dtype=np.uint8),
        "flat#lengths": np.array(1, dtype=np.int64),
        "float#bytes": np.zeros(1, dtype=np.uint8),
        "float#lengths": np.ones(1),
        "latin#bytes": np.array([0xE9], dtype=np.uint8),
        "latin#lengths": one,
        "sums#bytes": np.zeros(1, dtype=np.uint8),
        "sums#lengths": np.array([2**62, 2**62, 2**62, 2**62, 1], dtype=np.int64),
    }
    for fit in (tree, {"a": tree}) if isinstance(tree, dict) else (tree,):
        _craft(tmp_path / "c.safetensors", tensors, fit)
        with pytest.raises(ValueError, match="damaged"):
            vx.load_model(tmp_path / "c.safetensors")


@pytest.mark.parametrize("text", ["[" * 100_000, "3", "null", '"x"', '{"version": 1}', "{", "\ud800"])
def test_metadata_without_a_mapping_is_reported_as_damaged(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    for metadata in (f'{{"vxpress": {json.dumps(text)}}}', "3", "[]", '{"vxpress": 3}', '{"vxpress": null}'):
        header = f'{{"__metadata__": {metadata}}}'.encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(ValueError, match="damaged"):
            vx.load_model(path)
    for header in (b"[1]", b"[" * 100_000, b"\xff\xfe"):
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(ValueError, match="damaged"):
            vx.load_model(path)


def test_deep_trees_are_reported_as_damaged(tmp_path: Path) -> None:
    tree: dict = {}
    for _ in range(700):
        tree = {"a": tree}
    path = tmp_path / "c.safetensors"
    _craft(path, {"a": np.zeros(1)}, tree)
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(len(inspect.stack()) + 300)
        with pytest.raises(ValueError, match="damaged"):
            read_fit(path)
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_the_file_has_the_permissions_of_a_plain_file(fitted: ad.AnnData, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        vx.save_model(fitted, tmp_path / "m.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m.safetensors").stat().st_mode) == 0o640


@pytest.mark.parametrize("length", [0, 7, 8, 100])
def test_a_truncated_file_is_refused(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="damaged"):
        vx.load_model(path)
    data = b"x" * 10_000
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        vx.load_model(path)


def test_other_safetensors_files_are_refused(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3)}, tmp_path / "o.safetensors")
    with pytest.raises(ValueError, match="not a model file"):
        vx.load_model(tmp_path / "o.safetensors")


def test_another_version_of_the_format_is_named(path: Path) -> None:
    changed = json.dumps(json.loads(_metadata(path)) | {"version": 99})
    save_file(load_file(path), path, metadata={"vxpress": changed})
    with pytest.raises(ValueError, match="version 99"):
        vx.load_model(path)


class _Trap:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def unpickled() -> Callable[[], list]:
    """Return a function that starts recording, and returns the list of everything unpickled from then on."""
    seen: list[list] = [[]]
    # the hook stays until the process ends; it sees every unpickler, also under other names
    sys.addaudithook(lambda event, args: seen[-1].append(args) if event == "pickle.find_class" else None)

    def watch() -> list:
        seen.append([])
        return seen[-1]

    return watch


def test_no_pickle_is_ever_opened(fitted: ad.AnnData, path: Path, unpickled: Callable[[], list]) -> None:
    query = _bare(fitted)
    vx.tl.encode(query, path, copy=True)  # compiled code is read from pickles once
    found = unpickled()
    vx.load_model(path)
    vx.tl.encode(query, path)
    vx.tl.encode(fitted)
    assert found == []
    pickle.loads(pickle.dumps(Path()))
    assert found


@pytest.mark.parametrize("save_pickle", [pickle.dump, torch.save])
def test_a_pickle_with_the_name_of_a_model_is_refused_without_opening(
    save_pickle: Callable[..., None], tmp_path: Path
) -> None:
    trap, sprung = tmp_path / "trap.safetensors", tmp_path / "sprung"
    with trap.open("wb") as file:
        save_pickle(_Trap(sprung), file)
    with pytest.raises(ValueError, match=r"trap\.safetensors"):
        vx.load_model(trap)
    assert not sprung.exists()
    # unpickling would create it
    with trap.open("rb") as file:
        torch.load(file, weights_only=False) if save_pickle is torch.save else pickle.load(file)
    assert sprung.exists()


def test_shapes_are_checked_before_anything_is_allocated(fitted: ad.AnnData) -> None:
    huge = ModelConfig(n_genes=10_000_000, n_hidden=65_536)
    assert expected_shapes(huge)["blocks.z.encoder.body.linears.0.weight"] == (65_536, 10_000_000)
    with pytest.raises(ValueError, match="do not match the stored settings"):
        load_weights(huge, fitted.uns["vae"]["weights"])


@pytest.mark.parametrize(
    ("part", "name", "value", "match"),
    [
        ("weights", "decoder.location.bias", np.zeros(3, dtype=np.float32), "do not match the stored settings"),
        ("weights", "decoder.location.bias", np.full(41, np.nan, dtype=np.float32), "not finite"),
        ("weights", "extra", np.zeros(3, dtype=np.float32), "do not match the stored settings"),
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


def test_unusable_paths_are_named(fitted: ad.AnnData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="safetensors"):
        vx.save_model(fitted, tmp_path / "m.pt")
    with pytest.raises(FileNotFoundError):
        vx.load_model(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none\.h5ad"):
        vx.tl.encode(fitted, tmp_path / "none.h5ad")
    (tmp_path / "text.h5ad").write_text("hello")
    with pytest.raises(ValueError, match="neither"):
        vx.tl.encode(fitted, tmp_path / "text.h5ad")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        vx.save_model(fitted, tmp_path / "nowhere" / "m.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="neither"):
        vx.tl.encode(fitted, tmp_path / "folder")
    with pytest.raises(TypeError, match="model="):
        vx.tl.encode(fitted, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [3, None, b"m.safetensors", ["m.safetensors"], np.zeros(2)])
def test_values_that_are_not_paths_raise_a_type_error(fitted: ad.AnnData, value: Any) -> None:
    with pytest.raises(TypeError, match=r"path= takes a path"):
        vx.load_model(value)
    with pytest.raises(TypeError, match=r"path= takes a path"):
        vx.save_model(fitted, value)
    if value is not None:
        with pytest.raises(TypeError, match=r"model= takes an AnnData, None or a path"):
            vx.tl.denoise(fitted, value)


def test_folders_and_files_of_other_kinds_are_named(fitted: ad.AnnData, tmp_path: Path) -> None:
    folder = tmp_path / "m.safetensors"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        vx.load_model(folder)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        vx.tl.encode(fitted, folder)
    with pytest.raises(IsADirectoryError, match="Name a file"):
        vx.save_model(fitted, folder)
    assert [path.name for path in folder.iterdir()] == ["mine"]
    for name in ("x" * 5000, "a\0b", "none"):
        with pytest.raises(FileNotFoundError, match="path="):
            vx.load_model(tmp_path / name)
    with pytest.raises(TypeError, match="AnnData is expected"):
        vx.save_model(folder, tmp_path / "a.safetensors")  # type: ignore[arg-type]
    vx.save_model(vx.load_model(_saved(fitted, tmp_path)), tmp_path / "again.safetensors")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        with pytest.raises(ValueError, match="not a regular file"):
            vx.load_model(tmp_path / "pipe.safetensors")


def test_the_error_for_a_missing_fit_lists_the_fits_of_the_file(fitted: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "a.h5ad"
    fitted.uns["mine"] = fitted.uns.pop("vae")
    fitted.write_h5ad(path)
    with pytest.raises(KeyError, match=r"fits found: \['mine'\]"):
        vx.tl.encode(fitted, path)
    data = path.read_bytes()
    for end in (100, len(data) // 2):
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match="damaged"):
            vx.tl.encode(fitted, path, key="mine")


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_a_full_disk_keeps_the_old_model(fitted: ad.AnnData, path: Path) -> None:
    import resource
    import signal

    before, limit = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limit[1]))
    try:
        with pytest.raises(OSError, match=r"m\.safetensors was not written: File too large"):
            vx.save_model(fitted, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def _saved(adata: ad.AnnData, folder: Path) -> Path:
    path = folder / "saved.safetensors"
    vx.save_model(adata, path)
    return path


def test_another_format_of_a_fit_is_named(fitted: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_fit(fitted.uns["vae"] | {"format": "vxpress-fit-99"}, "vae", path)
    for read in (vx.load_model, lambda path: vx.tl.encode(fitted, path)):
        with pytest.raises(ValueError, match="vxpress-fit-99"):
            read(path)


def _metadata(path: Path) -> str:
    data = path.read_bytes()
    (header,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + header])["__metadata__"]["vxpress"]


def _craft(path: Path, tensors: dict[str, np.ndarray], tree: object) -> None:
    """Write a file with this tree and its valid checksum."""
    entries, payload = _split(save(tensors))
    meta = {"version": VERSION, "key": "vae", "sha256": _digest(MODEL, "vae", tree, entries, payload), "fit": tree}
    save_file(tensors, path, metadata={"vxpress": json.dumps(meta)})


def _bare(adata: ad.AnnData) -> ad.AnnData:
    return ad.AnnData(adata.X, obs=adata.obs[["batch", "age", "library_size"]], var=adata.var)
