"""Convert settings to and from plain mappings that ``.h5ad`` and zarr preserve.

Such files do not preserve tuples, ``None``, numpy scalars and 0-d arrays. So unset options are omitted, sequences are arrays,
and the types of the dataclass define how a value is read. Fields that are always written are required for reading: a default
in their place would be another fit. The exception are options that were added later (``since``): they are left out while they
have their default, which is what earlier fits have. Options of a prior or decoder are those of its class.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin

import numpy as np

from vxpress.core.option import declaration, default_of, hints, options_class

T = TypeVar("T")


def to_uns(config: Any) -> dict[str, Any]:
    """Convert a frozen dataclass to a mapping of scalars, strings, arrays and such mappings."""
    out: dict[str, Any] = {}
    for f in fields(config):
        value, declared = getattr(config, f.name), declaration(f)
        if value is None or (declared.since is not None and value == default_of(f)):
            continue
        if is_dataclass(value):
            value = to_uns(value)
            if declared.flat:
                out |= value
                continue
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            value = {str(i): to_uns(one) for i, one in enumerate(value)}
        elif isinstance(value, tuple):
            of_strings = get_args(hints(type(config))[f.name])[0] is str
            value = np.array(value, dtype=object if of_strings else None) if value else np.array([], dtype=float)
        out[f.name] = value
    return out


def from_uns(kind: type[T], stored: Mapping[str, Any]) -> T:
    """Convert a mapping of :func:`to_uns` back to the dataclass, also after a round trip through a file.

    Raises ``ValueError`` if a field is missing, unknown, of the wrong type or out of range.
    """
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    further = {name: value for name, value in stored.items() if name not in known}
    values: dict[str, Any] = {}
    for f in fields(kind):  # type: ignore[arg-type]
        declared, hint = declaration(f), hints(kind)[f.name]
        if declared.of is not None:
            own = further if declared.flat else stored.get(f.name, {})
            values[f.name] = _read(own, options_class(kind, declared.of, values[declared.of]), f.name)
            further = {} if declared.flat else further
        elif f.name in stored:
            values[f.name] = _read(stored[f.name], hint, f.name)
        elif type(None) in get_args(hint):
            values[f.name] = None
        elif declared.since is None:
            msg = f"{kind.__name__} lacks {f.name!r}: the stored fit is damaged."
            raise ValueError(msg)
    if further:
        msg = f"{kind.__name__} has no fields {sorted(further)}: the fit was stored by another version, or is damaged."
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
    if origin is tuple and is_dataclass(kind := get_args(hint)[0]):
        if not isinstance(value, Mapping) or set(value) != {str(i) for i in range(len(value))}:
            msg = f"{name} should be a mapping of numbered entries: the stored fit is damaged."
            raise ValueError(msg)
        return tuple(_read(value[str(i)], kind, name) for i in range(len(value)))
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
