"""An error in one of two processes that its script catches: the other one does not wait, and no further fit mixes their messages."""

from __future__ import annotations

import pickle
from pathlib import Path

from ._launch import torchrun


def test_an_error_that_one_process_catches(tmp_path: Path) -> None:
    _, output = torchrun("_errors.py", tmp_path)
    assert (tmp_path / "rank1.pkl").exists(), output
    both = [pickle.loads((tmp_path / f"rank{rank}.pkl").read_bytes()) for rank in range(2)]
    for in_all, none, alone, further in both:
        assert in_all[0].startswith("KeyError")
        # the same error in all processes does not prevent a further fit
        assert none[0] == ""
        assert "RankError: An error in one of the processes has ended a fit before" in further[0]
        assert further[1] < alone[1] + 30
    assert both[1][2][0].startswith("KeyError")
    error, seconds = both[0][2]
    assert error.startswith("RankError: Process 1 of 2")
    assert "has left the fit: KeyError" in error
    assert "'nowhere'" in error
    # far below the patience with a process that hangs
    assert seconds < 20
