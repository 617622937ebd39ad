"""Whether likelihoods of several fits are of the same thing, and on which cells they may be compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData

from vxpress._unset import Unset
from vxpress.bridge.candidates import Candidate
from vxpress.bridge.columns import as_mask, find_column
from vxpress.core.likelihoods import LIKELIHOODS

MIN_CELLS = 200
# of size factors, float32 logs
SAME_LIBRARY = 1e-5


def check_settings(candidates: Sequence[Candidate], layer: str | Unset | None) -> None:
    """Raise unless all fits have the same genes, treat the library alike and observe the same thing."""
    first, *others = candidates
    genes = set(first.fit.genes[first.fit.modelled_g])
    for other in others:
        pair = f"{first.name!r} and {other.name!r}"
        a, b = first.fit.params, other.fit.params
        distributions = a.model.likelihood, b.model.likelihood
        spaces = tuple(LIKELIHOODS[distribution].observes for distribution in distributions)
        if spaces[0] != spaces[1]:
            msg = (
                f"{pair} are distributions of different things: {spaces[0]} ({distributions[0]}) and {spaces[1]} ({distributions[1]}), whose likelihoods "
                "have no common scale. Compare fits of one kind: likelihood= 'nb', 'zinb' and 'poisson' are count distributions."
            )
            raise ValueError(msg)
        others_genes = set(other.fit.genes[other.fit.modelled_g])
        if genes != others_genes:
            msg = (
                f"{pair} model different genes ({len(genes)} and {len(others_genes)}, {len(genes & others_genes)} of them shared), "
                "so their likelihoods are of different data. Fit again with the same mask_var=, for example "
                "vx.tl.fit_vae(adata, mask_var='highly_variable')."
            )
            raise ValueError(msg)
        if a.model.latent_library != b.model.latent_library:
            msg = (
                f"{pair} treat the library differently: library={a.library!r} and library={b.library!r}. A distribution given the size "
                "factor does not compare with one that infers it. Fit again with the same library=, for example library='observed'."
            )
            raise ValueError(msg)
        if isinstance(layer, Unset) and a.layer != b.layer:
            msg = f"{pair} read different counts: layer={a.layer!r} and layer={b.layer!r}. Name the layer that both are to be judged on with layer=."
            raise ValueError(msg)


def check_library(first: Candidate, other: Candidate, log_library_n: np.ndarray, other_n: np.ndarray) -> None:
    """Raise unless both fits are given the same size factors of these cells."""
    differs = np.abs(log_library_n - other_n) > SAME_LIBRARY
    if not differs.any():
        return
    a, b = first.fit.params, other.fit.params
    at = int(np.flatnonzero(differs)[0])
    msg = (
        f"{first.name!r} and {other.name!r} take different size factors ({a.library_source}; {b.library_source}) in "
        f"{int(differs.sum())} of {len(differs)} cells (for example {np.exp(log_library_n[at]):.6g} and {np.exp(other_n[at]):.6g}). "
        "Fit again with the same library= on the same genes; vx.pp.library_size(adata) before both fits stores one library for all."
    )
    raise ValueError(msg)


def shared_cells(adata: AnnData, candidates: Sequence[Candidate], cells: str | np.ndarray | None) -> np.ndarray:
    """The cells that no fit was trained on, boolean (n,): those named, or those held out by every fit."""
    if cells is not None:
        chosen_n = _named_cells(adata, candidates, cells)
        n = int(chosen_n.sum())
        if n < MIN_CELLS:
            msg = f"cells= names {n} cells; {MIN_CELLS} or more are needed to tell models apart."
            raise ValueError(msg)
        return chosen_n
    silent = [candidate.name for candidate in candidates if candidate.silent]
    if silent:
        msg = (
            f"Nothing says which cells {silent} was trained on (a file of weights alone, obs without its split, part of the "
            "cells only, or names with a part added by concatenation). Pass cells= with a boolean array, or a column of obs, of cells that no fit was trained on."
        )
        raise ValueError(msg)
    held_out_n = np.logical_and.reduce([candidate.held_out_n for candidate in candidates])
    check_enough(candidates, held_out_n)
    return held_out_n


def check_enough(candidates: Sequence[Candidate], chosen_n: np.ndarray) -> None:
    """Raise where there are too few cells to compare on."""
    n = int(chosen_n.sum())
    if n >= MIN_CELLS:
        return
    counts = {candidate.name: int(candidate.held_out_n.sum()) for candidate in candidates if not candidate.silent}
    each = ", ".join(f"{name}: {k}" for name, k in counts.items())
    share = min(0.5, np.ceil(100 * 1.2 * MIN_CELLS / max(1, len(chosen_n))) / 100)
    msg = (
        f"{n} cells with counts are held out by every fit (by each: {each or 'unknown'}); {MIN_CELLS} or more are needed to "
        "tell models apart. "
        + (
            "The fits hold out different cells: give all the same split_rng= and validation_fraction=."
            if counts and min(counts.values()) >= MIN_CELLS
            else f"Fit again with more cells held out, for example vx.tl.fit_vae(adata, validation_fraction={share:g}), or pass "
            "an AnnData of cells that no fit was given."
        )
    )
    raise ValueError(msg)


def _named_cells(adata: AnnData, candidates: Sequence[Candidate], cells: str | np.ndarray) -> np.ndarray:
    named = isinstance(cells, str)
    where = f"adata.obs[{cells!r}]" if named else "cells="
    given = find_column(adata.obs, cells, argument="cells") if named else cells
    gaps = (
        f"Leave these cells out: {where}.fillna(False)."
        if named
        else "Give each cell a value, for example fillna(False)."
    )
    chosen_n = as_mask(given, adata.n_obs, where, of="cell", gaps=gaps)
    for candidate in candidates:
        n_trained = int((chosen_n & candidate.trained_n).sum())
        if n_trained:
            msg = (
                f"{candidate.name!r} was trained on {n_trained} of the {int(chosen_n.sum())} cells of cells=, and would be judged too "
                "well. Leave them out, or leave cells= out: then the cells that every fit held out are taken."
            )
            raise ValueError(msg)
    return chosen_n
