"""Names like one that was not found, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

# names shown for each name that was not found
SHOWN = 3
# difflib's ratio from which two names count as similar
ENOUGH = 0.65


def similar(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names like ``name``: equal but for case, then longer ones that begin with it, then others."""
    names = list(dict.fromkeys(map(str, known)))
    low = name.lower()
    same = [other for other in names if other.lower() == low]
    longer = sorted((other for other in names if low and other.lower().startswith(low)), key=len)
    close = difflib.get_close_matches(name, names, SHOWN, ENOUGH)
    return list(dict.fromkeys([*same, *longer, *close]))[:SHOWN]


def similar_names(unknown: Sequence[object], known: Iterable[str]) -> str:
    """Return a sentence, with a space in front, that lists names like the first three unknown ones; empty if there are none."""
    names = list(known)
    found = dict.fromkeys(other for name in unknown[:SHOWN] for other in similar(str(name), names))
    return f" Similar names: {', '.join(map(repr, found))}." if found else ""
