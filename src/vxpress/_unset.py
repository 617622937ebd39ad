"""The default of arguments for which ``None`` has a separate meaning."""

from __future__ import annotations

from enum import Enum
from typing import Final


class Unset(Enum):
    """The type of ``UNSET``, which marks an argument that was not given."""

    token = "unset"

    def __repr__(self) -> str:
        return "<left out>"


UNSET: Final = Unset.token
