"""What torch imports only when it is first needed, imported whole."""

from __future__ import annotations

import importlib
from contextlib import suppress

from vxpress._signals import interrupts_held


def import_for_optimizers() -> None:
    """Import what the first optimizer of ``torch.optim`` needs, which takes a second or two.

    Ctrl-C waits for it: an import that was cut short leaves modules by half, which fail whenever they are used again.
    """
    with interrupts_held(), suppress(ImportError):
        importlib.import_module("torch._dynamo")
