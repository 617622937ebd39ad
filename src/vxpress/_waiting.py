"""How idle threads wait: asleep rather than spinning.

The OpenMP runtime under torch lets idle threads spin for milliseconds, and the main thread spin for those that the
system has put aside: beside another busy program a fit of seconds takes minutes.  A thousand turns are what the runtime
itself allows once it knows of more threads than cores; it does not know of other programs, nor of numba's threads.
"""

from __future__ import annotations

import os
import sys

SPIN_COUNT = "1000"
# whoever set one of these has decided
DECIDED = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def let_idle_threads_sleep() -> None:
    """Ask for it in the environment, which the runtime reads once, when torch is first imported."""
    if "torch" not in sys.modules and not any(name in os.environ for name in DECIDED):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
