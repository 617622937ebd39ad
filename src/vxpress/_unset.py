"""The value of an argument that was left out, where ``None`` has a meaning of its own."""

from __future__ import annotations

from enum import Enum
from typing import Final


class Unset(Enum):
    """Its one member stands for an argument that was left out."""

    token = "unset"

    def __repr__(self) -> str:
        return "<left out>"


UNSET: Final = Unset.token
