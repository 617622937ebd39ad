"""Who is missing, as those see it that wait."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from vxpress.core.parallel import signs as signs_module
from vxpress.core.parallel.signs import Signs


class Shared:
    """A store in memory."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)


class Watched:
    """A process that waits, with a clock that the test moves, and the reports of the other one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int = 2) -> None:
        self.now, self.store = 0.0, Shared()
        clock = SimpleNamespace(monotonic=lambda: self.now, process_time=lambda: 0.0)
        monkeypatch.setattr(signs_module, "time", clock)
        monkeypatch.setattr(Signs, "_run", lambda _: None)
        self.signs = Signs(self.store, 0, size)
        self.signs.begin("a sum")

    def heard(self, count: int, worked: float, waits_for: str = "", rank: int = 1) -> str:
        """Return what is found after another second with this report of the other process."""
        self.now += 1.0
        self.store.set(f"sign/{rank}", json.dumps(["node7", count, worked, waits_for]))
        return self.signs.missing()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.delenv(signs_module.VARIABLE, raising=False)
    return Watched(monkeypatch)


def test_a_process_that_works_is_waited_for_however_long(watched: Watched) -> None:
    assert [watched.heard(i, 0.5 * i) for i in range(500)] == [""] * 500


def test_a_process_that_stops_to_report_is_named_with_its_machine(watched: Watched) -> None:
    watched.heard(1, 0.0)
    found = [watched.heard(1, 0.0) for _ in range(30)]
    assert found[:24] == [""] * 24
    assert found[-1] == "Process 1 of 2 on node7 has given no sign of life for 25 s."


def test_a_process_that_reports_but_does_nothing_is_missing(watched: Watched) -> None:
    # the thread that reports needs a little time of the processor, too
    found = [watched.heard(i, 0.001 * i) for i in range(30)]
    assert found[20] == ""
    assert "neither worked nor waited" in found[-1]


def test_processes_that_wait_for_each_other_are_found(watched: Watched) -> None:
    found = [watched.heard(i, 0.0, "process 1") for i in range(60)]
    assert found[45] == ""
    assert found[-1] == "All processes wait for each other: process 0 for a sum, process 1 for process 1."


def test_a_process_that_has_left_the_fit_with_an_error_is_named_with_it(watched: Watched) -> None:
    for number, why in enumerate(("KeyError: 'batch' is no column.", "")):
        watched.signs.enter()
        assert watched.heard(2 * number, 0.0) == ""
        watched.store.set(f"left {number + 1}/1", why or "complete")
        expected = "Process 1 of 2 on node7 has left the fit: KeyError: 'batch' is no column." if why else ""
        assert watched.heard(2 * number + 1, 0.0) == expected
        # what is exchanged between fits does not depend on how the last one ended
        watched.signs.leave(why)
        assert watched.heard(2 * number + 1, 0.0) == ""


def test_a_process_that_never_started_is_missing(watched: Watched) -> None:
    watched.now = 24.0
    assert watched.signs.missing() == ""
    watched.now = 26.0
    assert watched.signs.missing() == "Process 1 of 2 has not started within 25 s."


def test_patience_is_a_variable_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(signs_module.VARIABLE, "3.5")
    watched = Watched(monkeypatch)
    watched.heard(1, 0.0)
    assert [bool(watched.heard(1, 0.0)) for _ in range(5)] == [False, False, False, True, True]
    monkeypatch.setenv(signs_module.VARIABLE, "soon")
    with pytest.raises(RuntimeError, match=r"VXPRESS_RANK_TIMEOUT='soon'.*number of seconds"):
        Watched(monkeypatch)
