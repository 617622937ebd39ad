"""What the command ``vxpress fit`` reads: into memory, or, if that is too small, from disk while it fits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vxpress._several import processes_here

if TYPE_CHECKING:
    from anndata import AnnData

# matrices in memory, their conversion for the fit, and results
NEEDED = 2.0


def reads_from_disk(path: Path, *, on_disk: bool | None) -> bool:
    """Return whether counts are read during the fit; None decides by their size and the memory that is free."""
    return not _fits(path) if on_disk is None else on_disk


def read_input(path: Path, *, on_disk: bool) -> AnnData:
    """Read an AnnData, or with ``on_disk`` open it."""
    import anndata as ad

    if on_disk:
        from vxpress.bridge.read.opening import open_anndata

        return open_anndata(path, "r")
    try:
        return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)
    except MemoryError as error:
        msg = f"{path} does not fit into memory. Read it from disk during the fit: --on-disk."
        raise MemoryError(msg) from error
    except Exception as error:
        # errors of h5py, zarr and anndata on a damaged file have no common type
        msg = f"{path} cannot be read as an AnnData: {error}"
        raise ValueError(msg) from error


def is_on_disk(adata: AnnData) -> bool:
    """Return whether the AnnData was opened and not read."""
    from vxpress.bridge.read.opened import opened_from

    return opened_from(adata) is not None


def _fits(path: Path) -> bool:
    """Return whether the matrices of a store fit into memory; a damaged store is read, which says what is wrong."""
    from vxpress._stores import open_store
    from vxpress.bridge.read.opened import kind_of, n_bytes

    try:
        with open_store(path) as root:
            if kind_of(root, path) == "collection":
                # anndata cannot read it
                return False
            needed = sum(n_bytes(root[name]) for name in ("X", "layers", "obsm", "obsp", "raw") if name in root)
    except Exception:  # noqa: BLE001 - errors of h5py and zarr have no common type
        return True
    free = free_memory()
    # each process of this machine reads its own copy
    return free is None or processes_here() * NEEDED * needed <= free


def free_memory() -> int | None:
    """Return the bytes of memory that this process can still take; None if the system does not say."""
    found = [_available(), _left_in_group()]
    known = [value for value in found if value is not None]
    return min(known) if known else None


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pages = getattr(os, "sysconf", lambda _: -1)
        try:
            # all memory, where the free part is unknown
            return int(pages("SC_PAGE_SIZE")) * int(pages("SC_PHYS_PAGES")) or None
        except (OSError, ValueError):
            return None


def _left_in_group() -> int | None:
    """Return what a container or a job of a scheduler may still take."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):  # no limit is "max"
        return None


def columns_of(frames: list[Any]) -> tuple[str, ...]:
    """Return the columns of stored data frames, each once, in the format of anndata 0.7 and later, or earlier."""
    found: dict[str, None] = {}
    for frame in frames:
        if hasattr(frame, "dtype") and frame.dtype.names:
            found |= dict.fromkeys(map(str, frame.dtype.names[1:]))
        else:
            found |= dict.fromkeys(map(str, frame.attrs["column-order"]))
    return tuple(found)
