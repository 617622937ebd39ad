"""Open files that may hold a fit: check paths, read stores, and raise errors that say what was found instead."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from anndata.io import read_elem

from vxpress._stores import open_store
from vxpress.bridge.fits.model_file import read_fit
from vxpress.bridge.fits.results import is_fit

T = TypeVar("T")
SUFFIX = ".safetensors"


def as_path(argument: str, value: object, *, otherwise: str = "") -> Path:
    """Return the path that an argument names; raises ``TypeError`` for other types. ``otherwise`` lists what else is accepted."""
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        if isinstance(text, str):
            return Path(text)
    msg = f"{argument}= takes {otherwise}a path (a string or pathlib.Path); found {type(value).__name__}."
    raise TypeError(msg)


def existing(argument: str, path: Path) -> Path:
    """Return the path if it exists; raises ``FileNotFoundError`` otherwise."""
    try:
        found = path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, a NUL
        msg = f"{argument}={str(path)!r} is not a valid path: {error}."
        raise FileNotFoundError(msg) from error
    if not found:
        msg = f"{argument}={str(path)!r} does not exist."
        raise FileNotFoundError(msg)
    return path


def read_model_file(path: Path) -> tuple[dict[str, Any], str]:
    """Read the fit in a file of :func:`vxpress.save_model`, in the form of ``uns``, and its name."""
    if path.is_dir():
        msg = f"{str(path)!r} is a folder; a file written by vx.save_model is expected. To use a fit in a zarr store, pass the store with model=."
        raise IsADirectoryError(msg)
    if not path.is_file():
        msg = f"{str(path)!r} is not a regular file; a file written by vx.save_model is expected."
        raise ValueError(msg)
    try:
        return read_fit(path)
    except OSError as error:
        msg = f"{str(path)!r} cannot be read: {error.strerror or error}"
        raise OSError(error.errno, msg) from error


def read_store(path: Path, read: Callable[[Any], T]) -> T:
    """Apply ``read`` to the root of an ``.h5ad`` file or zarr store; raises ``ValueError`` if it is neither, or damaged."""
    try:
        with open_store(path) as root:
            return read(root)
    except PermissionError as error:
        msg = f"{str(path)!r} cannot be read: permission denied"
        raise PermissionError(error.errno, msg) from error
    except MemoryError:
        raise
    except Exception as error:
        # the errors of h5py, zarr and anndata for other or damaged files have no common type
        msg = f"{str(path)!r} is neither an .h5ad, a zarr store nor a .safetensors file, or is damaged ({error})."
        raise ValueError(msg) from error


def read_uns(path: Path, name: str) -> tuple[Any, list[str]]:
    """Read one entry of ``uns`` of a stored AnnData, None if it is absent, and the names of all fits in it."""

    def read(root: Any) -> tuple[Any, list[str]]:
        return (read_elem(root[f"uns/{name}"]) if f"uns/{name}" in root else None), _fits(root)

    return read_store(path, read)


def fits_of_file(path: Path) -> list[str]:
    """Return the names of the fits in a file without reading the fits."""
    return [read_model_file(path)[1]] if path.suffix == SUFFIX else read_store(path, _fits)


def _fits(root: Any) -> list[str]:
    if "uns" not in root:
        return []
    parts = [name for name in root["uns"] if "format" in getattr(root["uns"][name], "keys", list)()]
    return [str(name) for name in parts if is_fit({"format": read_elem(root["uns"][name]["format"])})]
