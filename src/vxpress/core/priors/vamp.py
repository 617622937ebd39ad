"""The variational mixture of posteriors (VampPrior)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vxpress.core.config import PriorConfig
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors.base import Encode, Examples
from vxpress.core.priors.components import ComponentPrior, conditional_k_means

# initial widening of components made of cells, as a share of the standard deviation of all posterior means
START_WIDENING = 0.3


class Vamp(ComponentPrior):
    """Mixture sum_k w_k q(z | u_k) of the encoder's posteriors of K pseudo-inputs (Tomczak & Welling 2018).

    The pseudo-inputs are learned in the input space of the encoder, log1p counts, and start at training cells. They are
    encoded without dropout, with norms in evaluation mode and with covariates at their average.

    If the prior is learned afterwards on a frozen model (``from_cells``), there are no pseudo-inputs. The
    components are then the posteriors of the training cells nearest to the centres of a k-means. They are widened by a
    normal distribution that is learned with the weights, because few narrow posteriors would leave gaps.
    """

    n_steps, learning_rate = 300, 1e-2
    # components made of cells are narrow, so many are needed
    alone_components = (500, 2)
    loc_kd: Tensor
    variance_kd: Tensor
    known_k: Tensor

    def __init__(self, config: PriorConfig, n_latent: int, n_inputs: int = 0) -> None:
        super().__init__(config, n_latent, n_inputs)
        self.encode: Encode | None = None
        if self.options.from_cells:
            self.register_buffer("loc_kd", torch.zeros(self.options.n_components, n_latent))
            self.register_buffer("variance_kd", torch.ones(self.options.n_components, n_latent))
            self.log_widening_d = nn.Parameter(torch.zeros(n_latent))
        else:
            self.pseudo_kg = nn.Parameter(torch.zeros(self.options.n_components, n_inputs))

    @classmethod
    def alone(cls, config: PriorConfig) -> PriorConfig:
        """Return settings with components made of cells, which do not need the encoder."""
        return replace(config, options=replace(config.options, from_cells=True))

    def bind(self, encode: Encode, known_k: Tensor) -> None:
        """Store the encoder and the number of categories: those added to a trained model must not change its prior."""
        if self.options.from_cells:
            return
        self.encode = encode
        self.register_buffer("known_k", known_k)

    def components(self) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations, each (k, d)."""
        if self.options.from_cells:
            return self.loc_kd, (self.variance_kd + (2.0 * self.log_widening_d).exp()).sqrt()
        assert self.encode is not None  # noqa: S101 - the model has bound its encoder
        q = self.encode(self.pseudo_kg, self.known_k)
        return q.loc, q.scale

    @torch.no_grad()
    def start_from(self, examples: Examples, rows: Tensor, generator: torch.Generator) -> None:
        """Start the pseudo-inputs at random training cells."""
        order = torch.randperm(len(rows), generator=generator)
        chosen = order[torch.arange(self.options.n_components) % len(order)].to(rows.device)
        self.pseudo_kg.copy_(examples(rows[chosen]))

    @torch.no_grad()
    def start_from_posteriors(self, q: DiagonalNormal, condition_n: Tensor | None, generator: torch.Generator) -> None:
        """Start from the posteriors of the cells nearest to the centres of a k-means."""
        centres, label_n = conditional_k_means(q.loc, condition_n, self.options.n_components, generator)
        chosen = torch.cdist(centres, q.loc).argmin(-1)
        self.loc_kd.copy_(q.loc[chosen])
        self.variance_kd.copy_(q.scale[chosen].square())
        self.log_widening_d.copy_((START_WIDENING * q.loc.std(0).clamp_min(1e-3)).log())
        self.start_weights(label_n, condition_n)
