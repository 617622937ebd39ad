"""Add panels of genes to a trained model that it was not trained on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vxpress.core.model import VAE, build


def with_panels(model: VAE, added_pg: Tensor) -> VAE:
    """Return a copy of a model with further panels, bool (panels, genes); for cells of known panels it gives the same results."""
    assert model.panels is not None  # noqa: S101 - the caller has a table of panels
    config = replace(model.config, n_panels=model.config.n_panels + len(added_pg))
    new = build(config, seed=0).to(model.decoder.location.weight.device)
    state = dict(model.state_dict())
    measured_pg = state["panels.measured_pg"]
    state["panels.measured_pg"] = torch.cat((measured_pg, added_pg.to(measured_pg)))
    new.load_state_dict(state)
    return new.eval()
