"""How much processor time the control groups of this process allow, as containers and batch systems set it on Linux.

A container with two processors usually sees all those of the machine; only its quota says that it may use two. A group
with a quota may be within another, so every group up to the root counts, in both versions of control groups.
"""

from __future__ import annotations

import functools
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")


@dataclass(frozen=True)
class Group:
    """A control group that can have a quota: files with the quota (time and period), and one with the time used."""

    quota: tuple[Path, ...]
    usage: Path | None
    per_second: float

    def processors(self) -> float:
        """Return how many processors the group may use; infinity without a quota."""
        try:
            words = [word for file in self.quota for word in file.read_text(encoding="ascii").split()]
            limit, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):
            # "max" is not a number
            return math.inf
        return limit / period if limit > 0 and period > 0 else math.inf

    def used(self) -> float:
        """Return the seconds of processor time that the group has used; NaN if unknown."""
        if self.usage is None:
            return math.nan
        try:
            words = self.usage.read_text(encoding="ascii").split()
            return int(words[words.index("usage_usec") + 1 if "usage_usec" in words else 0]) / self.per_second
        except (OSError, ValueError, IndexError):
            return math.nan


@functools.cache
def groups(root: Path = ROOT) -> tuple[Group, ...]:
    """Find the control groups of this process that can have a quota, the innermost first; none on other systems."""
    try:
        own = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    # the path of this process for every controller; that of version 2 has no name
    paths = {name: path for _, names, path in (line.split(":", 2) for line in own) for name in names.split(",")}
    found: list[Group] = []
    for line in mounts:
        top, point, kind, options = _mount(line)
        name = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
        if name is None or name not in paths or (name and name not in options.split(",")):
            continue
        for folder in _folders(root, _decoded(top), _decoded(point), paths[name]):
            if kind == "cgroup2":
                found.append(Group((folder / "cpu.max",), folder / "cpu.stat", 1e6))
            else:
                files = folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
                # used time is known if the controller that counts it has the same groups
                usage = _counting(root, mounts, folder.relative_to(root / _decoded(point)[1:]))
                found.append(Group(files, usage if paths.get("cpuacct") == paths["cpu"] else None, 1e9))
    return tuple(group for group in found if all(file.exists() for file in group.quota))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=groups.cache_clear)


def _mount(line: str) -> tuple[str, str, str, str]:
    """Return what part of which tree is mounted, where, its kind, and its options; empty if the line has another form."""
    before, _, after = line.partition(" - ")
    # fields are separated by single blanks, because some are empty, such as the source of some file systems
    first, second = before.split(" "), after.split(" ")
    return (first[3], first[4], second[0], second[2]) if len(first) > 4 and len(second) > 2 else ("", "", "", "")


def _folders(root: Path, top: str, point: str, path: str) -> list[Path]:
    """Return the folders of a group and of those around it, where ``top`` of the tree of groups is mounted at ``point``."""
    here = root / point[1:]
    # a container may see the path of the machine, but only its own part of the tree
    within = PurePosixPath(path).is_relative_to(top) and ".." not in path
    parts = PurePosixPath(path).relative_to(top).parts if within else ()
    return [here.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def _counting(root: Path, mounts: list[str], group: Path) -> Path | None:
    """Return the file with the used time of a group of version 1."""
    for line in mounts:
        _, point, kind, options = _mount(line)
        if kind == "cgroup" and "cpuacct" in options.split(","):
            return root / _decoded(point)[1:] / group / "cpuacct.usage"
    return None


def _decoded(text: str) -> str:
    """Replace the codes of blanks in a path."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
