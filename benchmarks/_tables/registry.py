"""Tables of the documentation: rows, the results they are read from, and the line with command, version and date."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from _versions import RESULTS, oldest, since

Row = Sequence[str]
REPORTED = ("pbmc3k", "kang", "pbmc_3studies")


@cache
def results(name: str) -> Any:
    """Read ``results/<name>.json``."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def line(row: Row) -> str:
    """Format a row in Markdown, with unbroken spaces between a number and its unit or error."""
    return "| " + " | ".join(re.sub(r" (±) |(?<=\d) (%)", _unbroken, cell) for cell in row) + " |"


def _unbroken(match: re.Match[str]) -> str:
    return "&nbsp;±&nbsp;" if match.group(1) else "&nbsp;%"


@dataclass(frozen=True)
class Table:
    """A table of a page.

    ``sources`` are pairs of a file and a part of it (``""`` for a file without parts). ``kinds`` are the kinds of numbers,
    as in ``_versions.CHANGES``. ``note`` is a further reason why the table is older than the code.
    """

    make: Callable[[], list[Row]]
    sources: tuple[tuple[str, str], ...]
    command: str
    kinds: tuple[str, ...]
    note: str

    def text(self) -> str:
        """Return the table and the line below it in Markdown."""
        head, *rows = self.make()
        lines = [head, ["---"] * len(head), *rows]
        return "\n".join(line(row) for row in lines) + "\n\n" + self.age()

    def age(self) -> str:
        """Return command, version and date, and which later changes affect these numbers."""
        found = oldest(self.sources)
        why = [*since(found, self.kinds), *([self.note] if self.note else [])]
        badge = "{bdg-warning-line}`older than the code`" if why else "{bdg-success-line}`current`"
        text = f"{badge} `{self.command}`, release {found.release}, commit `{found.commit}`, {found.date[:10]}."
        if why:
            text += f" Since then: {'; '.join(why)}."
        return "{.measured}\n" + text


TABLES: dict[str, Table] = {}


def table(
    name: str, *sources: tuple[str, str], command: str, kinds: Iterable[str] = (), note: str = ""
) -> Callable[[Callable[[], list[Row]]], Callable[[], list[Row]]]:
    """Register a function that returns the header and the rows of a table."""

    def keep(make: Callable[[], list[Row]]) -> Callable[[], list[Row]]:
        TABLES[name] = Table(make, sources, command, tuple(kinds), note)
        return make

    return keep


def number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """Format a number with ``digits`` decimals, and commas if it is whole or has five digits."""
    text = f"{value:{'+' if sign else ''}{',' if digits == 0 or abs(value) >= 1e4 else ''}.{digits}f}"
    return text.replace("-", "+" if sign else "", 1) if float(text.replace(",", "")) == 0 else text


def ranged(low: float, high: float, digits: int = 2, *, sign: bool = False) -> str:
    """Format ``low to high``."""
    return f"{number(low, digits, sign=sign)}&nbsp;to&nbsp;{number(high, digits, sign=sign)}"


def spread(values: dict[str, float], digits: int = 2) -> str:
    """Format the median, with the range in brackets."""
    return f"{number(values['median'], digits)} ({ranged(values['min'], values['max'], digits)})"


def mean(values: Iterable[float]) -> float:
    """Compute the mean."""
    values = list(values)
    # sum() adds in another way from Python 3.12 on
    return math.fsum(values) / len(values)


def mean_range(values: Iterable[float], digits: int = 3) -> str:
    """Format the mean, with the range in brackets."""
    values = list(values)
    return f"{number(mean(values), digits)} ({ranged(min(values), max(values), digits)})"


def student(values: Sequence[float]) -> float:
    """Compute half the width of a 95 % interval of the mean by Student's t distribution."""
    from scipy import stats

    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def pick(rows: Iterable[dict[str, Any]], **wanted: object) -> list[dict[str, Any]]:
    """Select the records with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def one(rows: Iterable[dict[str, Any]], **wanted: object) -> dict[str, Any]:
    """Select the one record with these values."""
    (row,) = pick(rows, **wanted)
    return row
