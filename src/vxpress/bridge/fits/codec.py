"""Convert settings to and from plain mappings that ``.h5ad`` and zarr preserve.

Such files do not preserve tuples, ``None``, numpy scalars and 0-d arrays. So unset options are omitted, sequences are arrays,
and the types of the dataclass define how a value is read. Fields that are always written are required for reading: a default
in their place would be another fit.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

T = TypeVar("T")


def to_uns(config: Any) -> dict[str, Any]:
    """Convert a frozen dataclass to a mapping of scalars, strings, arrays and such mappings."""
    out: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if value is None:
            continue
        if is_dataclass(value):
            value = to_uns(value)
        elif isinstance(value, tuple):
            of_strings = get_args(get_type_hints(type(config))[f.name])[0] is str
            value = np.array(value, dtype=object if of_strings else None) if value else np.array([], dtype=float)
        out[f.name] = value
    return out


def from_uns(kind: type[T], stored: Mapping[str, Any]) -> T:
    """Convert a mapping of :func:`to_uns` back to the dataclass, also after a round trip through a file.

    Raises ``ValueError`` if a field is missing, unknown, of the wrong type or out of range.
    """
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(stored) - set(known))
    if unknown:
        msg = f"{kind.__name__} has no fields {unknown}: the fit was stored by another version, or is damaged."
        raise ValueError(msg)
    values: dict[str, Any] = {}
    for name in known:
        if name in stored:
            values[name] = _read(stored[name], hints[name], name)
        elif type(None) in get_args(hints[name]):
            values[name] = None
        else:
            msg = f"{kind.__name__} lacks {name!r}: the stored fit is damaged."
            raise ValueError(msg)
    return kind(**values)


def _read(value: Any, hint: Any, name: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
        origin = get_origin(hint)
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            msg = f"{name} should be a mapping, not {type(value).__name__}: the stored fit is damaged."
            raise ValueError(msg)
        return from_uns(hint, value)  # type: ignore[arg-type]
    if origin is tuple:
        return tuple(_scalar(item, get_args(hint)[0], name) for item in np.asarray(value).reshape(-1))
    return _scalar(value, str if origin is not None else hint, name)


def _scalar(value: Any, kind: type, name: str) -> Any:
    array = np.asarray(value)
    ok = array.ndim == 0 and {
        bool: array.dtype.kind == "b",
        int: array.dtype.kind in "iu",
        float: array.dtype.kind in "iuf",
        str: isinstance(array[()], str),
    }.get(kind, False)
    if not ok:
        msg = f"{name}={value!r} should be of type {getattr(kind, '__name__', kind)}: the stored fit is damaged."
        raise ValueError(msg)
    return kind(array.item())
