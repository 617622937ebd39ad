"""Latent blocks: the latent variables of a cell.  A new one is one class that is added to :data:`BLOCKS`."""

from __future__ import annotations

from collections.abc import ItemsView, ValuesView
from typing import cast

from torch import nn

from vxpress.core import registry
from vxpress.core.blocks.base import Block, DecoderInputs, NormalBlock, Point, Posterior, Slots
from vxpress.core.blocks.library import Library
from vxpress.core.blocks.state import State
from vxpress.core.config import ModelConfig

Z = State.name
BLOCKS: registry.Registry[type[Block]] = registry.BLOCKS
BLOCKS.register(State.name, State)
BLOCKS.register(Library.name, Library)


class Blocks(nn.ModuleDict):
    """The latent blocks of a model by name: those of the package in the order of the registry, then ``config.blocks``."""

    def __init__(self, config: ModelConfig, n_condition: int) -> None:
        # the order of draws does not depend on the order in which a process registers blocks
        order = *(name for name in BLOCKS if name not in config.blocks), *config.blocks
        chosen = {name: BLOCKS[name] for name in order if BLOCKS[name].applies(config)}
        super().__init__({name: block(config, n_condition) for name, block in chosen.items()})

    def __getitem__(self, name: str) -> Block:
        return cast("Block", super().__getitem__(name))

    def items(self) -> ItemsView[str, Block]:
        return cast("ItemsView[str, Block]", super().items())

    def values(self) -> ValuesView[Block]:
        return cast("ValuesView[Block]", super().values())


__all__ = ["BLOCKS", "Block", "Blocks", "DecoderInputs", "NormalBlock", "Point", "Posterior", "Slots", "Z"]
