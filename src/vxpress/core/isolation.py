"""Apart from the rest of the process: random draws, default device, and settings that torch keeps for all threads.

Modes of torch belong to the thread that enters them, so none of this is seen by other threads, except a
:class:`SharedSetting`, of which torch has one value for all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")

# functions that make a tensor on the default device; torch keeps such a list too, but not as public API
_FACTORIES = frozenset(
    getattr(torch, name)
    for name in (
        "arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones", "rand",
        "randint", "randn", "randperm", "range", "scalar_tensor", "sparse_coo_tensor", "sparse_csr_tensor", "tensor",
        "tril_indices", "triu_indices", "zeros",
    )
)  # fmt: skip


class on_device(TorchFunctionMode):  # noqa: N801 - used as a function
    """Within this block tensors are made on ``device`` unless another one is named, in this thread alone.

    As ``with torch.device(device)``, which also sets a variable of the whole process.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = self.device
        return func(*args, **kwargs)


class seeded(TorchDispatchMode):  # noqa: N801 - used as a function
    """Within this block every random operation that names no generator draws from one with this seed, on a processor.

    Same numbers as after ``torch.manual_seed(seed)``; the global generator is neither read nor changed, and other
    threads are not concerned.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if not _takes_generator(func):
            # randn, rand, randint, randperm: another overload takes one
            name = "generator" if func._overloadname == "default" else f"{func._overloadname}_generator"
            func = getattr(func.overloadpacket, name)
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Generator)]
        if not given:
            kwargs["generator"] = self.generator
        return func(*args, **kwargs)


def _takes_generator(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)


def after_interrupt() -> None:
    """Where work goes on after an interrupt: gradients are on again.

    An interrupt that falls between the two halves of ``torch.no_grad``, which are Python, leaves them off.
    """
    torch.set_grad_enabled(True)


class SharedSetting(Generic[T]):
    """A setting that torch has once for all threads: it has a value of ours while any block holds it.

    The first block that enters changes it, the last one that leaves, in whatever thread, puts back what was found; where it
    already is as it should be, nothing is ever set.
    """

    def __init__(self, read: Callable[[], T], write: Callable[[T], object], ours: T, *also: T) -> None:
        self.read, self.write, self.ours, self.as_good = read, write, ours, (ours, *also)
        self._forget()

    def _forget(self) -> None:
        self.lock = threading.RLock()
        self.holders: set[object] = set()
        self.found: list[T] = []

    def take(self, holder: object) -> None:
        """Hold the setting for ``holder``."""
        with self.lock:
            if not self.holders:
                found = self.read()
                self.found = [] if found in self.as_good else [found]
            self.holders.add(holder)
            if self.found:
                self.write(self.ours)

    def release(self, holder: object) -> None:
        """Let go of it; may be called twice, or without :meth:`take`."""
        with self.lock:
            self.holders.discard(holder)
            if self.holders or not self.found:
                return
            # who has set it since has the last word
            if self.read() == self.ours:
                self.write(self.found[0])
            self.found = []

    def after_fork(self) -> None:
        """In a forked process the threads that held it are gone, and the lock may be theirs for ever."""
        found = self.found
        self._forget()
        if found:
            self.write(found[0])

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it within this block."""
        holder = object()
        try:
            self.take(holder)
            yield
        finally:
            self.release(holder)
