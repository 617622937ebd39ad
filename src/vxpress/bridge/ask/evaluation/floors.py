"""Floors of an evaluation: simple predictions that a method should beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from vxpress._names import find_name
from vxpress.bridge.ask.evaluation.populations import ALL, Keys, Part, Scale, Unit, methods_of

CONTROL = "control"


def given_floors(floors: Any) -> tuple[dict[str, Any], dict[str, list[Part]]]:
    """Split the argument into arrays of changes and predicted cells, by name."""
    if floors is None:
        return {}, {}
    if not isinstance(floors, Mapping):
        msg = f"floors= should be a mapping of names to predicted cells (AnnData) or changes (arrays); found {type(floors).__name__}."
        raise TypeError(msg)
    cells = {str(name): value for name, value in floors.items() if _is_cells(value)}
    arrays = {str(name): value for name, value in floors.items() if not _is_cells(value)}
    return arrays, methods_of(cells) if cells else {}


def _is_cells(value: Any) -> bool:
    return isinstance(value, AnnData) or (
        isinstance(value, list | tuple) and bool(value) and isinstance(value[0], AnnData)
    )


@dataclass(frozen=True)
class FloorChanges:
    """Changes that floors predict: given arrays, and those stored with the predictions."""

    arrays: Mapping[str, Any]
    parts: Sequence[Part]
    keys: Keys
    genes: pd.Index
    n_units: int

    def of(self, unit: Unit, position: int) -> dict[str, np.ndarray]:
        """Return the changes predicted for a unit, by name of the floor; those given replace stored ones."""
        found: dict[str, np.ndarray] = {CONTROL: np.zeros(len(self.genes))}
        for part in self.parts:
            if unit.target in set(self.keys.labels(part.adata, "predicted")[1]):
                for name, value in _stored(part, unit, self.genes):
                    found.setdefault(name, value)
        for name, value in self.arrays.items():
            change = self._given(name, value, unit, position)
            if change is not None:
                found[name] = change
        return {name: value for name, value in found.items() if np.isfinite(value).all()}

    def _given(self, name: str, value: Any, unit: Unit, position: int) -> np.ndarray | None:
        """Read one given floor: a table with the units as rows and genes as columns, or an array in these orders."""
        if isinstance(value, pd.Series):
            value = value.to_frame().T
        if isinstance(value, pd.DataFrame):
            columns = value.columns.get_indexer(self.genes)
            if (columns < 0).any():
                lacking = self.genes[np.argmax(columns < 0)]
                msg = f"The columns of floors[{name!r}] lack predicted genes (for example {lacking!r})."
                raise KeyError(msg)
            names = [str(label) for label in value.index]
            wanted = [find_name(label, names) for label in (unit.target, unit.group)]
            row = next((names.index(label) for label in wanted if label is not None), 0 if len(value) == 1 else None)
            return None if row is None else value.iloc[row, columns].to_numpy(dtype=np.float64)
        try:
            array = np.atleast_2d(np.asarray(value, dtype=np.float64))
        except (TypeError, ValueError) as error:
            msg = f"floors[{name!r}] is a {type(value).__name__} that does not hold numbers ({error}); a change for each gene is expected."
            raise TypeError(msg) from error
        if array.shape[1] != len(self.genes) or len(array) not in (1, self.n_units):
            msg = (
                f"floors[{name!r}] has shape {np.shape(value)}; a change for each of {len(self.genes)} genes is expected, in one row or "
                f"in {self.n_units} (one per group and target, in the order of the predictions)."
            )
            raise ValueError(msg)
        return np.asarray(array[position if len(array) > 1 else 0])


def _stored(part: Part, unit: Unit, genes: pd.Index) -> Iterator[tuple[str, np.ndarray]]:
    floors = part.stored.get("floors", {})
    if not isinstance(floors, Mapping):
        return
    names = part.names("groups")
    row = names.index(unit.group) if unit.group in names else 0
    columns = part.columns(genes)
    for name, value in floors.items():
        array = np.atleast_2d(np.asarray(value, dtype=np.float64))
        known = unit.group in names or (unit.group == ALL and len(array) == 1)
        if known and columns is not None and array.shape[1] > columns.max():
            yield str(name), array[row, columns]


def stated_change(
    part: Part, unit: Unit, rows: np.ndarray, genes: pd.Index, scale: Scale
) -> tuple[np.ndarray | None, str]:
    """Return the change of a unit that is stored with a prediction, (genes,), if it belongs to its cells as they are.

    If a change is stored that does not, the text says why; it is empty otherwise.
    """
    if not {"change", "molecules"} <= set(part.stored):
        return None, ""
    names, columns = part.names("groups"), part.columns(genes)
    change, molecules = (np.asarray(part.stored[key], dtype=np.float64) for key in ("change", "molecules"))
    known = bool(names) and columns is not None and change.shape == (len(names), len(part.names("genes")))
    if not known or columns is None or (len(names) > 1 and unit.group not in names):
        return None, "uns['perturbation'] does not state it for these groups and genes"
    if scale.log_transformed:
        return None, "with log_transformed=True it cannot be checked that the cells are as they were predicted"
    row = names.index(unit.group) if unit.group in names else 0
    # cells that were edited or left out have another sum
    found = float(part.adata.X[rows].sum(dtype=np.float64))
    if not np.isclose(found, molecules[row], rtol=1e-6):
        return None, f"cells were edited or left out (molecules: {found:.15g}, as predicted {molecules[row]:.15g})"
    if scale.library_key is None and not same_library(part.adata, rows):
        return None, "the size factors are not the sums over the predicted genes; pass library_key='library_size'"
    return change[row, columns], ""


def same_library(adata: AnnData, rows: np.ndarray | slice = slice(None)) -> bool:
    """Return whether the size factors of a prediction are the sums over its genes, as those of the scores are.

    Control cells without molecules have a size factor of other cells, so they are not compared.
    """
    if "control" not in adata.layers or "library_size" not in adata.obs:
        return False
    total_n = np.asarray(adata.layers["control"][rows].sum(1, dtype=np.float64)).reshape(-1)
    library_n = adata.obs["library_size"].to_numpy(dtype=np.float64)[rows]
    return bool(np.isclose(total_n.sum(), library_n[total_n > 0].sum(), rtol=0.02))
