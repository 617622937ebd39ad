"""Fail unless the version is the same wherever it stands, and the tag, if one is given, names it.

python scripts/check_version.py          # pyproject.toml and CITATION.cff agree
python scripts/check_version.py v0.1.0   # and so do the tag and a dated section of CHANGELOG.md
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def disagreements(tag: str | None) -> list[str]:
    """One line for each place that says otherwise than pyproject.toml."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = []
    if citation is None or citation[1] != version:
        found.append(f"CITATION.cff: version {citation and citation[1]}, pyproject.toml: {version}")
    if tag is None:
        return found
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, pyproject.toml asks for v{version}")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changes, flags=re.MULTILINE):
        found.append(f"CHANGELOG.md: no line '## [{version}] - YYYY-MM-DD'")
    return found


if __name__ == "__main__":
    lines = disagreements(sys.argv[1] if len(sys.argv) > 1 else None)
    print(*lines, sep="\n", file=sys.stderr)
    sys.exit(bool(lines))
