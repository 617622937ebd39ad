"""The output layers of a decoder, as a likelihood and its output see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layers:
    """The linear maps from the features of a decoder to its outputs, and the tensors that the output keeps.

    ``location`` has one output per modelled gene, and possibly more (see :meth:`Output.width`). ``heads`` holds the
    further heads of the likelihood by name, and the dispersion if it depends on z; otherwise ``log_dispersion`` is one
    row or one row per category. ``readout`` belongs to the genes outside the model. ``kept`` holds the tensors of
    :meth:`Output.kept`, by name. ``anchored`` is True if cells have gene panels, see
    :mod:`vxpress.core.likelihoods.anchored_readout`.
    """

    n_genes: int
    location: nn.Linear
    heads: Mapping[str, nn.Linear]
    log_dispersion: Tensor | None = None
    readout: nn.Linear | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    anchored: bool = False

    @property
    def remainder(self) -> bool:
        """Whether the location has an output for everything outside the modelled genes."""
        return self.location.out_features > self.n_genes

    @torch.no_grad()
    def start_location(self, bias: Tensor) -> None:
        """Start the location at given values, with small weights, so that it depends little on z."""
        self.location.bias.copy_(bias)
        self.location.weight.mul_(SMALL)

    @torch.no_grad()
    def start_head(self, name: str, value: float) -> None:
        """Start a head at one value for all genes, with small weights."""
        self.heads[name].bias.fill_(value)
        self.heads[name].weight.mul_(SMALL)


# factor of the initial weights of a layer that starts at given values
SMALL = 0.1
