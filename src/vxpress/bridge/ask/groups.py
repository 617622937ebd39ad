"""The groups of cells that a test compares: categories of a column of ``obs``, or given sets of cells."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from anndata import AnnData

from vxpress._names import each_value, find_name, find_names
from vxpress.bridge.read.columns import get_categories
from vxpress.bridge.read.selection import Cells as CellSet
from vxpress.bridge.read.selection import select_cells
from vxpress.core.inference.differential import Ints

CellSets: TypeAlias = CellSet | Mapping[str, CellSet]


@dataclass(frozen=True)
class Groups:
    """Names of groups, the code of each cell (-1: in no group), the codes of the tested groups, and that of the reference."""

    names: tuple[str, ...]
    code_n: Ints
    tested: tuple[int, ...]
    reference: int | None

    @classmethod
    def read(cls, adata: AnnData, groupby: str, groups: str | Sequence[Hashable], reference: Hashable) -> Groups:
        """Read ``obs[groupby]``; as in scanpy, ``groups`` are tested and "rest" means all other cells."""
        found = get_categories(adata.obs, groupby, argument="groupby", gaps=True)
        names = found.names
        if len(names) < 2:
            msg = f"obs[{groupby!r}] has {len(names)} categories with cells ({list(names)}); at least two are needed to compare."
            raise ValueError(msg)
        rest = isinstance(reference, str) and reference == "rest"
        compared = None if rest else find_name(reference, names)
        if compared is None and not rest:
            msg = f"reference={reference!r} is not a category of obs[{groupby!r}] with cells; choose 'rest' or one of {list(names)}."
            raise ValueError(msg)
        wanted = list(names) if isinstance(groups, str) and groups == "all" else find_names(_listed(groups), names)
        if None in wanted or not wanted:
            msg = f"groups={groups!r}: obs[{groupby!r}] has the categories {list(names)}. Name one or more of these, or 'all'."
            raise ValueError(msg)
        other = None if compared is None else names.index(compared)
        tested = tuple(i for i, name in enumerate(names) if name in wanted and i != other)
        if not tested:
            msg = f"groups={groups!r} names only the reference {reference!r}; name a group to compare with it."
            raise ValueError(msg)
        code_n = found.code_n
        if other is not None:
            code_n = np.where(np.isin(code_n, (*tested, other)), code_n, -1)
        return cls(names, code_n, tested, other)

    @classmethod
    def of_cells(cls, adata: AnnData, cells: CellSets, reference_cells: CellSets | None) -> Groups:
        """Use given sets of cells: each is compared with the reference cells, or with all cells outside it."""
        given = cells if isinstance(cells, Mapping) else {"cells": cells}
        if not given:
            msg = "cells={} names no set of cells; at least one is expected."
            raise ValueError(msg)
        rows = {
            str(name): select_cells(adata, one, f"cells[{name!r}]" if isinstance(cells, Mapping) else "cells=")
            for name, one in given.items()
        }
        if len(rows) < len(given) or "" in rows:
            msg = f"cells= has the names {list(given)}; names that differ as text and are not empty are expected."
            raise ValueError(msg)
        names = tuple(rows)
        code_n = np.full(adata.n_obs, -1, dtype=np.int64)
        for code, (name, at) in enumerate(rows.items()):
            _check_apart(code_n[at], f"cells[{name!r}]", "another set of cells=")
            code_n[at] = code
        if reference_cells is None:
            code_n[code_n < 0] = len(names)
            if len(names) == 1 and not (code_n == 1).any():
                msg = "cells= selects all cells of adata, which leaves none to compare with."
                raise ValueError(msg)
            return cls((*names, "rest"), code_n, tuple(range(len(names))), None)
        if isinstance(reference_cells, Mapping):
            if len(reference_cells) != 1:
                msg = f"reference_cells= has {len(reference_cells)} names; one set of cells is expected, with or without a name."
                raise ValueError(msg)
            ((name, reference_cells),) = reference_cells.items()
            reference = str(name)
        else:
            reference = "reference_cells"
        if reference in names or reference == "":
            msg = f"reference_cells= has the name {reference!r}; a name that is not empty and that no set of cells= has is expected."
            raise ValueError(msg)
        at = select_cells(adata, reference_cells, "reference_cells=")
        _check_apart(code_n[at], "reference_cells=", "cells=")
        code_n[at] = len(names)
        return cls((*names, reference), code_n, tuple(range(len(names))), len(names))

    @property
    def reference_name(self) -> str:
        """The name of the reference in scanpy's record."""
        return "rest" if self.reference is None else self.names[self.reference]


def _check_apart(code_n: Ints, one: str, other: str) -> None:
    """Raise if a cell is in two sets."""
    n = int((code_n >= 0).sum())
    if n:
        msg = f"{n} cell(s) of {one} are also in {other}; a cell can be on one side of a comparison only. Remove them from one of the two."
        raise ValueError(msg)


def _listed(groups: str | Sequence[Hashable]) -> list[Hashable]:
    if isinstance(groups, str) or not isinstance(groups, Iterable):
        msg = f"groups={groups!r}: a list of categories or 'all' is expected, for example groups=[{groups!r}]."
        raise ValueError(msg)
    return each_value(groups)
