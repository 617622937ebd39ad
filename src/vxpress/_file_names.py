"""Names of the parts of an AnnData file, without reading the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vxpress._stores import open_store


@dataclass(frozen=True)
class FileNames:
    """Columns of ``obs`` and ``var``, layers, and whether ``X`` exists."""

    obs: tuple[str, ...]
    var: tuple[str, ...]
    layers: tuple[str, ...]
    has_x: bool

    @classmethod
    def of(cls, path: Path) -> FileNames:
        """Read the names of a file; raises ``ValueError`` if it is not an AnnData."""
        try:
            with open_store(path) as root:
                return cls._read(root)
        except Exception as error:
            # errors of h5py and zarr on a damaged file have no common type
            msg = f"{path} cannot be read as an AnnData: {error}"
            raise ValueError(msg) from error

    @classmethod
    def _read(cls, group: Any) -> FileNames:
        layers = tuple(map(str, group["layers"])) if "layers" in group else ()
        return cls(_columns(group["obs"]), _columns(group["var"]), layers, "X" in group)


def _columns(frame: Any) -> tuple[str, ...]:
    """Read the columns of a stored data frame, in the format of anndata 0.7 and later, or earlier."""
    if hasattr(frame, "dtype") and frame.dtype.names:
        return tuple(map(str, frame.dtype.names[1:]))
    return tuple(map(str, frame.attrs["column-order"]))
