"""Names of weights in a stored fit, and the conversion of weights to arrays and back.

Names in ``uns`` and in files do not change when the modules of the core move: this module alone knows both. Latent blocks that
were registered from outside are stored under their names in the core.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from vxpress.core.config import ModelConfig
from vxpress.core.model import VAE, build, expected_shapes

# beginnings of names in the core and in a stored fit
PREFIXES = (
    ("blocks.z.", ""),
    ("blocks.library.encoder.", "library_encoder."),
    ("blocks.library.", "library_"),
)
# the order in which weights are stored: that of their modules in the first release
ORDER = ("library_log_", "outside_share", "conditioner.", "encoder.", "library_encoder.", "decoder.", "prior.")
NOT_NEGATIVE = ("running_var", "library_log_var_b", "outside_share")


def stored_name(name: str) -> str:
    """Return the name under which a weight of the core is stored."""
    found = next(((core, stored) for core, stored in PREFIXES if name.startswith(core)), ("", ""))
    return found[1] + name[len(found[0]) :]


def stored_weights(model: VAE) -> dict[str, np.ndarray]:
    """Return copies of the weights of a model under their stored names."""
    weights = {stored_name(name): value.detach().cpu().numpy().copy() for name, value in model.state_dict().items()}
    return dict(sorted(weights.items(), key=lambda item: _place(item[0])))


def load_weights(config: ModelConfig, weights: Mapping[str, Any]) -> VAE:
    """Build a model with these weights, in evaluation mode; shapes are checked before anything is allocated."""
    names = {stored_name(name): (name, shape) for name, shape in expected_shapes(config).items()}
    expected = {stored: shape for stored, (_, shape) in names.items()}
    found = {str(name): tuple(np.shape(value)) for name, value in weights.items()}
    if found != expected:
        wrong = sorted(name for name in set(found) | set(expected) if found.get(name) != expected.get(name))[:5]
        msg = f"The stored weights do not match the stored settings (first: {wrong}): the fit is damaged."
        raise ValueError(msg)
    state = {names[str(name)][0]: _weight(str(name), value) for name, value in weights.items()}
    model = build(config, seed=0)
    model.load_state_dict(state)
    return model.eval()


def _place(name: str) -> int:
    return next((i for i, start in enumerate(ORDER) if name.startswith(start)), len(ORDER))


def _weight(name: str, value: Any) -> torch.Tensor:
    """Check a stored weight: single precision, finite, variances at least 0; counters are whole numbers."""
    array, counter = np.asarray(value), name.endswith("num_batches_tracked")
    # readers return scalars in double precision
    ok = array.dtype.kind == ("i" if counter else "f") and (array.ndim == 0 or counter or array.dtype.itemsize == 4)
    if not ok:
        msg = (
            f"the weight {name!r} is of type {array.dtype}; {'whole numbers are' if counter else 'float32 is'} expected"
        )
        raise ValueError(msg)
    if not np.isfinite(array).all():
        msg = f"the weight {name!r} holds values that are not finite numbers"
        raise ValueError(msg)
    if (array < 0).any() and (counter or name.endswith(NOT_NEGATIVE)):
        msg = f"the weight {name!r} holds values below 0"
        raise ValueError(msg)
    return torch.from_numpy(np.array(array, dtype=np.int64 if counter else np.float32))
