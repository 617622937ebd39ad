"""Maps from control to treated cells in the latent space.  A new map is one class, registered in :data:`MAPS` under its name."""

from __future__ import annotations

from vxpress.core import registry
from vxpress.core.maps.base import LatentMap, Move, Pair
from vxpress.core.maps.shift import Shift

MAPS: registry.Registry[type[LatentMap]] = registry.MAPS
MAPS.register("shift", Shift)

__all__ = ["MAPS", "LatentMap", "Move", "Pair"]
