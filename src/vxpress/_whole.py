"""Write files and folders completely or not at all, even if the writing process is killed.

A file is first written into a hidden folder next to its target, on which the writer holds a lock. The system releases the
lock when the writer ends for any reason. So the next write to the same place can distinguish leftovers of a killed process
from what another process is still writing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: leftovers of killed processes are not removed
    fcntl = None  # type: ignore[assignment]

PART = re.compile(r"\..+\.[0-9a-f]{16}\.vxpress-part")
LOCK, OLD = "lock", "old"


@contextmanager
def whole(target: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a path to write to, and replace ``target`` by it when the block ends without an error.

    ``check`` is called last. If the block or ``check`` raises, the incomplete file is removed and ``target`` is unchanged. A
    link to a file stays a link. Raises ``OSError`` with the error number of the system if writing failed.
    """
    target = target.resolve()
    remove_leftovers(target.parent)
    with _named(target):
        folder, lock = _locked_folder(target)
    try:
        new = folder / target.name
        with _named(target):
            yield new
        check()
        with _named(target):
            _move(new, target, folder / OLD)
    finally:
        with contextlib.suppress(OSError):
            _clear(folder)
        if lock is not None:
            lock.close()


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Make errors of the system or of HDF5 name the target and not the hidden file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # HDF5 gives the error number only in its message
        words = re.search(r"errno = (\d+)", str(error))
        number = getattr(error, "errno", None) or (int(words[1]) if words else errno.EIO)
        why = (os.strerror(number) if words else getattr(error, "strerror", None) or str(error)).rstrip(".")
        msg = (
            f"{target} was not written: {why}. An existing file is unchanged. Make room or choose another place, "
            "and write it again"
        )
        raise OSError(number, msg) from error


def remove_leftovers(place: Path) -> None:
    """Remove leftovers of killed writers from a folder, as far as possible."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        for folder in [entry for entry in place.iterdir() if PART.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):
                _remove_if_left(folder, place)


def _remove_if_left(folder: Path, place: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        return
    if not (folder / LOCK).exists():
        folder.rmdir()  # killed before writing; fails if the folder is not empty
        return
    with (folder / LOCK).open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the writer is running
        if (folder / OLD).exists():
            # killed between the two moves of a folder: restore the old one
            for name in [entry.name for entry in folder.iterdir() if entry.name not in (LOCK, OLD)]:
                if not (place / name).exists():
                    (folder / OLD).rename(place / name)
        _clear(folder)


def _clear(folder: Path) -> None:
    """Remove a folder. The lock goes last, because without it a later write cannot identify the rest as leftovers."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()
    (folder / LOCK).unlink(missing_ok=True)
    folder.rmdir()


def _locked_folder(target: Path) -> tuple[Path, IO[bytes] | None]:
    """Create a new hidden folder for ``target``, and return it with the open file that holds its lock."""
    while True:
        folder = target.with_name(f".{target.name}.{secrets.token_hex(8)}.vxpress-part")
        folder.mkdir(mode=0o700)
        if fcntl is None:
            return folder, None
        try:
            lock = (folder / LOCK).open("xb")
        except FileNotFoundError:
            continue  # another writer removed the folder, which had no lock yet, as a leftover
        # without support for locks, no other process removes the folder either
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / LOCK).exists():
            return folder, lock
        lock.close()


def _move(new: Path, target: Path, old: Path) -> None:
    if not target.is_dir():
        new.replace(target)
        return
    if exchanged(new, target):
        return  # the old one is now in the hidden folder, which is removed
    # no system call of this system replaces a folder by another, so for a moment there is none
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise


def exchanged(one: Path, other: Path) -> bool:
    """Exchange two folders in one step, and return whether the system can do so."""
    if os.name == "nt":
        return False
    libc, flag = ctypes.CDLL(None, use_errno=True), ctypes.c_uint(2)
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):  # Linux: RENAME_EXCHANGE
        here = ctypes.c_int(-100)
        return bool(libc.renameat2(here, names[0], here, names[1], flag) == 0)
    if hasattr(libc, "renamex_np"):  # macOS: RENAME_SWAP
        return bool(libc.renamex_np(*names, flag) == 0)
    return False


# descriptions of zarr, which are rewritten; a link would change the original too
DESCRIPTIONS = frozenset({"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"})


def repeat_tree(source: Path, target: Path, *, without: Collection[str] = (), link: bool) -> None:
    """Repeat a zarr store at ``target``, without some of its entries; with ``link`` its data are links and take no space.

    ``without`` holds paths relative to the store, such as ``"obs"`` or ``"obsm/X_vae"``.
    """
    target.mkdir()
    for entry in os.scandir(source):
        if entry.name in without or PART.fullmatch(entry.name):
            continue
        there = target / entry.name
        if entry.is_dir():
            below = [name.removeprefix(f"{entry.name}/") for name in without if name.startswith(f"{entry.name}/")]
            repeat_tree(Path(entry.path), there, without=below, link=link)
        elif not (link and entry.name not in DESCRIPTIONS and _linked(entry.path, there)):
            shutil.copy2(entry.path, there)


def _linked(source: str, target: Path) -> bool:
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without links
        return False
    return True


def flush(path: Path) -> None:
    """Wait until a file is written to disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Wait until the names in a folder are written to disk, where the system can."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
