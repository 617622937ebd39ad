"""A device that is simulated on the processor, to find what a GPU would not take.

Its tensors say that they are elsewhere (on torch's device ``meta``) and hold their values here. An operation that mixes them with
tensors of the processor raises an error, as does reading their memory. Within :func:`captured`, so does all that waits for a device:
reading a value, copying to or from it, and results whose shape depends on values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE, HERE = torch.device("meta"), torch.device("cpu")
UNKNOWN = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
IN_PLACE = ("aten::squeeze_", "aten::unsqueeze_", "aten::t_", "aten::transpose_", "aten::resize_")
MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor)

_captured = False


class SimulatedError(RuntimeError):
    """A device would not take this."""


@contextmanager
def captured() -> Iterator[None]:
    """Within this block, nothing may wait for the device."""
    global _captured  # noqa: PLW0603 - one device
    _captured = True
    try:
        yield
    finally:
        _captured = False


@contextmanager
def simulated_device() -> Iterator[torch.device]:
    """Within this block, the device is there."""
    with patch.object(torch, "Generator", _Generator), _Makers(), _Dispatch():
        yield ELSEWHERE


def value(tensor: Tensor) -> Tensor:
    """Return what a tensor of the device holds."""
    assert isinstance(tensor, _Elsewhere)
    return tensor.held


def _waits(what: str) -> None:
    if _captured:
        msg = f"{what} waits for the device"
        raise SimulatedError(msg)


class _Generator(torch.Generator):
    """A generator of the processor that says it is elsewhere."""

    where: torch.device

    def __new__(cls, device: Any = "cpu") -> Self:
        made = super().__new__(cls, device="cpu")  # type: ignore[call-arg]
        made.where = torch.device(device)
        return made

    def manual_seed(self, seed: int) -> _Generator:
        super().manual_seed(seed)
        return self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.where


class _Elsewhere(Tensor):
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Self:
        made: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), dtype=held.dtype, layout=held.layout, device=ELSEWHERE
        )
        made.held = held.detach()
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"elsewhere({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.numpy, Tensor.__array__, Tensor.data_ptr):
            msg = f"{func.__name__} of a tensor that is elsewhere"
            raise SimulatedError(msg)
        if func == Tensor.tolist:
            _waits("tolist")
            return args[0].held.tolist()
        if func in (torch.matmul, Tensor.matmul, Tensor.__matmul__) and (args[0].ndim, args[1].ndim) == (1, 2):
            return torch.mv(args[1].t(), args[0])  # otherwise torch changes a shape in place
        if func == Tensor.quantile:
            return _Elsewhere(args[0].held.quantile(*args[1:], **(kwargs or {})))  # as above
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            args[0].held = args[1].held
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Makers(TorchFunctionMode):
    """Tensors of Python numbers are made here and sent."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in MAKERS and kwargs.get("device") is not None:
            return func(*args, **(kwargs | {"device": HERE})).to(kwargs["device"])
        return func(*args, **kwargs)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the processor, and say where its result is."""
    name, tensors = func._schema.name, [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, _Elsewhere)]
    here = [x for x in tensors if not isinstance(x, _Elsewhere) and x.dim() > 0]
    result_there = bool(there)
    if kwargs.get("device") is not None:
        result_there = torch.device(kwargs["device"]) == ELSEWHERE
        kwargs = {**kwargs, "device": HERE}
        if tensors and result_there != bool(there):
            _waits(f"{name}, a copy,")
    elif name == "aten::copy_":
        result_there = isinstance(args[0], _Elsewhere)
        if len(there) == 1:
            _waits("a copy")
    elif there:
        _check(func, name, args, there, here)
    wrappers = {id(x.held): x for x in there}
    found = func(*tree_map(_held, args), **tree_map(_held, kwargs))

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor) or not result_there:
            return x
        return wrappers[id(x)] if id(x) in wrappers else _Elsewhere(x)

    return tree_map(wrapped, found)


def _check(func: Any, name: str, args: Any, there: list[_Elsewhere], here: list[Tensor]) -> None:
    indices = [x for x in args[1] if isinstance(x, Tensor)] if name in INDEXED else []
    if here and not indices:
        msg = (
            f"{name} of two devices: {[tuple(x.shape) for x in there]} elsewhere, {[tuple(x.shape) for x in here]} here"
        )
        raise SimulatedError(msg)
    if here or any(x.dtype == torch.bool for x in indices):
        _waits(f"{name} at such indices")
    if name not in INDEXED and any(tag in func.tags for tag in UNKNOWN):
        _waits(name)
    if name in IN_PLACE:
        msg = f"{name} is not simulated"
        raise NotImplementedError(msg)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, _Elsewhere) else x
