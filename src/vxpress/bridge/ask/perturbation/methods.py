"""The registered methods.  A new method is one class, registered here under its name; a new latent map is one by itself."""

from __future__ import annotations

from vxpress.bridge.ask.perturbation.additive import Additive
from vxpress.bridge.ask.perturbation.base import METHODS, Method
from vxpress.bridge.ask.perturbation.counterfactual import Counterfactual
from vxpress.bridge.ask.perturbation.floors import FLOORS
from vxpress.bridge.ask.perturbation.latent_map import ByLatentMap
from vxpress.core.maps import MAPS

METHODS.register("counterfactual", Counterfactual)
METHODS.register("additive", Additive)
for _floor in FLOORS:
    METHODS.register(_floor.name, _floor)


def find_method(name: object) -> type[Method]:
    """Return the method of this name; raises ``ValueError`` with all names if there is none."""
    if isinstance(name, str) and name in MAPS:
        return ByLatentMap.named(name)
    if not isinstance(name, str) or name not in METHODS:
        msg = f"method={name!r} is not known; choose one of {', '.join(map(repr, [*MAPS, *METHODS]))}."
        raise ValueError(msg)
    found: type[Method] = METHODS[name]
    return found
