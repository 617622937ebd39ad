"""What the package uses of a MuData, without importing mudata: whoever passes one has imported it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol, Self, TypeGuard

import pandas as pd


class MuData(Protocol):
    """A ``mudata.MuData``: several AnnData objects, the modalities, whose cells overlap."""

    mod: Mapping[str, Any]
    obs: pd.DataFrame
    obsm: MutableMapping[str, Any]
    obsp: MutableMapping[str, Any]
    uns: MutableMapping[str, Any]
    obs_names: pd.Index
    n_obs: int
    n_vars: int
    var_names: pd.Index
    axis: int
    is_view: bool

    def copy(self) -> Self:
        """Return a copy in memory."""
        ...

    def __getattr__(self, name: str) -> Any: ...

    def __getitem__(self, index: Any) -> Self: ...


# for the reference pages, which link the type
MuData.__module__ = "mudata"


def is_mudata(value: object) -> TypeGuard[MuData]:
    """Return whether this is a MuData."""
    kind = getattr(sys.modules.get("mudata"), "MuData", None)
    return kind is not None and isinstance(value, kind)
