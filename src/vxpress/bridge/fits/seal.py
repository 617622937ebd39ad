"""Compute and check the checksum of a stored fit, which detects any change, loss or addition since it was written.

It is computed from values, not from bytes on a disk. So it is the same before and after ``.h5ad``, zarr, safetensors,
``ad.concat`` or a machine of other byte order, whose readers return scalars, strings and mappings in their own types.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

NAME = "sha256"
# written again by vx.tl.diagnose, and free for notes of the user
FREE = ("diagnostics",)
ADVICE = (
    "Use the fit in its original file or AnnData (model=), or fit again: vx.tl.fit_vae(adata). Only uns[key]['diagnostics'] may "
    "be edited. If ad.concat(uns_merge='same') merged it from a reference and a query with new categories, pass the AnnData "
    "whose fit knows all categories: model=query."
)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with its checksum; every record of a fit that is written comes from here."""
    return {**record, NAME: digest(record)}


def check_seal(record: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless the record matches its checksum."""
    if not intact(record):
        found = record.get(NAME)
        what = "has lost its checksum" if found is None else "does not match its checksum"
        msg = f"The stored fit is damaged: it {what}. Something in it was changed, lost or added since it was written. {ADVICE}"
        raise ValueError(msg)


def intact(record: Mapping[str, Any]) -> bool:
    """Return whether the record has a checksum and matches it."""
    try:
        return NAME in record and str(record[NAME]) == digest(record)
    except (TypeError, ValueError):  # values that no fit holds
        return False


def digest(record: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal digits, of a record without its free parts and the checksum itself."""
    found = hashlib.sha256()
    _feed(found, {name: value for name, value in record.items() if name not in (*FREE, NAME)})
    return found.hexdigest()


def _feed(found: Any, value: Any) -> None:
    """Add a value to the digest, with its size and a letter for its type, so that no two values give the same bytes."""
    if isinstance(value, Mapping):
        # concat drops empty mappings
        parts = {str(name): part for name, part in value.items() if not _empty(part)}
        found.update(b"m" + struct.pack("<q", len(parts)))
        for name in sorted(parts):
            _text(found, name)
            _feed(found, parts[name])
        return
    array = np.asarray(value)
    found.update(struct.pack("<q", array.ndim) + struct.pack(f"<{array.ndim}q", *array.shape))
    kind = array.dtype.kind
    if kind == "b":
        found.update(b"b" + np.ascontiguousarray(array).tobytes())
    elif kind in "iu":
        found.update(b"i" + np.ascontiguousarray(array, dtype="<i8").tobytes())
    elif kind == "f" and array.ndim == 0:
        # readers return scalars in double precision, and a NaN may have any bits
        number = float(array[()])
        found.update(b"f" + struct.pack("<d", np.nan if number != number else number))  # noqa: PLR0124
    elif kind == "f":
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        found.update(b"f" + str(array.dtype.itemsize).encode())
        found.update(little.reshape(-1).view(np.uint8))
    else:
        found.update(b"s")
        for item in array.reshape(-1).tolist():
            _text(found, item if isinstance(item, str) else repr(item))


def _empty(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_empty, value.values()))


def _text(found: Any, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    found.update(struct.pack("<q", len(data)) + data)
