"""The number of free processors."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vxpress.core import load
from vxpress.core.quota import Group


@dataclass
class Machine:
    """A machine of four processors; this process may use those with the numbers 0 and 2."""

    folder: Path
    at: float = 100.0
    idle: dict[int, float] = field(default_factory=lambda: dict.fromkeys(range(4), 50.0))
    busy: dict[int, float] = field(default_factory=lambda: dict.fromkeys(range(4), 10.0))
    own: dict[int, float] = field(default_factory=lambda: {0: 5.0})
    used: float = 30.0
    low: float = 0.0
    """Time of programs of low priority, on each processor."""

    def write(self, *, running: int | None = 1) -> None:
        """Write the statistics as the system does, in hundredths of seconds."""
        tick = os.sysconf("SC_CLK_TCK")
        lines = [
            f"cpu{k} {round(self.busy[k] * tick)} {round(self.low * tick)} 0 {round(self.idle[k] * tick)} 0 0 0 0 77 77"
            for k in self.idle
        ]
        more = [] if running is None else [f"procs_running {running}"]
        (self.folder / "stat").write_text("\n".join(["cpu  1 2 3 4", *lines, "intr 5 6", *more, ""]))
        (self.folder / "cpu.stat").write_text(f"usage_usec {round(self.used * 1e6)}\n")

    def passes(self, seconds: float, *, own: float, idle: tuple[float, float], running: int = 9) -> None:
        """Let time pass; ``own`` and ``idle`` are processors, the latter of both that this process may use."""
        self.at += seconds
        self.own[0] += own * seconds
        for k in self.idle:
            share = dict(zip((0, 2), idle, strict=True)).get(k, 0.0)
            self.idle[k] += share * seconds
            self.busy[k] += (1.0 - share) * seconds
        self.write(running=running)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    made.write()
    monkeypatch.setattr(load, "STATISTICS", tmp_path / "stat")
    monkeypatch.setattr(load, "_bound_to", lambda: {0, 2})
    monkeypatch.setattr(load, "_own", lambda: dict(made.own))
    monkeypatch.setattr(load.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(load.quota, "groups", lambda: ())
    monkeypatch.setattr(load.os, "getpriority", lambda *_: 0)
    monkeypatch.setattr(load.time, "perf_counter", lambda: made.at)
    monkeypatch.setattr(load, "_of_thread", load._OfThread())
    return made


def begun(machine: Machine, running: int | None) -> int:
    """The number of free processors at the start of a call."""
    machine.write(running=running)
    load.begin()
    return load.free()


@pytest.mark.parametrize(("running", "expected"), [(1, 2), (3, 2), (4, 1), (5, 1), (90, 1), (None, 2)])
def test_programs_that_run_at_the_start_of_a_call_count_at_once(machine: Machine, running: int, expected: int) -> None:
    assert begun(machine, running) == expected


def test_what_is_free_is_what_is_idle_and_what_the_computation_uses(machine: Machine) -> None:
    assert begun(machine, 1) == 2
    machine.passes(0.2, own=1.6, idle=(0.2, 0.2))
    assert load.free() == 2
    # two other programs: no processor is idle, and this process gets half of both
    machine.passes(1.0, own=1.0, idle=(0.0, 0.0))
    assert load.free() == 1
    # too soon to look again
    machine.passes(0.1, own=0.1, idle=(1.0, 0.9))
    assert load.free() == 1
    # the others have ended
    machine.passes(1.0, own=1.0, idle=(0.0, 1.0))
    assert load.free() == 2


@pytest.mark.parametrize(("own", "expected"), [(0, 2), (-5, 2), (10, 1)])
def test_programs_of_lower_priority_make_room(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, own: int, expected: int
) -> None:
    monkeypatch.setattr(load.os, "getpriority", lambda *_: own)
    begun(machine, 1)
    machine.low += 0.9
    machine.passes(1.0, own=1.0, idle=(0.0, 0.0))
    assert load.free() == expected


def test_a_wrong_guess_at_the_start_is_mended_soon(machine: Machine) -> None:
    assert begun(machine, 9) == 1
    machine.passes(0.05, own=0.5, idle=(1.0, 0.0))
    assert load.free() == 1
    machine.passes(0.06, own=0.5, idle=(1.0, 0.5))
    assert load.free() == 2


def test_a_call_soon_after_another_knows_the_load(machine: Machine) -> None:
    begun(machine, 1)
    machine.passes(0.3, own=0.7, idle=(0.0, 0.0))
    assert load.free() == 1
    machine.passes(0.1, own=0.0, idle=(0.0, 0.0), running=1)
    load.begin()
    assert load.free() == 1
    # later it looks anew
    machine.passes(5.0, own=0.0, idle=(0.0, 0.0), running=1)
    load.begin()
    assert load.free() == 2


def test_threads_that_help_count_as_the_computation(machine: Machine) -> None:
    begun(machine, 1)
    # one that started since the last look, with all its time
    machine.own[7] = 0.5
    machine.passes(0.5, own=1.0, idle=(0.0, 0.0))
    assert load.free() == 2
    # it ends, and no other thread takes its place
    machine.own[7] += 0.4
    machine.passes(0.5, own=1.0, idle=(0.0, 0.0))
    assert load.free() == 2
    del machine.own[7]
    machine.passes(0.5, own=1.0, idle=(0.0, 0.0))
    assert load.free() == 1


def test_other_threads_of_the_process_do_not_count_as_the_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    helps, works, ends = threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr(load, "_clocks", set())

    def spend(seconds: float) -> None:
        start = time.thread_time()
        while time.thread_time() - start < seconds:
            pass

    def help_() -> None:
        load.count_this_thread()
        spend(0.02)
        helps.set()
        ends.wait()

    def work() -> None:
        spend(0.2)
        works.set()

    before = load._own()
    threads = [threading.Thread(target=f) for f in (help_, work)]
    for thread in threads:
        thread.start()
    helps.wait()
    works.wait()
    spend(0.02)
    after = load._own()
    ends.set()
    for thread in threads:
        thread.join()
    assert 0.04 <= sum(after.values()) - sum(before.values()) < 0.15
    # the system may take a moment to end the thread
    for _ in range(500):
        if set(load._own()) == {0}:
            break
        time.sleep(0.01)
    assert not load._clocks


@pytest.mark.parametrize("what", ["no file", "no processor", "another processor", "zeros", "text"])
def test_where_the_system_does_not_say_it_all_are_free(machine: Machine, what: str) -> None:
    text = {
        "no processor": "cpu 1 2 3 4\nprocs_running 7\n",
        "another processor": "cpu0 9 9 9 9 9 9 9 9\ncpu1 9 9 9 9 9 9 9 9\nprocs_running 7\n",
        "zeros": "cpu0 0 0 0 0 0 0 0 0\ncpu2 0 0 0 0 0 0 0 0\nprocs_running 7\n",
        "text": "\u00e9",
    }.get(what)
    file = machine.folder / "stat"
    file.unlink() if text is None else file.write_text(text, encoding="utf-8")
    load.begin()
    assert load.free() == 2
    machine.at += 1.0
    assert load.free() == 2


def test_statistics_that_stand_still_say_nothing(machine: Machine) -> None:
    begun(machine, 1)
    machine.at += 1.0
    machine.write(running=9)
    assert load.free() == 2


def test_a_process_bound_to_other_processors_meanwhile_is_looked_at_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(machine, 1)
    monkeypatch.setattr(load, "_bound_to", lambda: {1, 2, 3})
    machine.passes(1.0, own=0.5, idle=(0.0, 0.0))
    assert load.free() == 2
    machine.passes(1.0, own=0.5, idle=(0.0, 0.0))
    assert load.free() == 1


@pytest.fixture
def contained(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give the process of a machine with many idle processors a quota."""
    monkeypatch.setattr(load, "_bound_to", lambda: set(range(4)))

    def limit(text: str) -> None:
        (machine.folder / "cpu.max").write_text(text)
        group = Group((machine.folder / "cpu.max",), machine.folder / "cpu.stat", 1e6)
        monkeypatch.setattr(load.quota, "groups", lambda: (group,))

    return limit


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100000 100000", 1), ("50000 100000", 1), ("150000 100000", 1), ("200000 100000", 2), ("max 100000", 4)],
)
def test_a_container_limits_the_threads(machine: Machine, contained: Any, text: str, expected: int) -> None:
    contained(text)
    assert load.processors() == expected
    assert begun(machine, 1) == expected


def test_programs_of_the_same_container_count(machine: Machine, contained: Any) -> None:
    """They use up the quota while processors of the machine are idle."""
    contained("200000 100000")
    for k in machine.idle:
        machine.idle[k] += 99.0
    assert begun(machine, 1) == 2
    machine.used += 2.0
    machine.passes(1.0, own=1.0, idle=(0.9, 0.9))
    assert load.free() == 1
    machine.used += 1.8
    machine.passes(1.0, own=1.7, idle=(0.9, 0.9))
    assert load.free() == 2
    # a quota that changes
    contained("300000 100000")
    machine.used += 1.9
    machine.passes(1.0, own=1.9, idle=(0.9, 0.9))
    assert load.free() == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not bind processes to processors")
def test_a_process_on_one_processor_uses_one_thread() -> None:
    code = (
        "import os, torch; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); torch.set_num_threads(4)\n"
        "from vxpress.core import threads\nwith threads.OneThread(): print(threads.number())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


def test_a_look_at_this_machine_is_sensible() -> None:
    load.begin()
    assert 1 <= load.free() <= load.processors()
    now = load._look()
    assert (
        now.free_since(load._Look(now.at - 1.0, now.processors, 1, now.idle, now.counted, 1, now.own, now.groups)) >= 1
    )
    assert math.isnan(now.running) or now.running >= 1
