"""The cells of a prediction: counts, size factors, positions, and mean profiles of their populations."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse

from vxpress._unset import Unset
from vxpress.bridge.ask.perturbation.populations import Populations
from vxpress.bridge.fits.find_fit import Model
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import check_complete, decoding_covariates
from vxpress.bridge.fits.stored_cells import StoredCells, fit_optional, stored_library
from vxpress.bridge.read.adata import check_gene_names
from vxpress.bridge.read.counts import read_counts
from vxpress.core.covariates import Covariates
from vxpress.core.inference.posterior import Encoded

# scale of all scores: log1p of counts per this many
PER = 1e4


@dataclass(frozen=True)
class Profile:
    """Mean and variance over cells of log1p(1e4 x / l), float64 (genes,), and the number of cells."""

    mean_g: np.ndarray
    var_g: np.ndarray
    n: int


@dataclass(frozen=True)
class PerturbedCells:
    """All cells, and what a method needs of them; ``genes`` are the modelled genes of the fit.

    ``keep`` selects the view of the latent space that keeps the effects of optional covariates, which are hidden in
    ``covariates`` and not in ``covariates_shown``.
    """

    fit: Fit
    populations: Populations
    genes: np.ndarray
    counts: sparse.csr_matrix
    library_n: np.ndarray
    encoded: Encoded
    covariates: Covariates
    covariates_shown: Covariates
    keep: bool
    _profiles: dict[tuple[str, int], Profile] = field(default_factory=dict)

    @classmethod
    def read(
        cls, adata: AnnData, populations: Populations, model: Model, key: str, layer: str | Unset | None, *, keep: bool
    ) -> PerturbedCells:
        """Read the cells from ``adata``; the layer of the counts is that of the fit if it is not given."""
        cells = StoredCells.find(adata, model, key, keep=keep)
        fit = cells.fit
        check_gene_names(adata)
        position = adata.var_names.get_indexer(fit.genes[fit.modelled_g])
        check_complete(adata, fit, adata.var_names.get_indexer(fit.genes))
        where = fit.params.layer if isinstance(layer, Unset) else layer
        counts = read_counts(adata, where, np.ones(len(position), dtype=bool), position, in_memory=True).inside
        shown = decoding_covariates(adata, fit)
        covariates = fit.model.conditioner.hide(shown) if keep else shown
        library_n = stored_library(adata, cells.keys)
        genes = fit.genes[fit.modelled_g]
        return cls(fit, populations, genes, counts, library_n, cells.encoded, covariates, shown, keep)

    @cached_property
    def log_library_n1(self) -> torch.Tensor:
        """Log size factors, float32 (n, 1)."""
        from vxpress.bridge.fits.query import log_library_of

        return log_library_of(self.library_n)

    @property
    def hidden(self) -> tuple[str, ...]:
        """Names of the covariates whose effect is in the latent positions."""
        return fit_optional(self.fit) if self.keep else ()

    def scale(self, rows: np.ndarray) -> np.ndarray:
        """Return the factors that normalise counts, 1e4 / l, float64 (n, 1); 0 for a cell without molecules."""
        library_n = self.library_n[rows]
        return np.where(library_n > 0, PER / np.maximum(library_n, 1e-12), 0.0)[:, None]

    def profile(self, perturbation: str, group: int) -> Profile:
        """Return the profile of the cells of a group with a perturbation."""
        at = perturbation, group
        if at not in self._profiles:
            rows = self.populations.rows(perturbation, group)
            self._profiles[at] = profile_of(self.counts[rows], self.scale(rows))
        return self._profiles[at]

    def control(self, group: int) -> Profile:
        """Return the profile of the control cells of a group."""
        return self.profile(self.populations.control, group)

    def change(self, group: int, perturbation: str | None = None) -> np.ndarray:
        """Return the observed change of the mean profile of a group, by default that of the target."""
        name = self.populations.target if perturbation is None else perturbation
        return self.profile(name, group).mean_g - self.control(group).mean_g


def profile_of(counts: sparse.csr_matrix, scale_n1: np.ndarray) -> Profile:
    """Compute the profile of some cells."""
    logged = counts.astype(np.float64)
    logged.data *= np.repeat(scale_n1[:, 0], np.diff(logged.indptr))
    np.log1p(logged.data, out=logged.data)
    n = max(1, counts.shape[0])
    mean_g = np.asarray(logged.sum(0)).reshape(-1) / n
    logged.data **= 2
    var_g = np.maximum(np.asarray(logged.sum(0)).reshape(-1) / n - mean_g**2, 0.0)
    return Profile(mean_g, var_g * n / max(1, n - 1), counts.shape[0])
