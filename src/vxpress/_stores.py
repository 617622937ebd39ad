"""Open a stored AnnData without reading it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def open_store(path: Path) -> Iterator[Any]:
    """Open the root group of an ``.h5ad`` file or, for a folder, a zarr store; errors are those of h5py and zarr."""
    if path.is_dir():
        import zarr

        yield zarr.open_group(str(path), mode="r")
        return
    import h5py

    with h5py.File(path, "r") as file:
        yield file
