"""Maps from control to treated cells in the latent space.  A new map is one class, registered in :data:`MAPS` under its name."""

from __future__ import annotations

from vxpress.core import registry
from vxpress.core.maps.base import LatentMap, Move, Pair
from vxpress.core.maps.bures import Bures
from vxpress.core.maps.flow_matching import FlowMatching
from vxpress.core.maps.icnn import Icnn
from vxpress.core.maps.shift import Shift
from vxpress.core.maps.sinkhorn import Sinkhorn

MAPS: registry.Registry[type[LatentMap]] = registry.MAPS
MAPS.register("shift", Shift)
MAPS.register("bures", Bures)
MAPS.register("sinkhorn", Sinkhorn)
MAPS.register("icnn", Icnn)
MAPS.register("flow_matching", FlowMatching)

__all__ = ["MAPS", "LatentMap", "Move", "Pair"]
