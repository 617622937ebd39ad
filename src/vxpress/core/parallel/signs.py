"""Signs of life: every process reports what it is doing, and those that wait find out who does not come.

A process that ends closes its connections, which the others notice at once. One that hangs does not. So a thread of each
process counts up in a store that all can read, with the seconds that the processor has worked for it. If a process has
waited for some seconds for others, it watches their reports. Missing is a process that has not reported, or that neither
works nor waits, for :func:`patience` seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import Protocol

# seconds between two reports, and seconds of work below which a process has done nothing
EVERY, NOTHING = 2.0, 0.1
# why a process has left a fit: it is complete, or another process is lost
COMPLETE, LOST = "complete", "it lost another process"
VARIABLE, PATIENCE = "VXPRESS_RANK_TIMEOUT", 25.0


class Store(Protocol):
    """Keys and values that all processes can read, as torch's ``TCPStore``."""

    def set(self, key: str, value: str, /) -> None:
        """Write a value."""

    def get(self, key: str, /) -> bytes:
        """Read a value, and wait for it."""

    def check(self, keys: list[str], /) -> bool:
        """Return whether all of these keys have values."""


def patience() -> float:
    """Return after how many seconds without a sign of life a process counts as lost."""
    found = os.environ.get(VARIABLE, "")
    try:
        return float(found) if found else PATIENCE
    except ValueError as error:
        msg = f"{VARIABLE}={found!r} is set; a number of seconds is expected."
        raise RuntimeError(msg) from error


@dataclass
class Report:
    """The last report of a process, and when it changed, by the clock of the reader."""

    where: str
    count: int
    worked: float
    waits_for: str
    heard: float
    busy: float


class Signs:
    """Reports of this process, and what is known of the others."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.patience = patience()
        self.waits_for = ""
        self.known: dict[int, Report] = {}
        self.began = 0.0
        self.count, self.fit, self.within_fit = 0, 0, False
        self.where = socket.gethostname()
        self.over = threading.Event()
        self.report()
        threading.Thread(target=self._run, name="vxpress-signs", daemon=True).start()

    def _run(self) -> None:
        while not self.over.wait(EVERY):
            # a store that is gone means that its process is: the others notice by their connections
            with contextlib.suppress(Exception):
                self.report()

    def report(self) -> None:
        """Write a report."""
        self.count += 1
        self.store.set(f"sign/{self.rank}", json.dumps([self.where, self.count, time.process_time(), self.waits_for]))

    def begin(self, what: str) -> None:
        """Begin to wait for the others, who are expected to do ``what``."""
        self.waits_for, self.began, self.known = what, time.monotonic(), {}

    def end(self) -> None:
        """Stop waiting."""
        self.waits_for = ""

    def enter(self) -> None:
        """Begin the next fit."""
        self.fit += 1
        self.within_fit = True

    def leave(self, why: str) -> None:
        """Report that this process has left the fit: because of an error, or with an empty text at its end."""
        self.within_fit = False
        with contextlib.suppress(Exception):
            self.store.set(f"left {self.fit}/{self.rank}", why or COMPLETE)

    def left(self, rank: int) -> str:
        """Return why a process has left the current fit, or :data:`COMPLETE`; empty if it is still in it."""
        key = f"left {self.fit}/{rank}"
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def missing(self) -> str:
        """Read the reports; return in a sentence who is missing, or nothing."""
        for rank in range(self.size) if self.within_fit else ():
            if rank != self.rank and (why := self.left(rank)) not in ("", COMPLETE):
                return f"{self._name(rank)} has left the fit: {why.rstrip('.')}."
        return self.gone()

    def gone(self) -> str:
        """Return in a sentence who has not reported, hangs, or waits for something that does not come, or nothing."""
        self._read()
        now = time.monotonic()
        for rank in range(self.size):
            if rank == self.rank:
                continue
            last = self.known.get(rank)
            if last is None:
                if now - self.began > self.patience:
                    return f"Process {rank} of {self.size} has not started within {self.patience:.0f} s."
                continue
            if now - last.heard > self.patience:
                return f"{self._name(rank)} has given no sign of life for {self.patience:.0f} s."
            if not last.waits_for and now - last.busy > self.patience:
                return f"{self._name(rank)} has neither worked nor waited for the others for {self.patience:.0f} s."
        waiting = {rank: last.waits_for for rank, last in self.known.items()}
        if now - self.began > 2 * self.patience and len(waiting) == self.size - 1 and all(waiting.values()):
            known = {self.rank: self.waits_for} | waiting
            each = ", ".join(f"process {rank} for {what}" for rank, what in sorted(known.items()))
            return f"All processes wait for each other: {each}."
        return ""

    def lost(self) -> str:
        """Return in a sentence which processes have stopped to report; waits until all that live must have reported."""
        self.known = {}
        self._read()
        before = {rank: last.count for rank, last in self.known.items()}
        time.sleep(2 * EVERY + 0.5)
        self._read()
        gone = [rank for rank in range(self.size) if rank != self.rank and rank not in self.known]
        gone += [rank for rank, last in self.known.items() if last.count == before.get(rank)]
        if not gone:
            return "The connection to another process was lost."
        return " ".join(f"{self._name(rank)} has ended." for rank in sorted(gone))

    def _name(self, rank: int) -> str:
        where = f" on {self.known[rank].where}" if rank in self.known else ""
        return f"Process {rank} of {self.size}{where}"

    def _read(self) -> None:
        now = time.monotonic()
        for rank in range(self.size):
            if rank == self.rank or not self.store.check([f"sign/{rank}"]):
                continue
            where, count, worked, waits_for = json.loads(self.store.get(f"sign/{rank}"))
            last = self.known.get(rank)
            if last is None:
                self.known[rank] = Report(where, count, worked, waits_for, now, now)
                continue
            if count != last.count:
                last.count, last.heard = count, now
            if waits_for or worked > last.worked + NOTHING:
                last.worked, last.busy = worked, now
            last.waits_for = waits_for
