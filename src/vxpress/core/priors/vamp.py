"""The variational mixture of posteriors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from vxpress.core.config import PriorConfig
from vxpress.core.priors.base import DiagonalNormal
from vxpress.core.priors.components import ComponentPrior, conditional_k_means

if TYPE_CHECKING:
    from vxpress.core.counts import Cells
    from vxpress.core.vae import VAE

# of components made of cells, beside their own variance and as a share of that of all: where learning begins
START_WIDENING = 0.3


class Vamp(ComponentPrior):
    """sum_k w_k q(z | u_k): the encoder's own posteriors of K pseudo-inputs (Tomczak & Welling 2018).

    The pseudo-inputs are learned in the space that the encoder sees, log1p counts, and start at training cells.  They are
    encoded without dropout, with norms as in evaluation and with covariates at their average.

    Learned afterwards (``config.from_cells``), on a model that stays as it is, there are no pseudo-inputs: components are
    the posteriors of training cells that lie nearest to the centres of a k-means, widened by a normal distribution that is learned
    with the weights, since few narrow posteriors would leave gaps between them.
    """

    n_steps, learning_rate = 300, 1e-2
    # made of cells they are narrow, so that many are needed
    alone_components = (500, 2)
    loc_kd: Tensor
    variance_kd: Tensor
    known_k: Tensor

    def __init__(self, config: PriorConfig, n_latent: int) -> None:
        super().__init__(config, n_latent)
        self.__dict__["model"] = None
        if config.from_cells:
            self.register_buffer("loc_kd", torch.zeros(config.n_components, n_latent))
            self.register_buffer("variance_kd", torch.ones(config.n_components, n_latent))
            self.log_widening_d = nn.Parameter(torch.zeros(n_latent))

    @classmethod
    def alone(cls, config: PriorConfig) -> PriorConfig:
        """Components are made of cells: the encoder is not asked again."""
        return replace(config, from_cells=True)

    def bind(self, model: VAE) -> None:
        """Take the encoder of this model; past torch's registration, for it is no part of the prior."""
        if self.config.from_cells:
            return
        self.__dict__["model"] = model
        if not hasattr(self, "pseudo_kg"):
            self.pseudo_kg = nn.Parameter(torch.zeros(self.config.n_components, model.config.n_genes))
            # categories that a trained model is given later must not move its prior
            self.register_buffer("known_k", torch.tensor(model.config.n_categories, dtype=torch.float32))

    def components(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations, each (k, d)."""
        if self.config.from_cells:
            return self.loc_kd, (self.variance_kd + (2.0 * self.log_widening_d).exp()).sqrt()
        model = cast("VAE", self.__dict__["model"])
        encoder, training = model.encoder, model.encoder.training
        encoder.eval()
        try:
            s_kc: Tensor | None = None
            input_km: Tensor = self.pseudo_kg
            if model.config.encode_covariates and model.conditioner.width:
                s_kc = model.conditioner.average(self.known_k).to(input_km).expand(len(input_km), -1)
                input_km = torch.cat((input_km, s_kc), dim=-1)
            q = encoder.after_first(encoder.body.linears[0](input_km), s_kc)
        finally:
            encoder.train(training)
        return q.loc, q.scale

    @torch.no_grad()
    def start_from(self, model: VAE, cells: Cells, rows: Tensor, generator: torch.Generator) -> None:
        """Pseudo-inputs at training cells drawn at random."""
        order = torch.randperm(len(rows), generator=generator)
        chosen = order[torch.arange(self.config.n_components) % len(order)].to(rows.device)
        self.pseudo_kg.copy_(cells.batch(rows[chosen]).x_ng.log1p())

    @torch.no_grad()
    def start_from_posteriors(self, q: DiagonalNormal, condition_n: Tensor | None, generator: torch.Generator) -> None:
        """The posteriors of the cells nearest to the centres of a k-means."""
        centres, label_n = conditional_k_means(q.loc, condition_n, self.config.n_components, generator)
        chosen = torch.cdist(centres, q.loc).argmin(-1)
        self.loc_kd.copy_(q.loc[chosen])
        self.variance_kd.copy_(q.scale[chosen].square())
        self.log_widening_d.copy_((START_WIDENING * q.loc.std(0).clamp_min(1e-3)).log())
        self.start_weights(label_n, condition_n)
