"""Isolation from the rest of the process: random draws, default device, and torch settings shared by all threads.

Modes of torch belong to the thread that enters them, so other threads are not affected. The exception is a
:class:`SharedSetting`, which torch stores once for all threads.
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

# functions that create a tensor on the default device; torch's own list is not public API
_FACTORIES = frozenset(
    getattr(torch, name)
    for name in (
        "arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones", "rand",
        "randint", "randn", "randperm", "range", "scalar_tensor", "sparse_coo_tensor", "sparse_csr_tensor", "tensor",
        "tril_indices", "triu_indices", "zeros",
    )
)  # fmt: skip


class on_device(TorchFunctionMode):  # noqa: N801 - used as a function
    """Within this block, create tensors on ``device`` unless another one is given; only in this thread.

    Like ``with torch.device(device)``, which however also sets a variable of the whole process.
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
    """Within this block, random operations without a generator use a CPU generator with this seed.

    They give the same numbers as after ``torch.manual_seed(seed)``, also for a tensor that is created on another device,
    for which they are drawn on the CPU. The global generator is neither read nor changed, and other threads are not
    affected.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Do not import torch's compiler, which takes more than a second and which nothing in such a block uses."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if not _takes_generator(func):
            # randn, rand, randint, randperm: another overload takes one
            name = "generator" if func._overloadname == "default" else f"{func._overloadname}_generator"
            func = getattr(func.overloadpacket, name)
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Generator)]
        if given:
            return func(*args, **kwargs)
        kwargs["generator"] = self.generator
        device = kwargs.get("device")
        if device is None or torch.device(device).type == "cpu":
            return func(*args, **kwargs)
        # the same numbers on every device: a CPU generator cannot draw elsewhere
        return func(*args, **(kwargs | {"device": torch.device("cpu"), "pin_memory": False})).to(device)


def _takes_generator(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)


def after_interrupt() -> None:
    """Enable gradients again when work continues after an interrupt.

    ``torch.no_grad`` is Python code: an interrupt between its entry and its exit code may leave gradients disabled.
    """
    torch.set_grad_enabled(True)


class SharedSetting(Generic[T]):
    """A setting that torch shares between all threads; it has our value while any block holds it.

    The first block that enters changes it. The last one that leaves, in any thread, restores the value found. If the
    setting is already as required, nothing is set.
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
        """Release the setting; may be called twice, or without :meth:`take`."""
        with self.lock:
            self.holders.discard(holder)
            if self.holders or not self.found:
                return
            # a value set by others in the meantime is kept
            if self.read() == self.ours:
                self.write(self.found[0])
            self.found = []

    def after_fork(self) -> None:
        """Reset the state in a forked process, in which the holding threads and the owner of the lock do not exist."""
        found = self.found
        self._forget()
        if found:
            self.write(found[0])

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the setting within this block."""
        holder = object()
        try:
            self.take(holder)
            yield
        finally:
            self.release(holder)
