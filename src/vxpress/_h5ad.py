"""Write an ``.h5ad`` file so that a full disk is an error and not a crash.

HDF5 ends the process with a segmentation fault if the system refuses what it still has to write when a file is closed.
So HDF5 writes through a Python file here, which remembers the first error and drops everything after it; the error is raised
when HDF5 is done.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData


class _ErrorKeepingFile(io.RawIOBase):
    """A new file for HDF5 to write to, which never fails; ``error`` is the first error of the system."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w+b", buffering=0)
        self.error: OSError | None = None

    def write(self, data: Any, /) -> int:
        n = len(memoryview(data).cast("B"))
        left = memoryview(data).cast("B")
        while self.error is None and len(left):
            # near its limit the system may take a part
            left = left[self._kept(self.file.write, left) or 0 :]
        return n

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        n = self.file.readinto(view) or 0
        # what was dropped reads as zeros
        view[n:] = bytes(len(view) - n)
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        self._kept(self.file.truncate, size)
        return self.file.tell() if size is None else size

    def flush(self) -> None:
        if not self.file.closed:
            self._kept(self.file.flush)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        if not self.file.closed:
            self._kept(self.file.close)
        super().close()

    def _kept(self, call: Any, *args: Any) -> Any:
        if self.error is not None and call != self.file.close:
            return None
        try:
            return call(*args)
        except OSError as error:
            self.error = self.error or error
            return None


@contextmanager
def new_h5ad(path: Path) -> Iterator[Any]:
    """Yield a new HDF5 file to write to; a full disk raises the ``OSError`` of the system when the block ends."""
    import h5py

    target = _ErrorKeepingFile(path)
    try:
        with h5py.File(target, "w") as file:
            yield file
    except OSError as error:
        # what HDF5 makes of data that were dropped
        raise target.error or error from None
    finally:
        target.close()
    if target.error is not None:
        raise target.error


def write_h5ad(adata: AnnData, path: Path) -> None:
    """Write ``adata`` as its ``write_h5ad`` does; a full disk raises the ``OSError`` of the system."""
    from anndata.io import write_elem

    adata.strings_to_categoricals()
    if adata.raw is not None:
        adata.strings_to_categoricals(adata.raw.var)
    with new_h5ad(path) as file:
        write_elem(file, "/", adata)


@contextmanager
def nullable_strings() -> Iterator[None]:
    """Let anndata 0.12 write the string columns that it reads from files of anndata 0.13."""
    import anndata as ad

    if getattr(ad.settings, "allow_write_nullable_strings", None) is not False:
        yield
        return
    with ad.settings.override(allow_write_nullable_strings=True):
        yield
