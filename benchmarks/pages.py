"""Make the tables and the figure of the documentation from ``benchmarks/results``.

    python benchmarks/pages.py            # write them into docs/benchmarks.md and docs/benchmarks/*.md
    python benchmarks/pages.py --check    # fail if the pages differ from the results

A page marks a table with two comments, ``<!-- table NAME -->`` and ``<!-- end of table -->``. The text between them
is replaced. A table that no code makes must be followed by a line with "Measured once on" and a date.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

# each registers its tables
from _tables import (  # noqa: F401
    annotation,
    combinations,
    covariates,
    dial,
    evaluation,
    fits,
    integration,
    kills,
    latent,
    modalities,
    null_batches,
    on_disk,
    perturbation,
    questions,
    ranks,
    searches,
    shallow,
    shuffle_buffer,
    speed,
    stability,
    summary,
    transport,
)
from _tables.registry import TABLES

DOCS = Path(__file__).parent.parent / "docs"
PAGES = (DOCS / "benchmarks.md", DOCS / "scaling.md", *sorted((DOCS / "benchmarks").glob("*.md")))
FIGURE = DOCS / "_static" / summary.FIGURE
MARKED = re.compile(r"<!-- table (\S+) -->\n.*?<!-- end of table -->", re.DOTALL)
TABLE = re.compile(r"^\|.*\n\|[\s:|-]+\n(?:\|.*\n?)+", re.MULTILINE)
ONCE = re.compile(r"\s*\{\.measured\}\n.*Measured once on \d{4}-\d{2}-\d{2}")
TEXTS = {"summary": summary.summary, "changes": summary.changes} | {name: made.text for name, made in TABLES.items()}


def filled(page: Path) -> str:
    """Return the page with its tables made again."""

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in TEXTS:
            message = f"{page.name}: no table is called {name!r}; the tables are {', '.join(sorted(TEXTS))}."
            raise SystemExit(message)
        return f"<!-- table {name} -->\n\n{TEXTS[name]()}\n\n<!-- end of table -->"

    return MARKED.sub(fill, page.read_text())


def undated(page: Path) -> list[str]:
    """Return the first lines of tables that neither come from code nor have a date."""
    text = MARKED.sub("", page.read_text())
    return [match.group().splitlines()[0] for match in TABLE.finditer(text) if not ONCE.match(text[match.end() :])]


def faults() -> list[str]:
    """Return what is wrong with the pages."""
    found = [
        f"{page.name}: tables differ from benchmarks/results" for page in PAGES if filled(page) != page.read_text()
    ]
    if summary.digest_of(FIGURE) != summary.digest():
        found.append(f"{FIGURE.name}: differs from benchmarks/results")
    for page in PAGES:
        found += [f"{page.name}: a table without code or date: {line}" for line in undated(page)]
    named = [name for page in PAGES for name in MARKED.findall(page.read_text())]
    found += [f"table {name!r} is on {named.count(name)} pages" for name in sorted(TEXTS) if named.count(name) != 1]
    return found


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, and fail if something differs")
    args = parser.parse_args()
    if not args.check:
        for page in PAGES:
            page.write_text(filled(page))
        if summary.digest_of(FIGURE) != summary.digest():
            summary.draw(FIGURE)
    found = faults()
    for fault in found:
        print(fault, file=sys.stderr)
    if found:
        hint = "run: python benchmarks/pages.py" if args.check else "edit the pages by hand"
        raise SystemExit(hint)


if __name__ == "__main__":
    main()
