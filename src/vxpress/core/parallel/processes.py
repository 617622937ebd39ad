"""Several processes, which exchange messages through torch.distributed: NCCL on GPUs, gloo on processors."""

from __future__ import annotations

import atexit
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vxpress.core.parallel.current import within
from vxpress.core.parallel.exchange import Exchange, Meeting, SharedExchange, can_share
from vxpress.core.parallel.interrupts import HeldInterrupts
from vxpress.core.parallel.signs import EVERY, LOST, VARIABLE, Signs
from vxpress.core.parallel.world import SINGLE, RankError, World

T = TypeVar("T")

# torch's own limits, which cannot distinguish a long computation from a process that hangs; see :mod:`.signs`
FOREVER = timedelta(days=100)
# seconds of waiting until the reports of the others are read
UNCONCERNED = 5.0
# characters of an error that the other processes report
MOST_CHARACTERS = 500
# a step on a GPU never takes this long
STEP_ON_DEVICE = timedelta(seconds=60)


def open_world(kind: str) -> World:
    """Connect the processes that the environment names, for computations on this kind of device."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = _store(rank, size)
    signs = Signs(store, rank, size)
    _arrive(store, signs, kind)
    if not dist.is_initialized():
        dist.init_process_group(
            "gloo", store=dist.PrefixStore(f"group {kind}", store), rank=rank, world_size=size, timeout=FOREVER
        )
        messages = dist.group.WORLD
    else:
        # of the calling script, whose limits are not ours
        messages = dist.new_group(backend="gloo", timeout=FOREVER)
    atexit.register(_leave)
    on_device = dist.new_group(backend="nccl", timeout=STEP_ON_DEVICE) if kind == "cuda" else messages
    return Processes(rank, size, signs, messages, on_device)


def _store(rank: int, size: int) -> dist.Store:
    """Connect to the store of the launcher; the first process creates it if the launcher has none."""
    of_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(
            address, port, size, is_master=rank == 0 and not of_launcher and not dist.is_initialized(),
            timeout=timedelta(seconds=60), wait_for_workers=False, multi_tenant=True,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        msg = f"Process {rank} of {size} cannot connect to {address}:{port} (MASTER_ADDR, MASTER_PORT): {error}"
        raise RankError(msg) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"vxpress {attempt}", store)


def _arrive(store: dist.Store, signs: Signs, kind: str) -> None:
    """Wait until every process is here."""
    store.set(f"here {kind}/{signs.rank}", "")
    keys = [f"here {kind}/{rank}" for rank in range(signs.size)]
    signs.begin("all processes to start")
    while not store.check(keys):
        if said := signs.missing():
            raise _lost_process(said)
        time.sleep(0.02)
    signs.end()


_lost = False


def _lost_process(said: str) -> RankError:
    """Return the error for a process that is lost."""
    global _lost  # noqa: PLW0603 - of this process
    _lost = True
    return RankError(
        f"{said} The fit was ended. Look for the first error in the output of that process; if it only needs longer, set "
        f"{VARIABLE} to more seconds."
    )


def _leave() -> None:
    """End the process now if another one is lost: the connections to it would wait for it before they are closed."""
    if _lost:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


class Processes(World):
    """The processes of a launcher; waiting ends with :class:`RankError` if one of them is lost."""

    def __init__(self, rank: int, size: int, signs: Signs, messages: Any, on_device: Any) -> None:
        self.rank, self.size, self.signs = rank, size, signs
        self.messages, self.on_device = messages, on_device
        self.interrupts = HeldInterrupts()
        self.meeting: Meeting | None = None
        self.tried = self.failed = False

    @contextmanager
    def fit(self) -> Iterator[None]:
        if self.failed:
            self._wait_until_all_left()
        self.signs.enter()
        try:
            yield
        except BaseException as error:
            self.failed = True
            self.signs.leave(LOST if _lost else f"{type(error).__name__}: {error}"[:MOST_CHARACTERS])
            raise
        self.failed = False
        self.signs.leave("")

    def _wait_until_all_left(self) -> None:
        """Wait until all processes have left the fit that failed here; raise unless none of them lost another one."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        signs = self.signs
        signs.begin("the others to leave the fit before")
        while not _lost and not all(signs.left(rank) for rank in others):
            if said := signs.gone():
                raise _lost_process(said)
            time.sleep(EVERY / 4)
        signs.end()
        if _lost or LOST in map(signs.left, others):
            msg = "An error in one of the processes has ended a fit before, so they share no further one. Start them again."
            raise RankError(msg)

    def sum_(self, values: Tensor) -> Tensor:
        if values.device.type == "cuda":
            dist.all_reduce(values, group=self.on_device)
        else:
            self._wait(lambda: _end_of(dist.all_reduce(values, group=self.messages, async_op=True)), "a sum")
        return values

    def exchange(self) -> Exchange:
        if not self.tried:
            self.tried = True
            self.meeting = Meeting.of(self, EVERY / 2) if all(self.gather(can_share())) else None
        meeting = self.meeting
        if meeting is None:
            return Exchange(self)
        return SharedExchange(self, lambda: self._wait(meeting.begin, "a step"))

    def copy_(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            sent = tensor.detach().cpu().contiguous()
            self._send(sent, 0)
            if not self.first and (sent.data_ptr() != tensor.data_ptr() or not tensor.is_contiguous()):
                with torch.no_grad():
                    tensor.copy_(sent)

    def collect_(self, arrays: Iterable[np.ndarray]) -> None:
        for array in arrays:
            for rank in range(self.size):
                start, stop = len(array) * rank // self.size, len(array) * (rank + 1) // self.size
                if stop > start:
                    part = np.ascontiguousarray(array[start:stop])
                    self._send(torch.from_numpy(part), rank)
                    if rank != self.rank:
                        array[start:stop] = part

    def gather(self, value: T) -> list[T]:
        return [self._sent(value, rank) for rank in range(self.size)]

    def once(self, make: Callable[[], T]) -> T:
        outcome: tuple[bool, Any] | None = None
        if self.first:
            try:
                with self.interrupts.at_once(), within(SINGLE):
                    outcome = True, make()
            except RankError:
                raise
            except (Exception, KeyboardInterrupt) as error:
                self._sent((False, _picklable(error)), 0)
                raise
        good, found = self._sent(cast("tuple[bool, Any]", outcome), 0)
        if isinstance(found, KeyboardInterrupt):
            self.interrupt()
        if not good:
            raise found
        return cast("T", found)

    def agreed(self, value: T) -> T:
        return self._sent(value, 0)

    def any(self, flag: bool) -> bool:  # noqa: FBT001 - the only argument
        return bool(self.sum_(torch.tensor([float(flag)]))[0] > 0)

    def barrier(self) -> None:
        self.any(flag=False)

    def interrupts_held(self) -> AbstractContextManager[object]:
        return self.interrupts

    @property
    def interrupted(self) -> bool:
        return bool(self.interrupts.pending)

    def interrupt(self) -> NoReturn:
        self.interrupts.take()
        raise KeyboardInterrupt

    def raise_if_interrupted(self) -> None:
        if self.any(self.interrupted):
            self.interrupt()

    def _sent(self, value: T, sender: int) -> T:
        """Return the value of one process; its own one is returned unchanged."""
        mine = self.rank == sender
        packed = np.frombuffer(pickle.dumps(value), np.uint8) if mine else np.empty(0, np.uint8)
        length = torch.tensor([len(packed)])
        self._send(length, sender)
        memory = torch.from_numpy(packed.copy()) if mine else torch.empty(int(length), dtype=torch.uint8)
        self._send(memory, sender)
        return value if mine else cast("T", pickle.loads(memory.numpy().tobytes()))

    def _send(self, memory: Tensor, sender: int) -> None:
        what = f"process {sender}"
        source = dist.get_global_rank(self.messages, sender)
        self._wait(lambda: _end_of(dist.broadcast(memory, source, group=self.messages, async_op=True)), what)

    def _wait(self, start: Callable[[], Callable[[], bool]], what: str) -> None:
        """Start an exchange and wait for its end, asking for it again and again; Python handles signals in between."""
        signs, began = self.signs, time.monotonic()
        signs.begin(what)
        try:
            ended = start()
            while not ended():
                if time.monotonic() - began > UNCONCERNED and (said := signs.missing()):
                    raise _lost_process(said)
        except RankError:
            raise
        except (RuntimeError, OSError) as error:
            raise _lost_process(signs.lost()) from error
        finally:
            signs.end()


def _end_of(work: Any) -> Callable[[], bool]:
    """Return a function that waits for a moment, and returns whether an exchange has ended, or raises its error."""

    def ended() -> bool:
        try:
            work.wait(timedelta(seconds=EVERY / 2))
        except RuntimeError:
            if work.is_completed():
                raise
            return False
        return True

    return ended


def _picklable(error: BaseException) -> BaseException:
    """Return an error that another process can raise: itself, or one with the same message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - of any class
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
