"""Assemble a prediction: methods, decoding, support and check, as an AnnData."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg
from scipy import sparse

from vxpress.bridge.ask.perturbation.base import Moved
from vxpress.bridge.ask.perturbation.cells import PerturbedCells
from vxpress.bridge.ask.perturbation.checking import Checked
from vxpress.bridge.ask.perturbation.decoding import decode, factors_for, part_of, some
from vxpress.bridge.ask.perturbation.floors import FLOORS, Control
from vxpress.bridge.ask.perturbation.latent_map import ByLatentMap
from vxpress.bridge.ask.perturbation.populations import Populations
from vxpress.bridge.ask.perturbation.prediction import Predictor
from vxpress.bridge.ask.perturbation.support import support_of
from vxpress.core.blocks import Z

LOW_SUPPORT = 0.02
# changes of the mean profile that are the same
SAME = 1e-9


@dataclass(frozen=True)
class Predicted:
    """Predicted cells: rows of the source cells, counts, expected counts, positions, support, and change of each group."""

    rows: np.ndarray
    counts: sparse.csr_matrix
    mean_ng: np.ndarray
    z_nd: np.ndarray
    support_n: np.ndarray
    change: np.ndarray


def predict(predictor: Predictor, *, seed: int) -> Predicted:
    """Predict the control cells of all wanted groups, one group after the other."""
    cells, method, populations = predictor.cells, predictor.method, predictor.cells.populations
    # where cells of a floor would be
    positions = ByLatentMap.named("shift")(None, seed)
    parts: list[tuple[np.ndarray, sparse.csr_matrix, np.ndarray, np.ndarray, np.ndarray]] = []
    known = populations.learned_from
    for group in populations.wanted:
        rows = populations.controls(group)
        moved = method.predict(cells, rows, group, known)
        change_g = np.zeros(len(cells.genes))
        factor_g = None
        if moved.change_g is None or moved.change_g.any():
            change_g, factor_g = _change(predictor, rows, group, moved, seed=seed)
        own_seed = int(np.random.SeedSequence([seed, group]).generate_state(1)[0])
        counts, mean_ng = decode(cells, rows, moved, factor_g, seed=own_seed)
        if not method.in_latent_space and known:
            moved = positions.predict(cells, rows, group, known)
        parts.append((rows, counts, mean_ng, moved.encoded.mean[Z], change_g))
    rows, z_nd = np.concatenate([part[0] for part in parts]), np.concatenate([part[3] for part in parts])
    counts = sparse.vstack([part[1] for part in parts], format="csr")
    mean_ng, change = np.concatenate([part[2] for part in parts]), np.stack([part[4] for part in parts])
    return Predicted(rows, counts, mean_ng, z_nd, _support(cells, z_nd, seed), change)


def _change(
    predictor: Predictor, rows: np.ndarray, group: int, moved: Moved, *, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the change of the mean profile of a group, and the log factors of genes with which its cells have it."""
    target = predictor.target(rows, group, moved, predictor.cells.populations.learned_from)
    if np.abs(target.more_g).max() <= SAME:
        return target.change_g, None
    at = some(rows, seed)
    return target.change_g, factors_for(predictor.cells, rows[at], part_of(moved, at), target.more_g)


def _support(cells: PerturbedCells, z_nd: np.ndarray, seed: int) -> np.ndarray:
    """Compute the support of the predicted positions: by cells with the target, else by those with each of its parts."""
    populations = cells.populations
    names = [populations.target]
    if not populations.treated().size:
        names = [populations.alone(part) for part in populations.parts()]
    found = [
        support_of(z_nd, cells.encoded.mean_nd[populations.rows(name)], np.random.default_rng([seed, 3]))
        for name in names
    ]
    lowest: np.ndarray = np.min(found, axis=0)
    return lowest


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
        "change": found.change,
        "molecules": np.array([_molecules(populations, found, group) for group in populations.wanted]),
        "floors": floors_of(cells),
        "groups": np.array([populations.groups[group] for group in populations.wanted], dtype=object),
        "genes": np.asarray(cells.genes).astype(str).astype(object),
    }
    if checked is not None:
        record |= {"checked": checked.table, "verdict": checked.verdict}
    out.uns["perturbation"] = record
    return out


def _molecules(populations: Populations, found: Predicted, group: int) -> float:
    """Return the number of molecules in the predicted cells of a group, by which they are known to be unchanged."""
    return float(found.counts[populations.group_n[found.rows] == group].sum(dtype=np.float64))


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
