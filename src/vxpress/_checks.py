"""Checks of single arguments: a choice, a number in a range."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import get_args


def check_choice(name: str, value: object, choices: object) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the strings of a ``Literal``."""
    valid = get_args(choices)
    if value not in valid:
        msg = f"{name}={value!r} is not known; choose one of {', '.join(map(repr, valid))}."
        raise ValueError(msg)


def check_range(name: str, value: float, low: float, high: float, *, integer: bool = False) -> None:
    """Raise ``ValueError`` unless ``value`` is a number (with ``integer``, a whole number) from ``low`` to ``high``."""
    ok_type = isinstance(value, Integral if integer else Real) and not isinstance(value, bool)
    if not ok_type or not low <= value <= high:
        kind = "a whole number" if integer else "a number"
        if math.isfinite(low) and math.isfinite(high):
            kind += f" from {low:g} to {high:g}"
        elif math.isfinite(low) or math.isfinite(high):
            kind += f" of at least {low:g}" if math.isfinite(low) else f" of at most {high:g}"
        msg = f"{name}={value!r} was given; {kind} is expected."
        raise ValueError(msg)
