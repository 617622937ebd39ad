"""Latent blocks: the latent variables of a cell.  A new one is one class that is added to :data:`BLOCKS`."""

from __future__ import annotations

from collections.abc import ItemsView, ValuesView
from typing import cast

from torch import nn

from vxpress.core import registries
from vxpress.core.blocks.base import Block, DecoderInputs, NormalBlock, Point, Posterior, Slots
from vxpress.core.blocks.library import Library
from vxpress.core.blocks.state import State
from vxpress.core.config import ModelConfig
from vxpress.core.registry import Registry

Z = State.name
BLOCKS: Registry[type[Block]] = registries.BLOCKS
BLOCKS.register(State.name, State)
BLOCKS.register(Library.name, Library)


class Blocks(nn.ModuleDict):
    """The latent blocks of a model by name, in the order of the registry."""

    def __init__(self, config: ModelConfig, n_condition: int) -> None:
        chosen = {name: block for name, block in BLOCKS.items() if block.applies(config)}
        super().__init__({name: block(config, n_condition) for name, block in chosen.items()})

    def __getitem__(self, name: str) -> Block:
        return cast("Block", super().__getitem__(name))

    def items(self) -> ItemsView[str, Block]:
        return cast("ItemsView[str, Block]", super().items())

    def values(self) -> ValuesView[Block]:
        return cast("ValuesView[Block]", super().values())


__all__ = ["BLOCKS", "Block", "Blocks", "DecoderInputs", "NormalBlock", "Point", "Posterior", "Slots", "Z"]
