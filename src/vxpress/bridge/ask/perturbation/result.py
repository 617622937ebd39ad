"""Assemble a prediction: methods, decoding, support and check, as an AnnData."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg
from scipy import sparse

from vxpress.bridge.ask.perturbation.base import Method, Moved
from vxpress.bridge.ask.perturbation.cells import PerturbedCells
from vxpress.bridge.ask.perturbation.checking import Checked
from vxpress.bridge.ask.perturbation.decoding import decode, factors_for, part_of, some
from vxpress.bridge.ask.perturbation.floors import FLOORS, Control
from vxpress.bridge.ask.perturbation.latent_map import ByLatentMap
from vxpress.bridge.ask.perturbation.support import support_of
from vxpress.core.blocks import Z

LOW_SUPPORT = 0.05


@dataclass(frozen=True)
class Predicted:
    """Predicted cells: rows of the source cells, counts, expected counts, positions, and support."""

    rows: np.ndarray
    counts: sparse.csr_matrix
    mean_ng: np.ndarray
    z_nd: np.ndarray
    support_n: np.ndarray


def predict(cells: PerturbedCells, method: Method, *, seed: int) -> Predicted:
    """Predict the control cells of all wanted groups, one group after the other."""
    populations = cells.populations
    # where cells of a floor would be
    positions = ByLatentMap.named("shift")(None, seed)
    parts: list[tuple[np.ndarray, sparse.csr_matrix, np.ndarray, np.ndarray]] = []
    for group in populations.wanted:
        rows = populations.controls(group)
        moved = method.predict(cells, rows, group, populations.learned_from)
        counts, mean_ng = _decoded(cells, rows, group, moved, seed=seed)
        if not method.in_latent_space and populations.learned_from:
            moved = positions.predict(cells, rows, group, populations.learned_from)
        parts.append((rows, counts, mean_ng, moved.encoded.mean[Z]))
    rows, z_nd = np.concatenate([part[0] for part in parts]), np.concatenate([part[3] for part in parts])
    treated_nd = cells.encoded.mean_nd[populations.treated()]
    support_n = support_of(z_nd, treated_nd, np.random.default_rng([seed, 3]))
    counts = sparse.vstack([part[1] for part in parts], format="csr")
    return Predicted(rows, counts, np.concatenate([part[2] for part in parts]), z_nd, support_n)


def _decoded(
    cells: PerturbedCells, rows: np.ndarray, group: int, moved: Moved, *, seed: int
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Decode the cells of a group; cells whose mean profile does not change keep their counts."""
    factor_g = None
    if moved.change_g is not None:
        at = some(rows, seed)
        factor_g = np.zeros(len(cells.genes))
        if moved.change_g.any():
            factor_g = factors_for(cells, rows[at], part_of(moved, at), moved.change_g)
    return decode(cells, rows, moved, factor_g, seed=int(np.random.SeedSequence([seed, group]).generate_state(1)[0]))


def as_anndata(
    adata: AnnData,
    cells: PerturbedCells,
    found: Predicted,
    checked: Checked | None,
    params: dict[str, Any],
    *,
    latent: bool,
) -> AnnData:
    """Return the prediction as an AnnData with one row per source cell."""
    populations, rows = cells.populations, found.rows
    names = adata.obs_names[rows]
    kept = [key for key in (populations.groupby, *_columns(cells)) if key is not None]
    obs = adata.obs.iloc[rows][list(dict.fromkeys(kept))].copy()
    obs.index = pd.Index(names.astype(str), dtype=object)
    obs[populations.perturbation_key] = pd.Categorical([populations.target] * len(rows))
    obs["source_cell"] = names.astype(str).to_numpy(dtype=object)
    obs["support"] = found.support_n
    obs["library_size"] = cells.library_n[rows]
    out = AnnData(found.counts, obs=obs, var=adata.var.loc[cells.genes].iloc[:, :0].copy())
    out.layers["mean"] = found.mean_ng
    out.layers["control"] = cells.counts[rows].astype(np.float32)
    if latent:
        out.obsm["X_vae"] = found.z_nd
        out.obsm["X_vae_control"] = cells.encoded.mean_nd[rows]
    record: dict[str, Any] = {
        "params": params,
        "floors": floors_of(cells),
        "groups": np.array([populations.groups[group] for group in populations.wanted], dtype=object),
    }
    if checked is not None:
        record |= {"checked": checked.table, "verdict": checked.verdict}
    out.uns["perturbation"] = record
    return out


def _columns(cells: PerturbedCells) -> list[str]:
    table = cells.fit.covariates
    return [key for key, _ in table.categorical] + [key for key, _ in table.continuous]


def floors_of(cells: PerturbedCells) -> dict[str, np.ndarray]:
    """Compute the change that each floor predicts for the wanted groups, float64 (groups, genes)."""
    populations = cells.populations
    known = populations.learned_from
    return {
        floor.name: np.stack([floor.change(cells, group, known) for group in populations.wanted])
        for floor in FLOORS
        if floor is not Control and floor.available(cells, populations.wanted[0], known)
    }


def warn(cells: PerturbedCells, found: Predicted, checked: Checked | None, *, latent: bool) -> None:
    """Warn about predictions that the data do not support."""
    populations = cells.populations
    group_n = populations.group_n[found.rows]
    never = [
        populations.groups[group]
        for group in populations.wanted
        if not populations.treated(group).size and np.median(found.support_n[group_n == group]) < LOW_SUPPORT
    ]
    if never:
        logg.warning(
            f"Groups {never} have no cells with {populations.perturbation_key} = {populations.target}, and most of their predicted cells are "
            f"farther from treated cells than {1 - LOW_SUPPORT:.0%} of these are from each other: the prediction is an extrapolation. "
            "The score of every cell is in obs['support']."
        )
    if latent and checked is not None and checked.no_better:
        logg.warning(checked.verdict)
