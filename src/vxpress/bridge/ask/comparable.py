"""Check whether the likelihoods of several fits are comparable, and on which cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData

from vxpress._unset import Unset
from vxpress.bridge.ask.compared_fits import Candidate
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.read.columns import as_mask, find_column
from vxpress.core.likelihoods import LIKELIHOODS

MIN_CELLS = 200
# tolerance for log size factors, float32
SAME_LIBRARY = 1e-5


def check_settings(candidates: Sequence[Candidate], layer: str | Unset | None) -> None:
    """Raise unless all fits have the same genes, the same treatment of the library and likelihoods of the same data."""
    first, *others = candidates
    genes = set(first.fit.genes[first.fit.modelled_g])
    for other in others:
        pair = f"{first.name!r} and {other.name!r}"
        a, b = first.fit.params, other.fit.params
        measured = [list(each.fit.params.modalities) or ["rna"] for each in (first, other)]
        same = first.fit.features.keys() == other.fit.features.keys() and all(
            set(found) == set(other.fit.features[name]) for name, found in first.fit.features.items()
        )
        kinds = [
            {part.name: LIKELIHOODS[part.likelihood].observes for part in params.model.modalities} for params in (a, b)
        ]
        if not same or kinds[0] != kinds[1]:
            msg = (
                f"{pair} model different modalities, features of them, or kinds of data ({measured[0]} and {measured[1]}), so their "
                "likelihoods refer to different data. Compare fits of the same modalities."
            )
            raise ValueError(msg)
        distributions = a.model.likelihood, b.model.likelihood
        spaces = tuple(LIKELIHOODS[distribution].observes for distribution in distributions)
        if spaces[0] != spaces[1]:
            msg = (
                f"{pair} have likelihoods of different data: {spaces[0]} ({distributions[0]}) and {spaces[1]} ({distributions[1]}). "
                "These have no common scale. Compare fits of one kind: likelihood= 'nb', 'zinb' and 'poisson' are count distributions."
            )
            raise ValueError(msg)
        others_genes = set(other.fit.genes[other.fit.modelled_g])
        if genes != others_genes:
            msg = (
                f"{pair} model different genes ({len(genes)} and {len(others_genes)}, {len(genes & others_genes)} of them shared), "
                "so their likelihoods refer to different data. Fit again with the same mask_var=, for example "
                "vx.tl.fit_vae(adata, mask_var='highly_variable')."
            )
            raise ValueError(msg)
        if not _same_panels(first.fit, other.fit):
            msg = (
                f"{pair} take different genes for measured in some cells, so their likelihoods refer to different data. Fit again with the "
                "same panel_key= and the same varm['gene_panels']."
            )
            raise ValueError(msg)
        if first.fit.model.infers_library != other.fit.model.infers_library:
            msg = (
                f"{pair} treat the library differently: library={a.library!r} and library={b.library!r}. A likelihood given the size "
                "factor is not comparable with one that infers it. Fit again with the same library=, for example library='observed'."
            )
            raise ValueError(msg)
        if isinstance(layer, Unset) and a.layer != b.layer:
            msg = f"{pair} read different counts: layer={a.layer!r} and layer={b.layer!r}. Pass layer= to name the layer on which both are evaluated."
            raise ValueError(msg)


def _same_panels(one: Fit, other: Fit) -> bool:
    """Return whether two fits of the same genes score the same ones in cells of the panels that both know."""
    tables = [fit.covariates.panels for fit in (one, other)]
    if None in tables:
        return all(table is None or bool(table.measured_pg.all()) for table in tables)
    keys = {table.key for table in tables if table is not None}
    measured = [
        {name: set(fit.genes[fit.modelled_g][row]) for name, row in zip(table.names, table.measured_pg, strict=True)}
        for fit, table in zip((one, other), tables, strict=True)
        if table is not None
    ]
    return len(keys) == 1 and all(genes == measured[1].get(name, genes) for name, genes in measured[0].items())


def check_library(first: Candidate, other: Candidate, log_library_n: np.ndarray, other_n: np.ndarray) -> None:
    """Raise unless both fits have the same size factors for these cells."""
    differs = np.abs(log_library_n - other_n) > SAME_LIBRARY
    if not differs.any():
        return
    a, b = first.fit.params, other.fit.params
    at = int(np.flatnonzero(differs)[0])
    msg = (
        f"{first.name!r} and {other.name!r} use different size factors ({a.library_source}; {b.library_source}) in "
        f"{int(differs.sum())} of {len(differs)} cells (for example {np.exp(log_library_n[at]):.6g} and {np.exp(other_n[at]):.6g}). "
        "Fit again with the same library= on the same genes; vx.pp.library_size(adata) before both fits stores one library for both."
    )
    raise ValueError(msg)


def shared_cells(adata: AnnData, candidates: Sequence[Candidate], cells: str | np.ndarray | None) -> np.ndarray:
    """Return the cells to compare on, boolean (n,): those in ``cells``, or those held out by every fit.

    Raises ``ValueError`` if a fit was trained on some of them.
    """
    if cells is not None:
        chosen_n = _named_cells(adata, candidates, cells)
        n = int(chosen_n.sum())
        if n < MIN_CELLS:
            msg = f"cells= selects {n} cells; {MIN_CELLS} or more are needed to distinguish models."
            raise ValueError(msg)
        return chosen_n
    silent = [candidate.name for candidate in candidates if candidate.silent]
    if silent:
        msg = (
            f"It is unknown which cells {silent} was trained on (a file of weights only, obs without the split, only part of the "
            "cells, or names changed by concatenation). Pass cells= with a boolean array over cells, or the name of a boolean "
            "column of obs, that marks cells that no fit was trained on."
        )
        raise ValueError(msg)
    held_out_n = np.logical_and.reduce([candidate.held_out_n for candidate in candidates])
    check_enough(candidates, held_out_n)
    return held_out_n


def check_enough(candidates: Sequence[Candidate], chosen_n: np.ndarray) -> None:
    """Raise if there are too few cells to compare on."""
    n = int(chosen_n.sum())
    if n >= MIN_CELLS:
        return
    counts = {candidate.name: int(candidate.held_out_n.sum()) for candidate in candidates if not candidate.silent}
    each = ", ".join(f"{name}: {k}" for name, k in counts.items())
    share = min(0.5, np.ceil(100 * 1.2 * MIN_CELLS / max(1, len(chosen_n))) / 100)
    msg = (
        f"{n} cells with counts are held out by every fit (by each: {each or 'unknown'}); {MIN_CELLS} or more are needed to "
        "distinguish models. "
        + (
            "The fits hold out different cells. Fit again with the same split_rng= and validation_fraction= for all."
            if counts and min(counts.values()) >= MIN_CELLS
            else f"Fit again with more cells held out, for example vx.tl.fit_vae(adata, validation_fraction={share:g}), or pass "
            "an AnnData of cells that were in no fit."
        )
    )
    raise ValueError(msg)


def _named_cells(adata: AnnData, candidates: Sequence[Candidate], cells: str | np.ndarray) -> np.ndarray:
    named = isinstance(cells, str)
    where = f"adata.obs[{cells!r}]" if named else "cells="
    given = find_column(adata.obs, cells, argument="cells") if named else cells
    gaps = (
        f"Exclude these cells: {where}.fillna(False)."
        if named
        else "Give each cell a value, for example fillna(False)."
    )
    chosen_n = as_mask(given, adata.obs_names, where, of="cell", gaps=gaps)
    for candidate in candidates:
        n_trained = int((chosen_n & candidate.trained_n).sum())
        if n_trained:
            msg = (
                f"{candidate.name!r} was trained on {n_trained} of the {int(chosen_n.sum())} cells of cells=, so it would be rated too "
                "high. Remove these cells, or omit cells= to use the cells that every fit held out."
            )
            raise ValueError(msg)
    return chosen_n
