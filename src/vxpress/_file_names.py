"""What an AnnData file holds, by name, without reading any of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FileNames:
    """Columns of ``obs`` and ``var``, layers, and whether there is an ``X``."""

    obs: tuple[str, ...]
    var: tuple[str, ...]
    layers: tuple[str, ...]
    has_x: bool

    @classmethod
    def of(cls, path: Path) -> FileNames:
        """Those of a file; ``ValueError`` where it is no AnnData."""
        try:
            if path.suffix == ".zarr":
                import zarr

                return cls._read(zarr.open_group(str(path), mode="r"))
            import h5py

            with h5py.File(path, "r") as file:
                return cls._read(file)
        except Exception as error:
            # what h5py and zarr raise on a damaged file has no common type
            msg = f"{path} cannot be read as an AnnData: {error}"
            raise ValueError(msg) from error

    @classmethod
    def _read(cls, group: Any) -> FileNames:
        layers = tuple(map(str, group["layers"])) if "layers" in group else ()
        return cls(_columns(group["obs"]), _columns(group["var"]), layers, "X" in group)


def _columns(frame: Any) -> tuple[str, ...]:
    """Columns of a stored data frame, as anndata wrote it since 0.7, or before."""
    if hasattr(frame, "dtype") and frame.dtype.names:
        return tuple(map(str, frame.dtype.names[1:]))
    return tuple(map(str, frame.attrs["column-order"]))
