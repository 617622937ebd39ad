"""Which code and which day a number is from, and what has changed since.

``results/versions.json`` holds, for every part of every file of results, the date, the commit and the release it was
measured with. ``stamp`` writes it whenever a script saves. ``CHANGES`` lists what has changed numbers since: a table is
older than the code where it was measured before a change that moves what it shows.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
VERSIONS = RESULTS / "versions.json"


@dataclass(frozen=True)
class Change:
    """A change of the package that moves numbers of some kinds: the time of its commit, and what it does to them."""

    date: str
    moves: frozenset[str]
    what: str
    effect: str


# the kinds: "likelihood", "latent" (space, clusters, mixing), "time" (of a fit), "genes" (which ones are chosen)
CHANGES = (
    Change(
        "2026-11-21T13:34:10+00:00",
        frozenset({"likelihood", "time"}),
        "a fit ends by fitting the dispersions once more",
        "Held-out likelihoods are better and a fit takes 10 to 15 % longer; latent spaces and clusters are the same.",
    ),
    Change(
        "2026-11-21T16:40:32+00:00",
        frozenset({"genes"}),
        "genes are not chosen for what one or two cells hold",
        "`vx.pp.highly_variable_genes` chooses other genes; benchmarks that choose genes as scanpy does are the same.",
    ),
    Change(
        "2026-11-26T01:46:00+00:00",
        frozenset({"likelihood", "latent"}),
        "validation cells are drawn within batches",
        "Fits with `batch_key=` hold out other cells; nothing changes in expectation, and fits without batches are the same.",
    ),
)


@dataclass(frozen=True)
class Version:
    """Where a number comes from."""

    date: str
    commit: str
    release: str


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=RESULTS.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def here() -> Version:
    """The code as it is now; a ``+`` after the commit where the sources were changed since."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    if _git("status", "--porcelain", "--", "../src"):
        commit += "+"
    try:
        release = version("vxpress")
    except PackageNotFoundError:
        release = "unknown"
    return Version(datetime.now(UTC).isoformat(timespec="seconds"), commit, release)


def stamp(name: str, parts: Iterable[str] = ("",)) -> None:
    """Note that these parts of ``results/<name>.json`` were measured now; ``""`` is a file without parts."""
    known = json.loads(VERSIONS.read_text()) if VERSIONS.exists() else {}
    known.setdefault(name, {}).update({part: vars(here()) for part in parts if part != "machine"})
    VERSIONS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def oldest(sources: Iterable[tuple[str, str]]) -> Version:
    """The oldest version among parts of files, each a pair (file, part)."""
    known = json.loads(VERSIONS.read_text())
    return min((Version(**known[name][part]) for name, part in sources), key=lambda v: v.date)


def since(found: Version, kinds: Iterable[str]) -> list[str]:
    """What has changed numbers of these kinds after a version."""
    kinds = frozenset(kinds)
    return [change.what for change in CHANGES if change.moves & kinds and found.date < change.date]
