"""Predicted and measured cells as a pair of AnnDatas, which other evaluators read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from vxpress.bridge.ask.evaluation.checking import check_one_method, check_predicted_counts
from vxpress.bridge.ask.evaluation.populations import ALL, SOURCE, Keys, Part, Scale, Unit, columns_of, units_of


def pair_of(
    parts: Sequence[Part], observed: AnnData, control: AnnData, keys: Keys, scale: Scale
) -> tuple[AnnData, AnnData]:
    """Return predicted and measured cells, each with the same real control cells and the same targets."""
    genes = parts[0].adata.var_names
    check_one_method(parts, keys, "predicted", mapping=False)
    units = [unit for unit in units_of(keys, parts, observed, control) if len(unit.observed_n) and len(unit.control_n)]
    label = keys.control if keys.control is not None else "control"
    if label in {unit.target for unit in units}:
        msg = f"A predicted target has the name {label!r}, which control cells get here. Rename the target."
        raise ValueError(msg)
    controls = _Cells(genes, keys)
    wanted = list(dict.fromkeys(unit.group for unit in units))
    columns = columns_of(control, genes, "control")
    for group in wanted:
        rows = next(unit.control_n for unit in units if unit.group == group)
        controls.add(scale.read(control, rows, columns, scale.layer, "control"), control.obs_names[rows], label, group)
    real, predicted = _Cells(genes, keys), _Cells(genes, keys)
    columns = columns_of(observed, genes, "treated")
    measured = []
    for unit in units:
        x = scale.read(observed, unit.observed_n, columns, scale.layer, "treated")
        measured.append(x)
        real.add(x, observed.obs_names[unit.observed_n], unit.target, unit.group)
    for part in parts:
        columns = columns_of(part.adata, genes, "predicted")
        group_n, target_n = keys.labels(part.adata, "predicted")
        for unit, treated in zip(units, measured, strict=True):
            rows = np.flatnonzero((group_n == unit.group) & (target_n == unit.target))
            if len(rows):
                check_predicted_counts(scale.block(part.adata, rows), columns, [treated], scale, "predicted")
                x = scale.read(part.adata, rows, columns, None, "predicted")
                predicted.add(x, _names(part.adata, rows, unit), unit.target, unit.group)
    return predicted.joined(controls), real.joined(controls)


def _names(adata: AnnData, rows: np.ndarray, unit: Unit) -> list[str]:
    """Name predicted cells after their control cell and target, so that no two cells have the same name."""
    names = adata.obs[SOURCE] if SOURCE in adata.obs else pd.Series(adata.obs_names)
    return [f"{name}_{unit.target}" for name in names.astype(str).iloc[rows]]


class _Cells:
    """Collects log values of cells with their target and group."""

    def __init__(self, genes: pd.Index, keys: Keys) -> None:
        self.genes, self.keys = genes, keys
        self.x: list[sparse.csr_matrix] = []
        self.obs: list[pd.DataFrame] = []

    def add(self, x: sparse.csr_matrix, names: Sequence[str], target: str, group: str) -> None:
        columns = {self.keys.perturbation_key or "perturbation": target}
        if self.keys.groupby is not None and group != ALL:
            columns[self.keys.groupby] = group
        self.x.append(x.astype(np.float32))
        self.obs.append(pd.DataFrame(columns, index=pd.Index(list(names), dtype=str)))

    def joined(self, controls: _Cells) -> AnnData:
        obs = pd.concat([*self.obs, *controls.obs])
        for column in obs:
            obs[column] = obs[column].astype("category")
        x = sparse.vstack([*self.x, *controls.x], format="csr")
        return AnnData(x, obs=obs, var=pd.DataFrame(index=self.genes))
