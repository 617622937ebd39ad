"""A fit in one safetensors file, which can hold nothing that runs.

The tensors are the weights and every long list (history, gene and category names as UTF-8 bytes); the rest is one JSON
string with a version and the SHA-256 of the tensor bytes, since safetensors itself loads a flipped byte silently.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

VERSION = 1
MAX_HEADER = 64 * 2**20
MAX_METADATA = 4 * 2**20
_METADATA_KEY = "vxpress"


def write_fit(stored: Mapping[str, Any], key: str, path: Path) -> None:
    """Write a fit, as ``uns`` holds it, to ``path``; the file appears whole or not at all."""
    tensors: dict[str, np.ndarray] = {}
    tree = _pack(stored, "", tensors)
    payload = save(tensors)
    meta = {"version": VERSION, "key": key, "sha256": _digest(payload), "fit": tree}
    data = save(tensors, metadata={_METADATA_KEY: json.dumps(meta)})
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def read_fit(path: Path) -> tuple[dict[str, Any], str]:
    """The fit in a file, as ``uns`` holds it, and its stem; raises ``ValueError`` where the file is damaged."""
    data = path.read_bytes()
    meta = _metadata(data, path)
    if meta["sha256"] != _digest(data):
        raise _damaged(path, "its contents do not match their checksum")
    try:
        tensors = load(data)
        tree = _unpack(meta["fit"], tensors)
    except (SafetensorError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(tree, dict) or not isinstance(meta["key"], str):
        raise _damaged(path, "its metadata is incomplete")
    return tree, meta["key"]


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"{path.name} is not a model file of vxpress, or is damaged: {why}.")


def _digest(data: bytes) -> str:
    """SHA-256 of the tensor bytes, which follow the header."""
    (length,) = struct.unpack("<Q", data[:8])
    return hashlib.sha256(data[8 + length :]).hexdigest()


def _metadata(data: bytes, path: Path) -> dict[str, Any]:
    if len(data) < 8 or not 2 <= (length := struct.unpack("<Q", data[:8])[0]) <= min(MAX_HEADER, len(data) - 8):
        raise _damaged(path, "it has no safetensors header")
    try:
        text = json.loads(data[8 : 8 + length])["__metadata__"][_METADATA_KEY]
        if len(text) > MAX_METADATA:
            raise _damaged(path, "its metadata is too long")
        meta = json.loads(text)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, "its metadata cannot be read") from error
    if not isinstance(meta, dict) or meta.get("version") != VERSION:
        version = meta.get("version") if isinstance(meta, dict) else None
        msg = f"{path.name} has format version {version!r}; this version of vxpress reads {VERSION}. Update vxpress."
        raise ValueError(msg)
    if not {"key", "sha256", "fit"} <= meta.keys():
        raise _damaged(path, "its metadata is incomplete")
    return meta


def _pack(value: Any, name: str, tensors: dict[str, np.ndarray]) -> Any:
    """JSON for a value; arrays move into ``tensors`` and leave a reference."""
    if isinstance(value, Mapping):
        return {str(k): _pack(v, f"{name}/{k}", tensors) for k, v in value.items()}
    array = np.asarray(value)
    if array.ndim == 0:
        item = array.item()
        # 0-d weights keep their dtype as tensors; every other scalar is JSON
        if not name.startswith("/weights/"):
            return item
    if array.dtype.kind in "OUT":
        parts = [str(item).encode() for item in array.reshape(-1)]
        tensors[f"{name}#bytes"] = np.frombuffer(b"".join(parts), dtype=np.uint8)
        tensors[f"{name}#lengths"] = np.array([len(part) for part in parts], dtype=np.int64)
        return {"$strings": name}
    tensors[name] = np.ascontiguousarray(array) if array.ndim else array
    return {"$tensor": name}


def _unpack(tree: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if set(tree) == {"$tensor"}:
        return tensors[tree["$tensor"]]
    if set(tree) == {"$strings"}:
        text, lengths = tensors[f"{tree['$strings']}#bytes"].tobytes(), tensors[f"{tree['$strings']}#lengths"]
        ends = np.cumsum(lengths)
        if (lengths < 0).any() or (len(ends) and ends[-1] != len(text)):
            msg = "the lengths of its names do not add up"
            raise ValueError(msg)
        return np.array([text[end - n : end].decode() for n, end in zip(lengths, ends, strict=True)], dtype=object)
    return {key: _unpack(value, tensors) for key, value in tree.items()}
