"""What every public call does first and last: take the settings of torch and numpy that it needs, and put back those it found.

Code around a call may have switched off gradients, changed the default dtype or the default device, or let numpy raise.
None of it changes what a call computes, and nothing of it is lost, not even by an error or an interrupt.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch

from vxpress._waiting import let_idle_threads_sleep
from vxpress.core.forked import use_one_thread_if_forked
from vxpress.core.isolation import SharedSetting, on_device

P = ParamSpec("P")
R = TypeVar("R")

_NUMPY_DEFAULT = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
# those of which the settings are kept for each device type
_AUTOCAST = ("cpu", "cuda")


def _float32_precisions() -> list[SharedSetting[Any]]:
    """Whether float32 products may be rounded, on a processor and on a GPU."""
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
    # torch before 2.9 has one for all devices
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
    """What numpy does about floating-point errors unless asked otherwise; what was to be ignored stays ignored."""
    return {kind: "ignore" if found[kind] == "ignore" else how for kind, how in _NUMPY_DEFAULT.items()}


class _Settings:
    """The settings that were found, of this thread and of the process."""

    def __init__(self) -> None:
        self.gradients = torch.is_grad_enabled()
        self.autocast = [kind for kind in _AUTOCAST if torch.is_autocast_enabled(kind)]
        self.numpy: Any = np.geterr()
        self.modes = ExitStack()

    def take(self) -> None:
        """Take our own."""
        if use_one_thread_if_forked():
            from scanpy import logging as logg

            logg.info(
                "This process was forked: one thread is used. With multiprocessing.get_context('spawn'), or joblib's default "
                "backend, each process may use several."
            )
        if torch.get_num_threads() > 1:
            let_idle_threads_sleep()
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
        """Put back what was found; doing so twice does no harm."""
        for setting in _SHARED:
            setting.release(self)
        self.modes.close()
        for kind in self.autocast:
            torch.set_autocast_enabled(kind, True)  # noqa: FBT003 - torch's
        np.seterr(**self.numpy)
        torch.set_grad_enabled(self.gradients)


def entry(function: Callable[P, R]) -> Callable[P, R]:
    """Let a public function run with settings of its own."""

    @functools.wraps(function)
    def with_own_settings(*args: P.args, **kwargs: P.kwargs) -> R:
        settings = _Settings()
        try:
            settings.take()
            return function(*args, **kwargs)
        finally:
            try:
                settings.put_back()
            except BaseException:
                # an interrupt in the middle of it
                settings.put_back()
                raise

    cast("Any", with_own_settings).with_own_settings = True
    return with_own_settings
