"""Sums over the processes of a machine in shared memory; here threads take the place of processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vxpress.core.parallel import World
from vxpress.core.parallel import exchange as exchange_module
from vxpress.core.parallel.exchange import Meeting, SharedExchange, can_share

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not can_share(), reason="needs /dev/shm of Linux")


class Threads:
    """What the threads have in common."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier, self.values = size, threading.Barrier(size), dict[int, Any]()

    def run(self, work: Callable[[Member], Any]) -> list[Any]:
        """Run work in every thread; return the results by rank, or raise an error of one of them."""
        found: dict[int, Any] = {}

        def body(rank: int) -> None:
            try:
                found[rank] = work(Member(self, rank))
            except Exception as error:  # noqa: BLE001 - raised below
                found[rank] = error

        threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        for value in found.values():
            if isinstance(value, Exception):
                raise value
        return [found[rank] for rank in range(self.size)]


class Member(World):
    """One of several threads."""

    def __init__(self, threads: Threads, rank: int) -> None:
        self.threads, self.rank, self.size = threads, rank, threads.size

    def gather(self, value: Any) -> list[Any]:
        self.threads.barrier.wait(10)
        self.threads.values[self.rank] = value
        self.threads.barrier.wait(10)
        return [self.threads.values[rank] for rank in range(self.size)]

    def agreed(self, value: Any) -> Any:
        return self.gather(value)[0]

    def barrier(self) -> None:
        self.threads.barrier.wait(10)

    def sum_(self, values: Tensor) -> Tensor:
        return values.copy_(sum(self.gather(values.clone())))


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("n", [1, 4, 1001])
def test_the_sum_is_that_of_all_messages_again_and_again(size: int, n: int) -> None:
    def work(world: Member) -> tuple[bool, list[Tensor]]:
        exchange = SharedExchange(world, world.barrier)
        message, found = exchange.zeros(n, torch.float32, CPU), []
        for turn in range(3):
            message.copy_(_message(world.rank, turn, n))
            exchange.sum_(message)
            found.append(message.clone())
            world.barrier()
        return bool(exchange.messages), found

    for shared, found in Threads(size).run(work):
        assert shared
        for turn, value in enumerate(found):
            torch.testing.assert_close(value, sum(_message(rank, turn, n) for rank in range(size)))
    assert not list(Path("/dev/shm").glob("vxpress-*"))


def _message(rank: int, turn: int, n: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(10 * rank + turn))


def test_without_room_in_one_process_all_of_them_send_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    created = exchange_module._created

    def second_has_no_room(path: Path, n_bytes: int) -> bool:
        return threading.current_thread().name != "second" and created(path, n_bytes)

    monkeypatch.setattr(exchange_module, "_created", second_has_no_room)

    def work(world: Member) -> tuple[bool, Tensor]:
        threading.current_thread().name = "second" if world.rank == 1 else "first"
        exchange = SharedExchange(world, world.barrier)
        message = exchange.zeros(3, torch.float32, CPU)
        message += world.rank + 1.0
        exchange.sum_(message)
        return bool(exchange.messages), message

    for shared, message in Threads(2).run(work):
        assert not shared
        assert message.tolist() == [3.0] * 3
    assert not list(Path("/dev/shm").glob("vxpress-*"))


@pytest.mark.parametrize("size", [2, 4])
def test_a_meeting_ends_when_all_are_there(size: int) -> None:
    arrived: list[int] = []

    def work(world: Member) -> list[int]:
        meeting = Meeting.of(world, 5.0)
        assert meeting is not None
        seen = []
        for _ in range(20):
            arrived.append(world.rank)
            ended = meeting.begin()
            assert ended()
            seen.append(len(arrived))
        world.barrier()
        for one in meeting.sockets:
            one.close()
        return seen

    for seen in Threads(size).run(work):
        assert all(n >= size * (turn + 1) for turn, n in enumerate(seen))


def test_a_meeting_without_one_process_has_not_ended_and_a_closed_connection_is_an_error() -> None:
    def work(world: Member) -> None:
        meeting = Meeting.of(world, 0.05)
        assert meeting is not None
        if world.rank == 0:
            ended = meeting.begin()
            assert not ended()
            world.barrier()
            world.barrier()
            with pytest.raises(ConnectionError):
                ended()
        else:
            world.barrier()
            meeting.sockets[0].close()
            world.barrier()
        for one in meeting.sockets:
            one.close()

    Threads(2).run(work)
