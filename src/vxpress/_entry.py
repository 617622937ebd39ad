"""Settings of torch and numpy around every public call: set those that the call needs, and restore the previous ones.

The calling code may have switched off gradients, changed the default dtype or the default device, or made numpy raise.
This does not change what a call computes, and all settings are restored, also after an error or an interrupt.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import fields
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch

from vxpress._lazy import read_annotations
from vxpress._similar import similar
from vxpress.core import rule, threads
from vxpress.core.forked import use_one_thread_if_forked
from vxpress.core.isolation import SharedSetting, on_device
from vxpress.core.settings import FitOptions

P = ParamSpec("P")
R = TypeVar("R")

_NUMPY_DEFAULT = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
# device types that have their own autocast settings
_AUTOCAST = ("cpu", "cuda")


def _float32_precisions() -> list[SharedSetting[Any]]:
    """Return the settings that allow rounding in float32 products, on a CPU and on a GPU."""
    flags = [torch.backends.mkldnn, torch.backends.cuda]
    matmuls = [cast("Any", flag).matmul for flag in flags if hasattr(flag, "matmul")]
    if all(hasattr(matmul, "fp32_precision") for matmul in matmuls) and len(matmuls) == len(flags):
        return [
            SharedSetting(
                functools.partial(getattr, matmul, "fp32_precision"),
                functools.partial(setattr, matmul, "fp32_precision"),
                "ieee",
                "none",
            )
            for matmul in matmuls
        ]
    # torch before 2.9 has one setting for all devices
    return [SharedSetting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest")]


_SHARED: tuple[SharedSetting[Any], ...] = (
    SharedSetting(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    *_float32_precisions(),
)


def _after_fork() -> None:
    for setting in _SHARED:
        setting.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    """Return numpy's default handling of floating-point errors; kinds that are ignored stay ignored."""
    return {kind: "ignore" if found[kind] == "ignore" else how for kind, how in _NUMPY_DEFAULT.items()}


class _Settings:
    """The settings of this thread and of the process before a call."""

    def __init__(self) -> None:
        self.gradients = torch.is_grad_enabled()
        self.autocast = [kind for kind in _AUTOCAST if torch.is_autocast_enabled(kind)]
        self.numpy: Any = np.geterr()
        self.modes = ExitStack()
        # restored at the end too: numba's threads, which umap starts, may change it, because both share OpenMP
        self.one_thread = threads.OneThread()

    def take(self) -> None:
        """Apply the settings of the package."""
        if use_one_thread_if_forked():
            from scanpy import logging as logg

            logg.info(
                "This process was forked, so one thread is used. With multiprocessing.get_context('spawn') or joblib's default "
                "backend, each process can use several threads."
            )
        self.one_thread.take()
        np.seterr(**_plain(self.numpy))
        if torch.is_inference_mode_enabled():
            self.modes.enter_context(torch.inference_mode(mode=False))
        if torch.get_default_device().type != "cpu":
            self.modes.enter_context(on_device("cpu"))
        for kind in self.autocast:
            torch.set_autocast_enabled(kind, False)  # noqa: FBT003 - torch's
        for setting in _SHARED:
            setting.take(self)
        torch.set_grad_enabled(True)

    def put_back(self) -> None:
        """Restore the previous settings; a second call has no effect."""
        for setting in _SHARED:
            setting.release(self)
        self.modes.close()
        for kind in self.autocast:
            torch.set_autocast_enabled(kind, True)  # noqa: FBT003 - torch's
        np.seterr(**self.numpy)
        torch.set_grad_enabled(self.gradients)
        self.one_thread.release()


def _check_keywords(function: Callable[..., Any], kwargs: Mapping[str, object]) -> None:
    """Raise ``TypeError`` for an argument that the function does not have, with the names it may be meant for."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in kwargs:
        if name not in parameters:
            known = {other: f"{other}=" for other in parameters if other != "adata"}
            if "options" in known:
                known = {
                    field.name: f"options=vx.tl.FitOptions({field.name}=...)" for field in fields(FitOptions)
                } | known
            meant = [known[other] for other in similar(name, known)]
            hint = f"Did you mean {' or '.join(meant)}?" if meant else f"It takes {', '.join(parameters)}."
            msg = f"{function.__name__}() got an unexpected keyword argument {name!r}. {hint}"
            raise TypeError(msg)


def entry(function: Callable[P, R]) -> Callable[P, R]:
    """Run a public function with the settings of the package, after a check of the names of its arguments.

    The annotations of a lazy AnnData are read into memory before.
    """

    @functools.wraps(function)
    def with_own_settings(*args: P.args, **kwargs: P.kwargs) -> R:
        _check_keywords(function, kwargs)
        settings = _Settings()
        try:
            settings.take()
            read_annotations((*args, *kwargs.values()))
            with rule.call():
                return function(*args, **kwargs)
        finally:
            try:
                settings.put_back()
            except BaseException:
                # interrupted while restoring
                settings.put_back()
                raise

    cast("Any", with_own_settings).with_own_settings = True
    return with_own_settings
