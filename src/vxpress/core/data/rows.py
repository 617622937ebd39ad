"""Arrays with a row for each cell of data that are larger than memory."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

# arrays up to this size are in memory
MEMORY_BYTES = 64 * 2**20


def rows_array(
    n: int, width: int, dtype: DTypeLike = np.float32, *, in_memory: bool = False, folder: Path | None = None
) -> np.ndarray:
    """Return an array (n, width) to be filled: in memory if it is small or ``in_memory``, else in a temporary file.

    The file is in ``folder``, by default the folder for temporary files (``TMPDIR``). Its place is reserved at once, so that a full disk is an error
    here. It has no name, and is gone when nothing refers to the array any more.
    """
    n_bytes = n * width * np.dtype(dtype).itemsize
    if in_memory or n_bytes <= MEMORY_BYTES:
        return np.empty((n, width), dtype)
    with TemporaryFile(prefix="vxpress-", dir=folder) as file:
        _reserve(file, n_bytes, folder)
        return np.memmap(file, dtype, mode="r+", shape=(n, width))


def _reserve(file: Any, n_bytes: int, folder: Path | None) -> None:
    """Give a file its size, on the disk too where the system can do so."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        else:
            file.truncate(n_bytes)
    except OSError as error:
        where, cure = (
            "the folder for temporary files",
            "Name a folder on a larger disk in the environment variable TMPDIR.",
        )
        if folder is not None:
            where, cure = str(folder), "Make room there."
        msg = f"{n_bytes / 1e9:.1f} GB for results of every cell could not be reserved in {where}: {error.strerror}. {cure}"
        raise OSError(error.errno, msg) from error
