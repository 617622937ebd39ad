"""Write and read a fit in one safetensors file.

The tensors are the weights and every long list (history, gene and category names as UTF-8 bytes). The rest is JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vxpress.bridge.fits.sealed_file import CRAFTED, Kind, read_sealed, write_sealed

VERSION = 1
MODEL = Kind(VERSION, "model file", 4 * 2**20)


def write_fit(stored: Mapping[str, Any], key: str, path: Path) -> None:
    """Write a fit, in the form of ``uns``, to ``path``; the file appears complete or not at all."""
    if not path.parent.is_dir():
        msg = f"{str(path.parent)!r} is not a folder. Create it first, or choose another path."
        raise FileNotFoundError(msg)
    tensors: dict[str, np.ndarray] = {}
    tree = _pack(stored, "", tensors)
    write_sealed(MODEL, path, key, tree, tensors)


def read_fit(path: Path) -> tuple[dict[str, Any], str]:
    """Read the fit in a file, in the form of ``uns``, and its name; raises ``ValueError`` if the file is damaged."""
    key, packed, tensors = read_sealed(MODEL, path)
    try:
        tree = _unpack(packed, tensors)
    except CRAFTED as error:
        raise MODEL.damaged(path, str(error)) from error
    if not isinstance(tree, dict):
        raise MODEL.damaged(path, "its metadata is incomplete")
    return tree, key


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
