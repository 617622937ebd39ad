"""How the message of every step is summed over the processes: through shared memory if all are on one machine.

torch sends messages between processes of one machine through the network stack, which takes a third of a step of two
processes. Memory that both can read and write needs two passes, and a signal before and after them.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vxpress.core.parallel.world import World

FOLDER = Path("/dev/shm")


class Exchange:
    """Memory for the messages of a training, and their sum over all processes."""

    def __init__(self, world: World) -> None:
        self.world = world

    def zeros(self, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the memory; collective, and called once."""
        return torch.zeros(n, dtype=dtype, device=device)

    def sum_(self, message: Tensor) -> None:
        """Replace the message, in that memory, by the sum of those of all processes."""
        self.world.sum_(message)


class SharedExchange(Exchange):
    """The same in memory that all processes share; each of them adds up a part of the message for all."""

    def __init__(self, world: World, meet: Callable[[], None]) -> None:
        super().__init__(world)
        self.meet = meet
        self.messages: list[Tensor] = []

    def zeros(self, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        n_bytes, name = n * dtype.itemsize, f"vxpress-{secrets.token_hex(8)}"
        names = self.world.gather(name if device.type == "cpu" and _created(FOLDER / name, n_bytes) else "")
        own = FOLDER / name
        try:
            if not all(names):
                return super().zeros(n, dtype, device)
            self.messages = [torch.frombuffer(_mapped(FOLDER / other, n_bytes), dtype=dtype) for other in names]
            # all have it before its name disappears
            self.world.barrier()
        finally:
            own.unlink(missing_ok=True)
        self.part = self.world.part(n)
        self.total = torch.empty(self.part.stop - self.part.start, dtype=dtype)
        return self.messages[self.world.rank]

    def sum_(self, message: Tensor) -> None:
        if not self.messages:
            super().sum_(message)
            return
        self.meet()
        parts = [other[self.part] for other in self.messages]
        torch.add(parts[0], parts[1], out=self.total)
        for other in parts[2:]:
            self.total += other
        for other in parts:
            other.copy_(self.total)
        self.meet()


def _created(path: Path, n_bytes: int) -> bool:
    """Reserve shared memory under a name; False if there is too little."""
    try:
        # for this user alone
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return False
    return True


def _mapped(path: Path, n_bytes: int) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), n_bytes)


def can_share() -> bool:
    """Whether this system has what a shared exchange needs."""
    return sys.platform == "linux" and FOLDER.is_dir()


class Meeting:
    """A point that all processes of a machine reach: each signals to the first one, which then signals to all."""

    def __init__(self, sockets: list[socket.socket], *, first: bool) -> None:
        self.sockets, self.first = sockets, first
        self.missing: list[socket.socket] = []

    @classmethod
    def of(cls, world: World, seconds: float) -> Meeting | None:
        """Connect the processes; None, in all of them, if they are not on one machine. A wait gives up after ``seconds``."""
        # of Linux: a name without a file
        address = world.agreed(f"\0vxpress-{secrets.token_hex(8)}")
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(socket.socket(socket.AF_UNIX)) if world.first else None
            if server is not None:
                server.bind(address)
                server.listen(world.size)
            world.barrier()
            sockets = [] if world.first else [stack.enter_context(socket.socket(socket.AF_UNIX))]
            try:
                for one in sockets:
                    one.connect(address)
                connected = True
            except OSError:
                connected = False
            if not all(world.gather(connected)):
                return None
            if server is not None:
                sockets = [stack.enter_context(server.accept()[0]) for _ in range(world.size - 1)]
                server.close()
            for one in sockets:
                one.settimeout(seconds)
            stack.pop_all()
        return cls(sockets, first=world.first)

    def begin(self) -> Callable[[], bool]:
        """Signal that this process is here; return :meth:`ended`."""
        self.missing = list(self.sockets)
        if not self.first:
            self._signal()
        return self.ended

    def ended(self) -> bool:
        """Wait a moment; return whether all are here."""
        while self.missing:
            try:
                found = self.missing[-1].recv(1)
            except TimeoutError:
                return False
            if not found:
                msg = "A process has closed its connection."
                raise ConnectionError(msg)
            self.missing.pop()
        if self.first:
            self._signal()
        return True

    def _signal(self) -> None:
        for one in self.sockets:
            one.sendall(b"1")
