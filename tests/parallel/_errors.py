"""What each of two processes runs: fits of which one fails in a single process, and errors that a script catches."""

from __future__ import annotations

import pickle
import sys
import time
from pathlib import Path

# of the folder of this script
from _fit import RANK, SMALL, cells  # type: ignore[import-not-found]

import vxpress as vx


def attempt(batch_key: str = "batch") -> tuple[str, float]:
    """Return the error of a fit, and how long it took."""
    start = time.monotonic()
    try:
        vx.tl.fit_vae(cells(), batch_key, **SMALL)
    except (KeyError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - start
    return "", time.monotonic() - start


def main(folder: Path) -> None:
    """Fit with an error in both processes, without, with one in the second process, and without again."""
    found = [attempt("nowhere"), attempt(), attempt("nowhere" if RANK == 1 else "batch"), attempt()]
    (folder / f"rank{RANK}.pkl").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
