"""Fit a model again without the treated cells of one group, with the settings of the first fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from anndata import AnnData

from vxpress._keys import Keys
from vxpress.bridge.ask.perturbation.cells import PerturbedCells
from vxpress.bridge.fits.runner import Fitted, Runner, finish
from vxpress.bridge.fits.stored_cells import stored_split
from vxpress.bridge.read.counts import CountData
from vxpress.bridge.read.library import Library, log_library
from vxpress.bridge.read.prepare import Prepared
from vxpress.core.data import Cells, Counts


class Refitter:
    """Fits the cells that the fit was trained on, and those held out for early stopping, without some of them."""

    def __init__(self, adata: AnnData, cells: PerturbedCells, key: str, seed: int) -> None:
        split = stored_split(adata, Keys.of(key))
        if split is None or not (split == "train").any():
            msg = (
                f"check='refit' fits again without the treated cells of one group at a time, but adata.obs does not say which cells the fit "
                f"was trained on ({Keys.of(key).split!r}). Pass the AnnData that vx.tl.fit_vae was called on, or check=True."
            )
            raise ValueError(msg)
        self.cells, self.split_n, self.seed = cells, split, seed

    def without(self, group: int) -> PerturbedCells:
        """Return the cells with the model and the positions of a fit without the treated cells of a group."""
        cells, fit = self.cells, self.cells.fit
        out_n = np.zeros(len(self.split_n), dtype=bool)
        out_n[cells.populations.treated(group)] = True
        train_n, validation_n = (np.flatnonzero((self.split_n == part) & ~out_n) for part in ("train", "validation"))
        config = replace(fit.params.model, n_readout=0)
        shown = cells.covariates_shown
        # the encoder's size factor of a cell without molecules has no effect
        data = Cells(Counts.from_scipy(cells.counts), log_library(cells.library_n), shown)
        counts = CountData(cells.counts, None, cells.library_n, cells.library_n)
        library = Library(cells.library_n, fit.params.library_source, beyond=config.remainder)
        prepared = Prepared(
            counts, np.ones(len(cells.genes), dtype=bool), None, fit.covariates, library, data, train_n, validation_n
        )
        runner = Runner(
            prepared,
            rng=np.random.default_rng([self.seed, 4]),
            device=torch.device("cpu"),
            describe=lambda rows: f"cells {rows.tolist()[:5]}",
        )
        fitted: Fitted = runner.fit(config, fit.params.train)
        finish(fitted.outcome, fitted.model.cpu)
        encoded = fitted.kept if cells.keep and fitted.kept is not None else fitted.encoded
        return replace(cells, fit=replace(fit, model=fitted.model), encoded=encoded)
