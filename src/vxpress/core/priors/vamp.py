"""The variational mixture of posteriors (VampPrior)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from vxpress.core.config import PriorConfig
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors.components import ComponentPrior, conditional_k_means

if TYPE_CHECKING:
    from vxpress.core.data import Source
    from vxpress.core.vae import VAE

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

    def __init__(self, config: PriorConfig, n_latent: int) -> None:
        super().__init__(config, n_latent)
        self.__dict__["model"] = None
        if self.options.from_cells:
            self.register_buffer("loc_kd", torch.zeros(self.options.n_components, n_latent))
            self.register_buffer("variance_kd", torch.ones(self.options.n_components, n_latent))
            self.log_widening_d = nn.Parameter(torch.zeros(n_latent))

    @classmethod
    def alone(cls, config: PriorConfig) -> PriorConfig:
        """Return settings with components made of cells, which do not need the encoder."""
        return replace(config, options=replace(config.options, from_cells=True))

    def bind(self, model: VAE) -> None:
        """Store the model for its encoder, without registering it in torch: it is not a part of the prior."""
        if self.options.from_cells:
            return
        self.__dict__["model"] = model
        if not hasattr(self, "pseudo_kg"):
            self.pseudo_kg = nn.Parameter(torch.zeros(self.options.n_components, model.config.n_genes))
            # categories that are added to a trained model later must not change its prior
            self.register_buffer("known_k", torch.tensor(model.config.n_categories, dtype=torch.float32))

    def components(self) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations, each (k, d)."""
        if self.options.from_cells:
            return self.loc_kd, (self.variance_kd + (2.0 * self.log_widening_d).exp()).sqrt()
        model = cast("VAE", self.__dict__["model"])
        encoder, training = model.encoder, model.encoder.training
        encoder.eval()
        try:
            s_kc: Tensor | None = None
            if model.config.encode_covariates and model.conditioner.width:
                s_kc = model.conditioner.average(self.known_k).to(self.pseudo_kg).expand(len(self.pseudo_kg), -1)
            q = encoder.after_first(encoder.product_of(self.pseudo_kg, s_kc), s_kc)
        finally:
            encoder.train(training)
        return q.loc, q.scale

    @torch.no_grad()
    def start_from(self, model: VAE, cells: Source, rows: Tensor, generator: torch.Generator) -> None:
        """Start the pseudo-inputs at random training cells."""
        order = torch.randperm(len(rows), generator=generator)
        chosen = order[torch.arange(self.options.n_components) % len(order)].to(rows.device)
        self.pseudo_kg.copy_(cells.batch(rows[chosen]).x_ng.log1p())

    @torch.no_grad()
    def start_from_posteriors(self, q: DiagonalNormal, condition_n: Tensor | None, generator: torch.Generator) -> None:
        """Start from the posteriors of the cells nearest to the centres of a k-means."""
        centres, label_n = conditional_k_means(q.loc, condition_n, self.options.n_components, generator)
        chosen = torch.cdist(centres, q.loc).argmin(-1)
        self.loc_kd.copy_(q.loc[chosen])
        self.variance_kd.copy_(q.scale[chosen].square())
        self.log_widening_d.copy_((START_WIDENING * q.loc.std(0).clamp_min(1e-3)).log())
        self.start_weights(label_n, condition_n)
