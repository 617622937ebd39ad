"""The blocks of these tests are registered while each runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vxpress.core.blocks import BLOCKS

from ._shift import Depth, Drawn, Shift


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    for block in (Shift, Drawn, Depth):
        BLOCKS.register(block.name, block, own=True)
    yield
    for block in (Shift, Drawn, Depth):
        BLOCKS.remove(block.name)
