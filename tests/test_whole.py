"""Files that appear whole or not at all, and what a killed writer leaves behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vxpress._whole import remove_leftovers, whole

posix = pytest.mark.skipif(os.name == "nt", reason="locks and signals of POSIX")

WRITER = """
import pathlib, sys, time
from vxpress._whole import whole
with whole(pathlib.Path(sys.argv[1])) as new:
    if new.suffix == ".zarr":
        new.mkdir()
        new = new / "part"
    new.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def begun(target: Path) -> subprocess.Popen[str]:
    """A process that has begun to write ``target`` and does not come to an end."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    return writer


@posix
@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
def test_what_a_killed_writer_left_goes_with_the_next_write_and_a_living_one_keeps_its_own(
    tmp_path: Path, name: str
) -> None:
    killed, living = begun(tmp_path / name), begun(tmp_path / name)
    try:
        killed.kill()
        killed.wait()
        assert len(names(tmp_path)) == 2
        with whole(tmp_path / "other.txt") as new:
            new.write_text("whole")
        left = names(tmp_path)
        assert len(left) == 2
        assert "other.txt" in left
        assert living.poll() is None
    finally:
        living.kill()
        living.wait()
        for writer in (killed, living):
            assert writer.stdout is not None
            writer.stdout.close()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["other.txt"]


@posix
def test_a_folder_that_was_moved_away_when_its_writer_was_killed_comes_back(tmp_path: Path) -> None:
    part = tmp_path / f".a.zarr.{'0' * 16}.vxpress-part"
    for made in (part / "old", part / "a.zarr"):
        made.mkdir(parents=True)
        (made / "of").write_text(made.name)
    (part / "lock").touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.zarr"]
    assert (tmp_path / "a.zarr" / "of").read_text() == "old"


@posix
def test_what_was_left_while_it_was_being_removed_goes_too(tmp_path: Path) -> None:
    part = tmp_path / f".a.zarr.{'0' * 16}.vxpress-part"
    (part / "old" / "of").mkdir(parents=True)
    (part / "lock").touch()
    (tmp_path / "a.zarr").mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.zarr"]


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".a.h5ad.vxpress-part").write_text("a file")
    (tmp_path / f".a.h5ad.{'0' * 16}.vxpress-part").write_text("a file")
    (tmp_path / f".b.h5ad.{'0' * 16}.vxpress-part").mkdir()
    (tmp_path / f".b.h5ad.{'0' * 16}.vxpress-part" / "mine").write_text("no lock")
    (tmp_path / ".hidden").mkdir()
    before = names(tmp_path)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failed_write_or_check_leaves_what_was_there(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a.zarr"
    if kind == "folder":
        target.mkdir()
        (target / "old").write_text("old")
    else:
        target.write_text("old")

    def refuse() -> None:
        msg = "no"
        raise KeyError(msg)

    def write(check: object = None) -> None:
        with whole(target, *([check] if check else [])) as new:  # type: ignore[arg-type]
            new.write_text("new")
            if check is None:
                raise KeyboardInterrupt

    with pytest.raises(KeyError):
        write(refuse)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert names(tmp_path) == ["a.zarr"]
    assert (target / "old" if kind == "folder" else target).read_text() == "old"


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(PermissionError, match=r"a\.txt was not written"), whole(tmp_path / "a.txt"):
            pass
    finally:
        tmp_path.chmod(stat.S_IRWXU)


@posix
def test_a_full_disk_is_said_in_the_words_of_the_system(tmp_path: Path) -> None:
    import resource

    (tmp_path / "a.bin").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(OSError, match=r"a\.bin was not written: File too large"), whole(tmp_path / "a.bin") as new:
            new.write_bytes(b"x" * (2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"old"


def test_writers_of_one_place_do_not_disturb_each_other(tmp_path: Path) -> None:
    with whole(tmp_path / "a.txt") as first, whole(tmp_path / "a.txt") as second:
        first.write_text("first")
        second.write_text("second")
        time.sleep(0)
    assert (tmp_path / "a.txt").read_text() == "first"
    assert names(tmp_path) == ["a.txt"]
