"""Complete imports of modules that torch imports only when they are first needed."""

from __future__ import annotations

import importlib
from contextlib import suppress

from vxpress._signals import interrupts_held


def import_for_optimizers() -> None:
    """Import the modules that the first optimizer of ``torch.optim`` needs, which takes a second or two.

    Ctrl-C is held until the import ends: an interrupted import leaves half-imported modules, which fail in later use.
    """
    with interrupts_held(), suppress(ImportError):
        importlib.import_module("torch._dynamo")
