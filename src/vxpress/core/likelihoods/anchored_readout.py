"""A softmax readout of genes outside the model from cells of which each measured only some, relative to the modelled genes.

Genes that no cell measured together can be compared only by what both were measured with. The sum of the modelled genes is
therefore one more category of the softmax, with output 0: exp(output) of a gene are its molecules per molecule of all modelled
genes. The likelihood of a cell is multinomial over the genes that it measured and the sum of the modelled genes that it measured,
whose share among the modelled genes is that of the decoder. Genes that were not measured are left out of the softmax.

If the composition has a remainder, which consists of the genes that all panels measured, and these are at least half of the
molecules outside the model, outputs are relative to it: its molecules in a cell were learned in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vxpress.core.data import Batch, Source, walk
from vxpress.core.likelihoods.layers import Layers
from vxpress.core.likelihoods.output import ToReadOut
from vxpress.core.likelihoods.softmax_readout import BATCH, WEIGHT_DECAY, descend

# share of the remainder in the molecules outside the model from which outputs are relative to it
LEAST_SHARE = 0.5


def relative_to_modelled(layers: Layers, location: Tensor) -> Tensor | None:
    """Return log(remainder / modelled genes) of cells, (n, 1), or None if the readout is not relative to the remainder."""
    if not layers.remainder or float(layers.kept["outside_share"]) < LEAST_SHARE:
        return None
    return location[:, layers.n_genes :] - location[:, : layers.n_genes].logsumexp(1, keepdim=True)


def fit_anchored(layers: Layers, data: ToReadOut) -> None:
    """Fit ``layers.readout`` in place, and keep the share of genes of all panels in the molecules outside the model."""
    readout = layers.readout
    assert readout is not None  # noqa: S101 - the caller checks it
    assert data.panels is not None  # noqa: S101 - as above
    cells = _Cells(layers, data)
    with torch.no_grad():
        readout.weight.zero_()
        share, bias = cells.start()
        layers.kept["outside_share"].fill_(share)
        if layers.remainder and share >= LEAST_SHARE:
            _, bias = cells.start()
        readout.bias.copy_(bias)
    # outputs are relative to a fixed category, so that a decay of the bias would raise every rare gene
    parameters = [
        {"params": [readout.weight], "weight_decay": WEIGHT_DECAY},
        {"params": [readout.bias], "weight_decay": 0.0},
    ]
    descend(readout, data, parameters, cells.set_gradient, cells.mean_loss)


class _Cells:
    """The multinomial likelihood of the cells of a fit."""

    def __init__(self, layers: Layers, data: ToReadOut) -> None:
        assert layers.readout is not None  # noqa: S101 - the caller checks it
        assert data.panels is not None  # noqa: S101 - as above
        self.layers, self.readout, self.data = layers, layers.readout, data
        self.measured_pg, self.outside_pg = (part > 0 for part in data.panels)
        # molecules of the modelled genes, of cells that are needed
        self.modelled_n = torch.zeros(len(data.cells), device=data.train_rows.device)
        rows = torch.cat((data.train_rows, data.validation_rows)).sort().values
        n_genes = data.cells.n_genes
        for part, batch in walk(data.cells, rows, dense=False):
            where, values = batch.entries()
            sums_n = torch.zeros(len(batch), device=values.device).index_add_(0, where // n_genes, values)
            self.modelled_n[rows[part]] = sums_n.to(self.modelled_n)

    def anchor(self, f_nf: Tensor, panel_n: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the log share of the measured among the modelled genes, (n, 1), and :func:`relative_to_modelled`."""
        location = self.layers.location(f_nf)
        log_rho = location[:, : self.layers.n_genes].log_softmax(1)
        seen = torch.where(self.measured_pg[panel_n], log_rho, -math.inf).logsumexp(1, keepdim=True)
        return seen, relative_to_modelled(self.layers, location)

    def log_shares(self, f_nf: Tensor, panel_n: Tensor) -> Tensor:
        """Return log shares among the measured genes, (n, 1 + genes); that of the modelled genes comes first."""
        seen, log_rest = self.anchor(f_nf, panel_n)
        outputs = self.readout(f_nf)
        if log_rest is not None:
            outputs = outputs + log_rest
        outputs = torch.where(self.outside_pg[panel_n], outputs, -math.inf)
        return torch.cat((seen, outputs), dim=1).log_softmax(1)

    def start(self) -> tuple[float, Tensor]:
        """Return the share of genes of all panels in the molecules outside the model, and the outputs of the mean profile.

        The latter are the molecules of a gene over those that the cells that measured it have of the modelled genes.
        """
        n_panels, n_genes = self.outside_pg.shape
        device = self.modelled_n.device
        sums_g = torch.zeros(n_genes, dtype=torch.float64, device=device)
        whole_p = torch.zeros(n_panels, dtype=torch.float64, device=device)
        for _, batch in walk(self.data.outside, self.data.train_rows, BATCH, dense=False):
            panel_n = _panels(batch)
            gene, values, _ = self.entries(batch, panel_n)
            sums_g.index_add_(0, gene, values.double())
            seen, log_rest = self.anchor(self.data.features(batch), panel_n)
            scale = -seen if log_rest is None else log_rest - seen
            whole_p.index_add_(0, panel_n, (self.modelled_n[batch.rows] * scale.exp()[:, 0]).double())
        # half a molecule is added per gene, so that the log of an unseen gene is finite
        whole_g = whole_p @ self.outside_pg.double()
        whole_g = torch.where(whole_g > 0, whole_g, whole_p.sum()).clamp_min(1.0)
        per_modelled_g = (sums_g + 0.5) / whole_g
        share = float(per_modelled_g[self.outside_pg.all(0)].sum() / per_modelled_g.sum())
        return share, per_modelled_g.log().float()

    def entries(self, batch: Batch, panel_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the non-zeros of measured genes: genes, counts, and rows of the batch."""
        where, values = batch.entries()
        gene, row = where % self.outside_pg.shape[1], where // self.outside_pg.shape[1]
        kept = self.outside_pg[panel_n[row], gene]
        return gene[kept], values[kept], row[kept]

    @torch.no_grad()
    def set_gradient(self, batch: Batch) -> None:
        """Write the gradient of the mean loss per molecule to ``.grad``."""
        panel_n, f_nf = _panels(batch), self.data.features(batch)
        gene, values, row = self.entries(batch, panel_n)
        residual_ng = self.log_shares(f_nf, panel_n)[:, 1:].exp()
        total_n = self.modelled_n[batch.rows].index_add(0, row, values)
        residual_ng.index_put_((row, gene), -values / total_n[row].clamp_min(1.0), accumulate=True)
        weight_n = total_n / total_n.sum().clamp_min(1.0)
        self.readout.weight.grad = residual_ng.t() @ (f_nf * weight_n[:, None])
        self.readout.bias.grad = weight_n @ residual_ng

    @torch.no_grad()
    def mean_loss(self, features: Callable[[Batch], Tensor], outside: Source, rows: Tensor) -> float:
        """Compute the negative multinomial log likelihood of some cells, without its constant."""
        total = 0.0
        for _, batch in walk(outside, rows, BATCH, dense=False):
            panel_n = _panels(batch)
            gene, values, row = self.entries(batch, panel_n)
            log_share = self.log_shares(features(batch), panel_n)
            total -= float((values * log_share[row, gene + 1]).sum(dtype=torch.float64))
            total -= float((self.modelled_n[batch.rows] * log_share[:, 0]).sum(dtype=torch.float64))
        return total if math.isfinite(total) else math.inf


def _panels(batch: Batch) -> Tensor:
    panel_n = batch.covariates.panel_n
    assert panel_n is not None  # noqa: S101 - the caller checks it
    return panel_n
