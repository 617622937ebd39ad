"""Files and folders that appear whole or not at all, also where the writing process is killed.

What is being written lies in a hidden folder next to its target, which the writer holds a lock on.  The system gives the
lock back when the writer ends, however it ends, so the next write to the same place can tell what a killed process
left behind from what another one is still writing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: what a killed process left behind stays
    fcntl = None  # type: ignore[assignment]

PART = re.compile(r"\..+\.[0-9a-f]{16}\.vxpress-part")
LOCK, OLD = "lock", "old"


@contextmanager
def whole(target: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """A path to write to; what is written there replaces ``target`` when the block ends without an error.

    Where it ends with one, or ``check`` raises, which is called last, what was begun is removed and ``target`` is as it
    was.  A link to a file stays a link.  Raises ``OSError``, with the number that the system gave, where writing failed.
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
    """Let an error of the system, or of HDF5, name the file that was to be written and not the hidden one."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # HDF5 gives the number in words only
        words = re.search(r"errno = (\d+)", str(error))
        number = getattr(error, "errno", None) or (int(words[1]) if words else errno.EIO)
        why = (os.strerror(number) if words else getattr(error, "strerror", None) or str(error)).rstrip(".")
        msg = (
            f"{target} was not written: {why}. What was there before is as it was. Make room or choose another place, "
            "and write it again"
        )
        raise OSError(number, msg) from error


def remove_leftovers(place: Path) -> None:
    """Remove what writers that were killed left in a folder; what cannot be removed stays."""
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
        folder.rmdir()  # killed before it began; fails if there is anything inside
        return
    with (folder / LOCK).open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the writer lives
        if (folder / OLD).exists():
            # killed between the two moves of a folder: the old one goes back
            for name in [entry.name for entry in folder.iterdir() if entry.name not in (LOCK, OLD)]:
                if not (place / name).exists():
                    (folder / OLD).rename(place / name)
        _clear(folder)


def _clear(folder: Path) -> None:
    """Remove a folder, its lock last: without it nobody could tell later whose the rest is."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()
    (folder / LOCK).unlink(missing_ok=True)
    folder.rmdir()


def _locked_folder(target: Path) -> tuple[Path, IO[bytes] | None]:
    """A new hidden folder for what is to become ``target``, and the open file that holds its lock."""
    while True:
        folder = target.with_name(f".{target.name}.{secrets.token_hex(8)}.vxpress-part")
        folder.mkdir(mode=0o700)
        if fcntl is None:
            return folder, None
        try:
            lock = (folder / LOCK).open("xb")
        except FileNotFoundError:
            continue  # another writer took the folder, still without a lock, for a leftover
        # where there are no locks nobody will remove it either
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / LOCK).exists():
            return folder, lock
        lock.close()


def _move(new: Path, target: Path, old: Path) -> None:
    if not target.is_dir():
        new.replace(target)
        return
    # no system call replaces a folder by another: for a moment there is none
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise


def flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
