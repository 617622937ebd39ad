"""The number of threads follows the machine."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vxpress.core import load


@pytest.fixture
def statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two processors whose idle hundredths of seconds a test sets, and the time of this process."""
    clock = {"at": 0.0, "own": 0.0}
    monkeypatch.setattr(load, "STATISTICS", tmp_path / "stat")
    monkeypatch.setattr(load, "_processors", lambda: {0, 2})
    monkeypatch.setattr(load.time, "perf_counter", lambda: clock["at"])
    monkeypatch.setattr(load.time, "process_time", lambda: clock["own"])
    tick = os.sysconf("SC_CLK_TCK")

    def advance(seconds: float, *, own: float, idle: tuple[float, float]) -> None:
        clock["at"] += seconds
        clock["own"] += own
        for k, more in enumerate(idle):
            passed[k] += more * tick
        first, second = (f"9 0 9 {int(p)} 0 3 0 0 0 0" for p in passed)
        (tmp_path / "stat").write_text(f"cpu  1 2 3 4\ncpu0 {first}\ncpu1 0 0 0 7 7 0\ncpu2 {second}\nintr 5\n")

    passed = [100.0, 100.0]
    advance(0.0, own=0.0, idle=(0, 0))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(load, "QUOTA", tmp_path / "absent")
    yield advance
    torch.set_num_threads(before)


def test_threads_are_those_of_torch_on_a_quiet_machine_and_fewer_next_to_other_programs(statistics) -> None:
    share = load.Share()
    assert share.n_threads() == 2
    statistics(1.0, own=1.6, idle=(0.2, 0.2))
    assert share.n_threads() == 2
    # two other programs: no processor is idle, and this process gets half of both
    statistics(1.0, own=1.0, idle=(0.0, 0.0))
    assert share.n_threads() == 1
    # too soon to look again
    statistics(0.1, own=0.1, idle=(0.0, 0.1))
    assert share.n_threads() == 1
    # the others have ended
    statistics(1.0, own=1.0, idle=(0.0, 1.0))
    assert share.n_threads() == 2


def test_without_statistics_the_threads_are_those_of_torch(statistics, tmp_path: Path) -> None:
    (tmp_path / "stat").unlink()
    share = load.Share()
    share.last = load._Look(-9.0, math.nan, 0.0)
    assert share.n_threads() == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 2), ("900000 100000", 2), ("what", 2)],
)
def test_a_container_limits_the_threads(statistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: int) -> None:  # fmt: skip
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(load, "QUOTA", tmp_path / "cpu.max")
    assert load.allowed() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not bind processes to processors")
def test_a_process_on_one_processor_uses_one_thread() -> None:
    code = "import os, torch; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); torch.set_num_threads(4); from vxpress.core import load; print(load.allowed())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


def test_a_look_at_this_machine_is_quick_and_sensible() -> None:
    share = load.Share()
    share.last = load._Look(time.perf_counter() - 1.0, load._idle() - 1.0, time.process_time())
    assert 1 <= share.n_threads() <= load.allowed()
