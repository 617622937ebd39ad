"""The checksum of a stored fit, which any change, loss or addition since it was written breaks.

It is taken of values, not of bytes on a disk: the same before and after ``.h5ad``, zarr, safetensors, ``ad.concat`` or a
machine of other byte order, whose readers give back scalars, strings and mappings in types of their own.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

NAME = "sha256"
# made anew by vx.tl.diagnose, and open to notes of the user
FREE = ("diagnostics",)
ADVICE = (
    "Take the fit from the file or AnnData that it came from (model=), or fit again: vx.tl.fit_vae(adata). Only "
    "uns[key]['diagnostics'] may be edited. Was it merged by ad.concat(uns_merge='same') from a reference and a query with new "
    "categories? Then pass the AnnData that knows them all: model=query."
)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its checksum; every record of a fit that is written passes here."""
    return {**record, NAME: digest(record)}


def check_seal(record: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless the record is what was sealed."""
    found = record.get(NAME)
    if found is None or str(found) != digest(record):
        what = "has lost its checksum" if found is None else "does not match its checksum"
        msg = f"The stored fit is damaged: it {what}. Something in it was changed, lost or added since it was written. {ADVICE}"
        raise ValueError(msg)


def digest(record: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal digits, of all of a record but its free parts and the checksum itself."""
    found = hashlib.sha256()
    _feed(found, {name: value for name, value in record.items() if name not in (*FREE, NAME)})
    return found.hexdigest()


def _feed(found: Any, value: Any) -> None:
    """Every value begins with a letter for its kind and says its size, so that no two read alike."""
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
        # readers give back scalars in double precision, and a NaN may have any bits
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
