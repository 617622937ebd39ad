"""The further models of a fit in a stored fit: all settings once, and the weights of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vxpress.bridge.fits.codec import from_uns, to_uns
from vxpress.bridge.fits.weights import load_weights, stored_weights
from vxpress.core.config import ModelConfig
from vxpress.core.model import VAE

CONFIG = "model"


def stored_members(members: Sequence[VAE]) -> dict[str, Any]:
    """Return settings and weights of further models as nested mappings; empty if there are none."""
    if not members:
        return {}
    return {CONFIG: to_uns(members[0].config)} | {str(i): stored_weights(model) for i, model in enumerate(members, 2)}


def load_members(record: Mapping[str, Any], first: ModelConfig) -> tuple[VAE, ...]:
    """Build the further models of a record; raises ``ValueError`` unless they belong to a fit of the settings ``first``.

    They have no readout, and keep the prior that they were trained with if the fit gets another one.
    """
    if not record:
        return ()
    config = from_uns(ModelConfig, record[CONFIG])
    names = [str(i) for i in range(2, len(record) + 1)]
    found, expected = (replace(each, prior=first.prior, n_readout=0) for each in (config, first))
    if set(map(str, record)) != {CONFIG, *names} or found != expected:
        msg = "its further models do not match its settings"
        raise ValueError(msg)
    return tuple(load_weights(config, record[name]) for name in names)
