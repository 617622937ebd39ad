"""Seeds of random numbers, as arguments."""

from __future__ import annotations

from numbers import Integral

import numpy as np


def seed_of(rng: int | np.random.Generator | None, argument: str = "rng") -> np.random.Generator:
    """Return a numpy generator; raises ``ValueError`` if ``rng`` is not a seed."""
    if isinstance(rng, Integral) and rng >= 0:
        return np.random.default_rng(int(rng))
    if rng is None or isinstance(rng, np.random.Generator):
        return np.random.default_rng(rng)
    msg = f"{argument}={rng!r} was given; a whole number of at least 0, a numpy Generator or None is expected."
    raise ValueError(msg)
