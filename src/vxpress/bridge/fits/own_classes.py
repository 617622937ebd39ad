"""Messages for a stored fit whose classes were registered from outside the package, and are missing or others here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vxpress.core.registry import BLOCKS, DECODERS, LIKELIHOODS, OBJECTIVES, PRIORS, NotRegisteredError, Registry


def missing_class(error: NotRegisteredError) -> str:
    """Return what to do about a class that a fit uses and that is not registered in this process."""
    return (
        f"The fit uses the {error.kind} {error.name!r}, which is not registered in this process. Import the module that "
        f"registers it, or register its class first: vx.extend.{error.function}({error.name!r}, ...)."
    )


def changed_class(stored: Mapping[str, Any], why: str) -> str | None:
    """Return what to do about an intact fit that cannot be read, if it uses classes from outside the package."""
    own = [f"{registry.kind} {name!r}" for registry, name in _names(stored) if registry.is_own(name)]
    if not own:
        return None
    why = why.removesuffix(": the fit is damaged").removesuffix(": the stored fit is damaged")
    return (
        f"The fit uses the {' and the '.join(own)}, and was made with another class of this name than the one registered in this "
        f"process: {why}. Register the class it was made with, or fit again: vx.tl.fit_vae(adata)."
    )


def _names(stored: Mapping[str, Any]) -> Iterator[tuple[Registry[Any], str]]:
    """Yield the names of the classes of a fit that could not be read."""
    params = _part(stored, "params")
    model, train = _part(params, "model"), _part(params, "train")
    yield LIKELIHOODS, str(model.get("likelihood"))
    yield PRIORS, str(_part(model, "prior").get("name"))
    yield DECODERS, str(model.get("decoder"))
    yield OBJECTIVES, str(train.get("objective"))
    yield from ((BLOCKS, str(name)) for name in np.asarray(model.get("blocks", ())).reshape(-1))


def _part(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = of.get(name)
    return found if isinstance(found, Mapping) else {}
