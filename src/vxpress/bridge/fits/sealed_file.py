"""Files of tensors and settings with a checksum: safetensors, which cannot hold executable code.

What is not a tensor is one JSON string with a version and the SHA-256 of all that is read, because safetensors itself loads a
flipped byte silently. A file appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vxpress._whole import flush, flush_folder, whole

MAX_HEADER = 64 * 2**20
_METADATA_KEY = "vxpress"

# errors that a malicious file can cause while it is read; UnicodeDecodeError is a ValueError
CRAFTED = (SafetensorError, KeyError, ValueError, TypeError, IndexError, RecursionError)


@dataclass(frozen=True)
class Kind:
    """A kind of file: its version, what messages call it, and the largest number of bytes of its JSON."""

    version: int | str
    what: str
    max_metadata: int

    def damaged(self, path: Path, why: str) -> ValueError:
        """Return the error for a file of another kind or with other content than was written."""
        return ValueError(f"{path.name} is not a {self.what} of vxpress, or is damaged: {why}.")


def write_sealed(kind: Kind, path: Path, key: str, tree: Any, tensors: dict[str, np.ndarray]) -> None:
    """Write tensors by name, and a ``tree`` of values that JSON can hold."""
    entries, payload = _split(save(tensors))
    sha256 = _digest(kind, key, tree, entries, payload)
    meta = {"version": kind.version, "key": key, "sha256": sha256, "fit": tree}
    data = save(tensors, metadata={_METADATA_KEY: json.dumps(meta)})
    with whole(path) as new:
        new.write_bytes(data)
        flush(new)
    flush_folder(path.parent)


def read_sealed(kind: Kind, path: Path) -> tuple[str, Any, dict[str, np.ndarray]]:
    """Read key, tree and tensors; raises ``ValueError`` if the file is damaged."""
    data = path.read_bytes()
    if len(data) < 8 or not 2 <= struct.unpack("<Q", data[:8])[0] <= min(MAX_HEADER, len(data) - 8):
        raise kind.damaged(path, "it has no safetensors header")
    try:
        entries, payload = _split(data)
        text = entries.pop("__metadata__")[_METADATA_KEY]
        meta = _metadata(text, kind.max_metadata)
    except CRAFTED as error:
        raise kind.damaged(path, "its metadata cannot be read") from error
    if meta.get("version") != kind.version:
        msg = f"{path.name} has format version {meta.get('version')!r}; this version of vxpress reads {kind.version}. Update vxpress."
        raise ValueError(msg)
    if not {"key", "sha256", "fit"} <= meta.keys() or not isinstance(meta["key"], str):
        raise kind.damaged(path, "its metadata is incomplete")
    try:
        # JSON may spell a number in two ways or repeat a name; only the exact text of write_sealed is accepted
        sha256 = _digest(kind, meta["key"], meta["fit"], entries, payload)
        tensors = load(data) if text == json.dumps(meta) and meta["sha256"] == sha256 else None
    except CRAFTED as error:
        raise kind.damaged(path, str(error)) from error
    if tensors is None:
        raise kind.damaged(path, "its contents do not match their checksum")
    return meta["key"], meta["fit"], tensors


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Split a safetensors file into its header, by name, and the tensor bytes, which follow it."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length].decode())
    if not isinstance(header, dict):
        msg = "the header is not a mapping"
        raise TypeError(msg)
    return header, memoryview(data)[8 + length :]


def _digest(kind: Kind, key: str, tree: Any, entries: Mapping[str, Any], payload: memoryview) -> str:
    """Compute the SHA-256 of all that is read: settings, names, types and shapes of the tensors, and their bytes."""
    digest = hashlib.sha256(json.dumps([kind.version, key, tree, entries], sort_keys=True).encode())
    digest.update(b"\0")
    digest.update(payload)
    return digest.hexdigest()


def _metadata(text: str, longest: int) -> dict[str, Any]:
    if len(text) > longest:
        msg = "the metadata is too long"
        raise ValueError(msg)
    meta = json.loads(text)
    if not isinstance(meta, dict):
        msg = "the metadata is not a mapping"
        raise TypeError(msg)
    return meta
