"""Partial panels: batches in which only some of the genes were measured.

A count of zero says that a gene was measured and no molecule was found. A gene outside the panel of a cell says nothing:
the likelihood has no term for it, and the encoder receives the mean level of the gene instead of a zero. In training, some cells of
larger panels show the encoder only the genes that another panel also has, so that it places cells of different panels alike.

The size factor of a cell counts the molecules of the modelled genes that its panel measured, and those of genes outside the model
that all panels measured. The remainder of a composition therefore means the same genes in all cells, and the shares of the
measured genes and the remainder add up to 1 once they are divided by their sum.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Batch, Source, walk
from vxpress.core.noise import Noise

# rounds of the fit of a common profile to panels
ROUNDS = 50


class Panels(nn.Module):
    """The genes that each panel measured, and the level of each gene that encoders receive for one that was not.

    ``measured_pg`` is 1 for the genes of a panel, else 0, and ``outside_pg`` the same for genes that are read out; ``level_g`` is the
    mean of log1p counts over the cells that measured a gene. Cells have the code of their panel in ``Covariates.panel_n``;
    without codes all genes were measured.
    """

    measured_pg: Tensor
    outside_pg: Tensor
    level_g: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("measured_pg", torch.ones(config.n_panels, config.n_genes))
        self.register_buffer("outside_pg", torch.ones(config.n_panels, config.n_readout))
        self.register_buffer("level_g", torch.zeros(config.n_genes))

    def set(self, measured_pg: Tensor, outside_pg: Tensor | None = None) -> None:
        """Set which genes each panel measured, bool (panels, genes); ``ValueError`` is raised for an empty panel or another shape.

        ``outside_pg`` says it of the genes that are read out; by default all panels measured them.
        """
        given = (
            (measured_pg, self.measured_pg),
            (self.outside_pg if outside_pg is None else outside_pg, self.outside_pg),
        )
        for found_pg, expected_pg in given:
            if found_pg.shape != expected_pg.shape:
                msg = f"Panels of shape {tuple(found_pg.shape)} were given; (panels, genes) = {tuple(expected_pg.shape)} is expected."
                raise ValueError(msg)
        empty = torch.nonzero(~measured_pg.bool().any(1))[:, 0].tolist()
        if empty:
            msg = f"The panels {empty} have none of the modelled genes. Leave their cells out, or model genes that they measured."
            raise ValueError(msg)
        for found_pg, own_pg in given:
            own_pg.copy_(found_pg)

    def measured(self, covariates: Covariates) -> Tensor | None:
        """Return which genes were measured in each cell, bool (n, g), or None if all were."""
        if covariates.panel_n is None:
            return None
        return self.measured_pg[covariates.panel_n] > 0

    def filled(self, batch: Batch, share: float, noise: Noise | None) -> Batch:
        """Return a minibatch whose encoders receive the level of a gene where it was not measured.

        With ``noise``, a random ``share`` of the cells shows only the genes that a random other panel also has, if any.
        """
        seen_ng = self.measured(batch.covariates)
        if seen_ng is None:
            return batch
        if noise is not None and share > 0 and len(self.measured_pg) > 1:
            n = len(batch)
            other_n = torch.randint(len(self.measured_pg), (n,), generator=noise.generator, device=seen_ng.device)
            common_ng = seen_ng & (self.measured_pg[other_n] > 0)
            hide_n = noise.choose(n, share) & common_ng.any(1)
            seen_ng = torch.where(hide_n[:, None], common_ng, seen_ng)
        return replace(batch, log_x_ng=torch.where(seen_ng, batch.x_ng.log1p(), self.level_g))

    @torch.no_grad()
    def start_from(self, source: Source, rows: Tensor) -> Tensor:
        """Set the levels from the cells ``rows``; return the location of the mean profile, (g,).

        Its shares are those of one profile that describes the sums of all panels best: each share is the molecules of the gene
        over the molecules that its cells would have if they had measured all genes. They are relative to the sum of the size
        factors, so that a remainder is what these count outside the modelled genes.
        """
        n_panels, n_genes = self.measured_pg.shape
        code_n = source.covariates.panel_n
        assert code_n is not None  # noqa: S101 - the caller checks it
        sums_pg, logs_pg = torch.zeros(2, n_panels, n_genes, dtype=torch.float64, device=rows.device)
        n_p, library_p = torch.zeros(2, n_panels, dtype=torch.float64, device=rows.device)
        for _, batch in walk(source, rows):
            panel_n = batch.covariates.panel_n
            assert panel_n is not None  # noqa: S101 - as above
            sums_pg.index_add_(0, panel_n, batch.x_ng.double())
            logs_pg.index_add_(0, panel_n, batch.x_ng.log1p().double())
            n_p.index_add_(0, panel_n, torch.ones(len(batch), dtype=torch.float64, device=rows.device))
            library_p.index_add_(0, panel_n, batch.log_library_n1[:, 0].exp().double())
        measured_pg = self.measured_pg.double()
        cells_g = n_p @ measured_pg
        self.level_g.copy_((logs_pg * measured_pg).sum(0) / cells_g.clamp_min(1.0))
        molecules_g = (sums_pg * measured_pg).sum(0).clamp_min(0.5)
        modelled_p = (sums_pg * measured_pg).sum(1)
        share_g = molecules_g / molecules_g.sum()
        for _ in range(ROUNDS):
            covered_p = (measured_pg @ share_g).clamp_min(1e-12)
            whole_g = (modelled_p / covered_p) @ measured_pg
            share_g = torch.where(whole_g > 0, molecules_g / whole_g.clamp_min(1e-12), share_g)
            share_g = share_g / share_g.sum()
        whole_p = modelled_p / (measured_pg @ share_g).clamp_min(1e-12)
        return (share_g * (whole_p.sum() / library_p.sum().clamp_min(1.0))).log().float()

    def coverage(self, log_share_g: Tensor, covariates: Covariates) -> Tensor:
        """Return the share of a cell's molecules that its panel measures, (n, 1), at a profile of log shares."""
        covered_p = self.measured_pg @ log_share_g.exp()
        assert covariates.panel_n is not None  # noqa: S101 - the caller checks it
        return covered_p[covariates.panel_n][:, None]
