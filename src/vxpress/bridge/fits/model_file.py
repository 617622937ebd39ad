"""Write and read a fit in one safetensors file, which cannot hold executable code.

The tensors are the weights and every long list (history, gene and category names as UTF-8 bytes). The rest is one JSON string
with a version and the SHA-256 of all that is read, because safetensors itself loads a flipped byte silently.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vxpress._whole import flush, whole

VERSION = 1
MAX_HEADER = 64 * 2**20
MAX_METADATA = 4 * 2**20
_METADATA_KEY = "vxpress"

# errors that a malicious file can cause while it is read; UnicodeDecodeError is a ValueError
_CRAFTED = (SafetensorError, KeyError, ValueError, TypeError, IndexError, RecursionError)


def write_fit(stored: Mapping[str, Any], key: str, path: Path) -> None:
    """Write a fit, in the form of ``uns``, to ``path``; the file appears complete or not at all."""
    if not path.parent.is_dir():
        msg = f"{str(path.parent)!r} is not a folder. Create it first, or choose another path."
        raise FileNotFoundError(msg)
    tensors: dict[str, np.ndarray] = {}
    tree = _pack(stored, "", tensors)
    entries, payload = _split(save(tensors))
    meta = {"version": VERSION, "key": key, "sha256": _digest(key, tree, entries, payload), "fit": tree}
    data = save(tensors, metadata={_METADATA_KEY: json.dumps(meta)})
    with whole(path) as new:
        new.write_bytes(data)
        flush(new)


def read_fit(path: Path) -> tuple[dict[str, Any], str]:
    """Read the fit in a file, in the form of ``uns``, and its name; raises ``ValueError`` if the file is damaged."""
    data = path.read_bytes()
    if len(data) < 8 or not 2 <= struct.unpack("<Q", data[:8])[0] <= min(MAX_HEADER, len(data) - 8):
        raise _damaged(path, "it has no safetensors header")
    try:
        entries, payload = _split(data)
        text = entries.pop("__metadata__")[_METADATA_KEY]
        meta = _metadata(text)
    except _CRAFTED as error:
        raise _damaged(path, "its metadata cannot be read") from error
    if meta.get("version") != VERSION:
        msg = f"{path.name} has format version {meta.get('version')!r}; this version of vxpress reads {VERSION}. Update vxpress."
        raise ValueError(msg)
    if not {"key", "sha256", "fit"} <= meta.keys() or not isinstance(meta["key"], str):
        raise _damaged(path, "its metadata is incomplete")
    try:
        # JSON may spell a number in two ways or repeat a name; only the exact text of write_fit is accepted
        intact = text == json.dumps(meta) and meta["sha256"] == _digest(meta["key"], meta["fit"], entries, payload)
        tree = _unpack(meta["fit"], load(data)) if intact else None
    except _CRAFTED as error:
        raise _damaged(path, str(error)) from error
    if not intact:
        raise _damaged(path, "its contents do not match their checksum")
    if not isinstance(tree, dict):
        raise _damaged(path, "its metadata is incomplete")
    return tree, meta["key"]


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"{path.name} is not a model file of vxpress, or is damaged: {why}.")


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Split a safetensors file into its header, by name, and the tensor bytes, which follow it."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length].decode())
    if not isinstance(header, dict):
        msg = "the header is not a mapping"
        raise TypeError(msg)
    return header, memoryview(data)[8 + length :]


def _digest(key: str, tree: Any, entries: Mapping[str, Any], payload: memoryview) -> str:
    """Compute the SHA-256 of all that is read: settings, names, types and shapes of the tensors, and their bytes."""
    digest = hashlib.sha256(json.dumps([VERSION, key, tree, entries], sort_keys=True).encode())
    digest.update(b"\0")
    digest.update(payload)
    return digest.hexdigest()


def _metadata(text: str) -> dict[str, Any]:
    if len(text) > MAX_METADATA:
        msg = "the metadata is too long"
        raise ValueError(msg)
    meta = json.loads(text)
    if not isinstance(meta, dict):
        msg = "the metadata is not a mapping"
        raise TypeError(msg)
    return meta


def _pack(value: Any, name: str, tensors: dict[str, np.ndarray]) -> Any:
    """Convert a value to JSON; arrays are moved to ``tensors`` and replaced by a reference."""
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
        return tensors[_name(tree["$tensor"])]
    if set(tree) == {"$strings"}:
        name = _name(tree["$strings"])
        return _strings(tensors[f"{name}#bytes"].tobytes(), tensors[f"{name}#lengths"])
    return {key: _unpack(value, tensors) for key, value in tree.items()}


def _name(reference: Any) -> str:
    if not isinstance(reference, str):
        msg = "a reference is not a name"
        raise TypeError(msg)
    return reference


def _strings(text: bytes, lengths: np.ndarray) -> np.ndarray:
    """Split ``text`` into strings, given the number of bytes of each."""
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        msg = "the lengths of its names are not a list of whole numbers"
        raise ValueError(msg)
    # the sum of ints cannot overflow
    sizes = lengths.tolist()
    if min(sizes, default=0) < 0 or sum(sizes) != len(text):
        msg = "the lengths of its names do not add up"
        raise ValueError(msg)
    ends = np.cumsum(lengths)
    return np.array([text[end - n : end].decode() for n, end in zip(sizes, ends, strict=True)], dtype=object)
