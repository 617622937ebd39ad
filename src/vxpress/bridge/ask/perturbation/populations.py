"""The populations of a prediction: control cells and treated cells of every group, all named by arguments."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scanpy import logging as logg

from vxpress._names import each_value, find_name
from vxpress.bridge.read.columns import get_categories
from vxpress.bridge.read.perturbations import components

# columns of the result that no column of the user may replace
RESERVED = ("source_cell", "support", "library_size")
# name of the only group if there is no column of groups
ALL_CELLS = "all cells"


@dataclass(frozen=True)
class Populations:
    """Names of perturbations and groups, their codes for every cell, int64 (n,), and the codes of the groups to predict.

    Without a column of groups, all cells are one group.
    """

    perturbation_key: str
    perturbations: tuple[str, ...]
    perturbation_n: np.ndarray
    control: str
    target: str
    groupby: str | None
    groups: tuple[str, ...]
    group_n: np.ndarray
    wanted: tuple[int, ...]

    @classmethod
    def find(
        cls,
        obs: pd.DataFrame,
        perturbation_key: str,
        *,
        control: Hashable,
        target: Hashable,
        groupby: str | None,
        groups: Hashable | Sequence[Hashable] | None,
    ) -> Populations:
        """Read the columns and check the names; ``target`` need not be the perturbation of any cell."""
        _check_columns(perturbation_key, groupby)
        found = get_categories(obs, perturbation_key, argument="perturbation_key")
        control_name = _perturbation(found.names, control, "control", perturbation_key)
        target_name = find_name(target, found.names)
        if target_name is None:
            # a combination may be written in another order
            wanted = set(parts_in(str(target), control_name, perturbation_key))
            same = [one for one in found.names if set(parts_in(one, control_name, perturbation_key)) == wanted]
            target_name = same[0] if same and wanted else str(target)
        if target_name == control_name:
            msg = f"control= and target= are both {control_name!r}. Name two perturbations of obs[{perturbation_key!r}], which holds {list(found.names)}."
            raise ValueError(msg)
        names: tuple[str, ...] = (ALL_CELLS,)
        group_n = np.zeros(len(obs), dtype=np.int64)
        if groupby is not None:
            by = get_categories(obs, groupby, argument="groupby")
            names, group_n = by.names, by.code_n
        elif groups is not None:
            msg = f"groups={groups!r} was given without groupby=, the column of obs that holds the groups. Name it, or leave groups= out."
            raise ValueError(msg)
        here = cls(perturbation_key, found.names, found.code_n, control_name, target_name, groupby, names, group_n, ())
        return here.wanting(groups)

    def wanting(self, groups: Hashable | Sequence[Hashable] | None) -> Populations:
        """Return the populations with the groups to predict: the named ones, or all that have control cells."""
        controls = [code for code in range(len(self.groups)) if self.controls(code).size]
        if not controls:
            msg = f"No cell of adata is a control cell with a group: obs[{self.perturbation_key!r}] == {self.control!r}. The prediction starts from control cells."
            raise ValueError(msg)
        if groups is None:
            out = [name for code, name in enumerate(self.groups) if code not in controls]
            if out:
                logg.warning(
                    f"Groups without control cells ({self.perturbation_key} = {self.control}) are not predicted: {out}."
                )
            return self._with(controls)
        wanted = []
        for value in each_value(groups):
            name = find_name(value, self.groups)
            if name is None:
                msg = f"groups= names {value!r}, which is not in obs[{self.groupby!r}]; it holds {list(self.groups)}."
                raise ValueError(msg)
            code = self.groups.index(name)
            if code not in controls:
                msg = (
                    f"groups= names {name!r}, which has no control cells (obs[{self.perturbation_key!r}] == {self.control!r}) to start from. "
                    f"Groups with control cells: {[self.groups[c] for c in controls]}."
                )
                raise ValueError(msg)
            if code not in wanted:
                wanted.append(code)
        if not wanted:
            msg = "groups= names no group; name at least one, or leave groups= out for all groups with control cells."
            raise ValueError(msg)
        return self._with(wanted)

    def _with(self, wanted: Sequence[int]) -> Populations:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Populations(**(fields | {"wanted": tuple(wanted)}))

    # names

    def parts(self, name: str | None = None) -> list[str]:
        """Return the single perturbations of a condition, by default the target; a name that joins nothing is one itself."""
        return parts_in(self.target if name is None else name, self.control, self.perturbation_key)

    def alone(self, part: str) -> str:
        """Return the condition of a single perturbation, which may be written with the control, as in ``"A+ctrl"``."""
        found = [name for name in self.perturbations if self.parts(name) == [part]]
        return found[0] if found and part not in found else part

    # cells

    def rows(self, perturbation: str, group: int | None = None) -> np.ndarray:
        """Return the rows of the cells with a perturbation, of one group or of all."""
        if perturbation not in self.perturbations:
            return np.zeros(0, dtype=np.int64)
        chosen = self.perturbation_n == self.perturbations.index(perturbation)
        if group is not None:
            chosen &= self.group_n == group
        return np.flatnonzero(chosen)

    def controls(self, group: int | None = None) -> np.ndarray:
        """Return the rows of the control cells."""
        return self.rows(self.control, group)

    def treated(self, group: int | None = None) -> np.ndarray:
        """Return the rows of the cells with the target perturbation."""
        return self.rows(self.target, group)

    def groups_with(self, *perturbations: str) -> tuple[int, ...]:
        """Return the codes of the groups that have cells of all of these perturbations."""
        codes = range(len(self.groups))
        return tuple(c for c in codes if all(self.rows(name, c).size for name in perturbations))

    @property
    def learned_from(self) -> tuple[int, ...]:
        """Codes of the groups with control cells and treated cells."""
        return self.groups_with(self.control, self.target)


def parts_in(name: str, control: str, key: str) -> list[str]:
    """Return the single perturbations of a condition without the control; a name that joins nothing is one itself."""
    try:
        parts = components(name, control, key)
    except ValueError:
        return [name]
    return [part for part in parts if part != control]


def _check_columns(perturbation_key: str, groupby: str | None) -> None:
    if groupby is not None and groupby == perturbation_key:
        msg = f"groupby= and perturbation_key= both name {groupby!r}. groupby= is the column of groups of cells, for example cell types."
        raise ValueError(msg)
    for argument, key in (("perturbation_key", perturbation_key), ("groupby", groupby)):
        if key in RESERVED:
            msg = f"{argument}={key!r} has the name of a column of the result. Rename it: adata.obs = adata.obs.rename(columns={{{key!r}: 'my_{key}'}})."
            raise ValueError(msg)


def _perturbation(names: tuple[str, ...], value: Hashable, argument: str, key: str) -> str:
    name = find_name(value, names)
    if name is None:
        msg = f"{argument}={value!r} is not in obs[{key!r}]; it holds {list(names)}."
        raise ValueError(msg)
    return name
