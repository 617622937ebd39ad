"""Variational autoencoders of single-cell counts as scanpy steps."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vxpress import datasets, extend, io, metrics, pl, pp, tl
    from vxpress._save_load import load_model, save_model

__all__ = ["datasets", "extend", "io", "load_model", "metrics", "pl", "pp", "save_model", "tl"]

_MODULES = ("datasets", "extend", "io", "metrics", "pl", "pp", "tl")


def __getattr__(name: str) -> Any:
    # torch and scanpy are imported only when something that needs them is used
    if name in _MODULES:
        return import_module(f"vxpress.{name}")
    if name in ("load_model", "save_model"):
        return getattr(import_module("vxpress._save_load"), name)
    if name == "__version__":
        return import_module("importlib.metadata").version("vxpress")
    msg = f"module 'vxpress' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
