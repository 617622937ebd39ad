"""Version and date of every measured number, and later changes that affect it.

``results/versions.json`` stores date, commit and release for every part of every results file. ``stamp`` writes it
when a script saves. ``CHANGES`` lists the changes of the code that affect numbers. A table is older than the code if
it was measured before a change that affects its kind of numbers.
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
    """A change of the package that affects numbers of some kinds: time of the commit, and effect."""

    date: str
    moves: frozenset[str]
    what: str
    effect: str


# the kinds: "likelihood", "latent" (space, clusters, mixing), "time" (of a fit), "genes" (which ones are chosen)
CHANGES = (
    Change(
        "2026-11-21T13:34:10+00:00",
        frozenset({"likelihood", "time"}),
        "dispersions are refitted at the end of a fit",
        "Held-out likelihoods are better and a fit takes 10 to 15 % longer; latent spaces and clusters are unchanged.",
    ),
    Change(
        "2026-11-21T16:40:32+00:00",
        frozenset({"genes"}),
        "genes are not chosen because of one or two cells",
        "`vx.pp.highly_variable_genes` chooses other genes; benchmarks with genes chosen by scanpy are unchanged.",
    ),
    Change(
        "2026-11-26T01:46:00+00:00",
        frozenset({"likelihood", "latent"}),
        "validation cells are drawn within batches",
        "Fits with `batch_key=` hold out other cells; nothing changes in expectation, and fits without batches are unchanged.",
    ),
    Change(
        "2026-11-26T08:55:00+00:00",
        frozenset({"likelihood", "latent", "time"}),
        "other defaults: 20 dimensions, layer norm, dropout .3, thinned encoder input, start at principal components, fewer epochs",
        'Default fits change throughout: likelihood, latent space and time. `preset="scvi"` is unchanged.',
    ),
    Change(
        "2026-11-26T11:57:00+00:00",
        frozenset({"likelihood", "latent"}),
        "the decoder's output starts at the mean differences between batches; less dropout and thinning for fewer than 1,000 genes",
        'Default fits with covariates, of fewer than 1,000 genes or of fewer than 500 cells change; `preset="likelihood"` and '
        '`"integration"` have other settings.',
    ),
    Change(
        "2026-11-26T22:55:00+00:00",
        frozenset({"time"}),
        "results do not depend on the number of threads",
        "Last digits of all fits change, as they did between numbers of threads. Times with several threads change; torch uses one.",
    ),
    Change(
        "2026-11-27T01:42:00+00:00",
        frozenset({"time"}),
        "denoising, the refit of dispersions, the diagnosis and the first layer are faster",
        "Fits are shorter, and last digits of compiled fits and of denoised layers change.",
    ),
    Change(
        "2026-11-27T01:40:00+00:00",
        frozenset({"time"}),
        "counts for the encoder are thinned in half the time",
        "Default fits have other random numbers, with the same distribution: they change as they would with another seed.",
    ),
)


@dataclass(frozen=True)
class Version:
    """Date, commit and release of a measurement."""

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
    """Return the version of the code now; ``+`` after the commit means uncommitted changes of the sources."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    if _git("status", "--porcelain", "--", "../src"):
        commit += "+"
    try:
        release = version("vxpress")
    except PackageNotFoundError:
        release = "unknown"
    return Version(datetime.now(UTC).isoformat(timespec="seconds"), commit, release)


def stamp(name: str, parts: Iterable[str] = ("",)) -> None:
    """Record that these parts of ``results/<name>.json`` were measured now; ``""`` means a file without parts."""
    known = json.loads(VERSIONS.read_text()) if VERSIONS.exists() else {}
    known.setdefault(name, {}).update({part: vars(here()) for part in parts if part != "machine"})
    VERSIONS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def oldest(sources: Iterable[tuple[str, str]]) -> Version:
    """Return the oldest version among pairs (file, part)."""
    known = json.loads(VERSIONS.read_text())
    return min((Version(**known[name][part]) for name, part in sources), key=lambda v: v.date)


def since(found: Version, kinds: Iterable[str]) -> list[str]:
    """Return the changes after a version that affect numbers of these kinds."""
    kinds = frozenset(kinds)
    return [change.what for change in CHANGES if change.moves & kinds and found.date < change.date]
