"""The output of likelihoods whose location is a log composition: each gene has a share of the molecules of a cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vxpress.core import rule
from vxpress.core.data import Source, gene_sums
from vxpress.core.likelihoods.anchored_readout import fit_anchored, relative_to_modelled
from vxpress.core.likelihoods.layers import Layers
from vxpress.core.likelihoods.output import Measured, Output, ToReadOut
from vxpress.core.likelihoods.softmax_readout import fit_softmax
from vxpress.core.likelihoods.sums import Sums

if TYPE_CHECKING:
    from vxpress.core.kernels.decoded_shares import CompiledShares
    from vxpress.core.likelihoods.base import Likelihood

# output of a gene that was not measured: its share is 0
UNMEASURED = -1e4
# share of the remainder at the start, at least
LEAST_REMAINDER = 1e-3


class Shares(Output):
    """A softmax of the location gives the shares of the modelled genes, and that of the remainder if there is one.

    Genes outside the model share the remainder by a second softmax. ``outside_share`` is their share in the molecules
    outside the model, which may also come from genes that are not in the data. In a model without remainder it is their
    share in all molecules. Genes of panels are read out relative to the modelled genes instead, see
    :mod:`vxpress.core.likelihoods.anchored_readout`.
    """

    scale = "composition"
    scalable = True
    nonnegative = True
    has_remainder = True

    def kept(self, n_readout: int) -> dict[str, Tensor]:
        return {"outside_share": torch.zeros(())} if n_readout else {}

    def locate(self, location: Tensor, n_genes: int) -> tuple[Tensor, Tensor | None]:
        log_rho = F.log_softmax(location, dim=-1)
        if location.shape[-1] == n_genes:
            return log_rho, None
        return log_rho[:, :n_genes], log_rho[:, n_genes:]

    def log_counted(self, location: Tensor, measured_ng: Tensor) -> Tensor:
        """Sum the shares of the measured genes and the remainder."""
        n_genes = measured_ng.shape[1]
        genes = torch.where(measured_ng, location[:, :n_genes], UNMEASURED)
        counted = torch.cat((genes, location[:, n_genes:]), dim=1)
        return counted.logsumexp(1, keepdim=True) - location.logsumexp(1, keepdim=True)

    @torch.no_grad()
    def start(self, layers: Layers, likelihood: type[Likelihood], cells: Source, rows: Tensor) -> None:
        """Start at the mean profile of the data, with a moderate dispersion if the likelihood has one."""
        library = cells.log_library_n1[rows].exp().double()
        sums_g = gene_sums(cells, rows)
        # a gene without molecules gets the share of half a molecule
        bias = (sums_g.clamp_min(0.5) / library.sum()).float().log()
        if layers.remainder:
            rest = 1.0 - float(sums_g.sum() / library.sum())
            bias = torch.cat((bias, torch.tensor([max(rest, LEAST_REMAINDER)], device=bias.device).log()))
        layers.start_location(bias)
        if layers.log_dispersion is not None:
            layers.log_dispersion.fill_(likelihood.start_log_dispersion)
        for name in layers.heads:
            layers.start_head(name, likelihood.heads.get(name, likelihood.start_log_dispersion))

    def sums(self, layers: Layers, n: int, inside: Tensor | None, outside: Tensor | None) -> Sums:
        return _ShareSums(layers, n, inside, outside)

    def expected_counts(self, layers: Layers, values_ng: Tensor, log_library_n1: Tensor) -> Tensor:
        # share of the modelled genes in all molecules, if the library counts only modelled genes
        among_modelled = 1.0
        if layers.readout is not None and not layers.remainder:
            among_modelled = 1.0 - float(layers.kept["outside_share"])
        return values_ng * (log_library_n1.exp() / among_modelled)

    def fit_readout(self, layers: Layers, data: ToReadOut) -> None:
        """Fit by multinomial likelihood, and find the share of the genes in the molecules outside the model."""
        assert layers.readout is not None  # noqa: S101 - the caller checks it
        if data.panels is not None:
            fit_anchored(layers, data)
            return
        sums_g = gene_sums(data.outside, data.train_rows)
        fit_softmax(layers.readout, data, sums_g)
        read, modelled = float(sums_g.sum()), float(gene_sums(data.cells, data.train_rows).sum())
        library = float(data.cells.log_library_n1[data.train_rows].exp().double().sum())
        beyond = library - modelled if layers.remainder else modelled + read
        layers.kept["outside_share"].fill_(min(1.0, read / beyond) if beyond > 0 else 0.0)

    def change(self, before_ng: Tensor, after_ng: Tensor) -> Tensor:
        """Compute the share of the molecules of modelled genes that move to other genes, (n,), from 0 to 1."""
        before_ng, after_ng = (values / values.sum(-1, keepdim=True) for values in (before_ng, after_ng))
        return 0.5 * (after_ng - before_ng).abs().sum(-1)

    def measured_share(self, distribution: Likelihood, measured: Measured) -> Tensor:
        rho_ng, there = distribution.log_rate.exp(), measured.genes_g
        if measured.inside:
            return rho_ng[:, there].sum(-1, keepdim=True)
        return 1.0 - rho_ng[:, ~there].sum(-1, keepdim=True)


class _ShareSums(Sums):
    """Shares are normalised over all genes within a block, and only those of requested genes are copied out of it."""

    compiled: Mapping[str, CompiledShares] | None = None

    def prepare(self, n_decoded: int) -> None:
        weights = {name: (layer[0], layer[1]) for name, layer in self.layers.items()}
        first = next(iter(weights.values()), None)
        if first is None or self.model_layers.anchored:
            return
        n_terms = n_decoded * sum(weight.numel() for weight, _ in weights.values())
        if rule.compiled_shares(first[0].device, first[0].dtype, n_terms):
            from vxpress.core.kernels.decoded_shares import CompiledShares

            self.compiled = {
                name: CompiledShares(weight, bias, self.columns[name]) for name, (weight, bias) in weights.items()
            }

    def add(self, f_nf: Tensor) -> None:
        if self.compiled is None:
            super().add(f_nf)
            return
        f_nf, rest_n = f_nf.contiguous(), None
        if "location" in self.compiled:
            last_n = self.compiled["location"].add(f_nf, self.inside[: len(f_nf)])
            rest_n = last_n if self.model_layers.remainder else None
        if self.outside is not None and "readout" in self.compiled:
            self.compiled["readout"].add(f_nf, self.outside[: len(f_nf)], rest_n)

    def needs_location(self, n_inside: int, n_outside: int) -> bool:
        # with a remainder, the share of the genes outside follows from the location
        return n_inside > 0 or (n_outside > 0 and self.model_layers.remainder)

    def needs_readout(self, n_inside: int, n_outside: int) -> bool:
        # if it is anchored, shares of the modelled genes follow from it too
        return n_outside > 0 or (n_inside > 0 and self.model_layers.anchored)

    def wanted(self, name: str, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        return layer.weight.detach(), layer.bias.detach()

    def add_block(self, f_nf: Tensor, part: slice) -> None:
        if self.model_layers.anchored:
            self.add_anchored(f_nf, part)
            return
        rest_n1, n_genes = None, self.model_layers.n_genes
        if "location" in self.layers:
            location = self.shares("location", f_nf)
            if self.model_layers.remainder:
                location, rest_n1 = location[:, :n_genes], location[:, n_genes:]
            self.inside[part].add_(self.select("location", location))
        if self.outside is not None and "readout" in self.layers:
            readout = self.select("readout", self.shares("readout", f_nf))
            if rest_n1 is None:
                self.outside[part].add_(readout)
            else:
                self.outside[part].addcmul_(readout, rest_n1)

    def add_anchored(self, f_nf: Tensor, part: slice) -> None:
        """Add a draw of shares in the molecules of all genes: the readout is relative to the modelled genes."""
        if "readout" not in self.layers:
            return
        n_genes, log_rest = self.model_layers.n_genes, None
        if "location" in self.layers:
            location = self.outputs("location", f_nf)
            log_rest = relative_to_modelled(self.model_layers, location)
            modelled = location[:, :n_genes].log_softmax(1)
        outputs = self.outputs("readout", f_nf)
        if log_rest is not None:
            outputs = outputs.add_(log_rest)
        log_whole = torch.logaddexp(outputs.logsumexp(1, keepdim=True), outputs.new_zeros(()))
        if "location" in self.layers:
            self.inside[part].add_(self.select("location", (modelled - log_whole).exp()))
        if self.outside is not None:
            self.outside[part].add_(self.select("readout", (outputs - log_whole).exp()))

    def shares(self, name: str, f_nf: Tensor) -> Tensor:
        """Apply a linear map and a softmax."""
        return torch.softmax(self.outputs(name, f_nf), dim=-1, out=self.layers[name][3][: len(f_nf)])

    def select(self, name: str, values: Tensor) -> Tensor:
        columns = self.columns[name]
        return values if columns is None else values[:, columns]

    def mean(self, n: int, n_draws: int) -> tuple[Tensor, Tensor | None]:
        inside, outside = super().mean(n, n_draws)
        if outside is not None and not self.model_layers.anchored:
            outside_share = self.model_layers.kept["outside_share"]
            outside.mul_(outside_share)
            if not self.model_layers.remainder:
                inside.mul_(1.0 - outside_share)
        return inside, outside
