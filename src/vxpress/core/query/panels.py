"""Add panels of genes to a trained model that it was not trained on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vxpress.core.model import VAE, build


def with_panels(model: VAE, added_pg: Tensor, outside_pg: Tensor) -> VAE:
    """Return a copy of a model with further panels, bool (panels, genes); for cells of known panels it gives the same results.

    ``outside_pg`` are the genes of the readout that they measured; it is not read if the model has no readout.
    """
    assert model.panels is not None  # noqa: S101 - the caller has a table of panels
    config = replace(model.config, n_panels=model.config.n_panels + len(added_pg))
    new = build(config, seed=0).to(model.decoder.location.weight.device)
    state = dict(model.state_dict())
    outside_pg = outside_pg[:, : config.n_readout]
    for name, more_pg in (("panels.measured_pg", added_pg), ("panels.outside_pg", outside_pg)):
        state[name] = torch.cat((state[name], more_pg.to(state[name])))
    new.load_state_dict(state)
    return new.eval()
