"""Read the labels of cells, some of which may have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scanpy import logging as logg

from vxpress._names import find_name
from vxpress.bridge.read.columns import get_categories

# with fewer labelled cells, no classifier can be learned and judged
MIN_LABELLED = 10
MAX_NAMED = 5


@dataclass(frozen=True)
class CellLabels:
    """The labels of the cells of a fit: the names, and the code of every cell, int64 (n,), -1 if it has none."""

    key: str
    unlabeled: str
    names: tuple[str, ...]
    code_n: np.ndarray

    @classmethod
    def read(cls, obs: pd.DataFrame, key: str, unlabeled: str, rows: np.ndarray) -> CellLabels:
        """Read a column whose missing values and category ``unlabeled`` mean that a cell has no label.

        The names are those of the cells ``rows``, which have counts. Raises ``ValueError`` unless at least two of them occur
        and :data:`MIN_LABELLED` cells have one.
        """
        found = get_categories(obs, key, argument="labels_key", gaps=True)
        without = find_name(unlabeled, found.names)
        if without is None:
            _check_spelling(unlabeled, found.names, key)
        used = np.bincount(found.code_n[rows][found.code_n[rows] >= 0], minlength=len(found.names))
        kept = [i for i, name in enumerate(found.names) if used[i] and name != without]
        n_labelled = int(used[kept].sum())
        if len(kept) < 2 or n_labelled < MIN_LABELLED:
            msg = (
                f"obs[{key!r}] holds {len(kept)} label(s) in {n_labelled} cell(s) with counts; at least 2 labels in {MIN_LABELLED} "
                f"cells are needed to learn them. Cells without a label have a missing value or unlabeled_category={unlabeled!r}. "
                "Leave labels_key= out to fit without labels."
            )
            raise ValueError(msg)
        single = [found.names[i] for i in kept if used[i] == 1]
        if len(single) == len(kept):
            msg = (
                f"Each of the {len(kept)} labels in obs[{key!r}] has one cell only (for example {single[0]!r}), as names of cells have. "
                "Name a column of labels that several cells share."
            )
            raise ValueError(msg)
        if single:
            shown = ", ".join(map(repr, single[:MAX_NAMED])) + (", ..." if len(single) > MAX_NAMED else "")
            logg.warning(
                f"obs[{key!r}]: {len(single)} label(s) of one cell only ({shown}). How often they are recognised cannot be checked. "
                "Label more of their cells, or merge them with other labels."
            )
        place = np.full(len(found.names) + 1, -1, dtype=np.int64)
        place[kept] = np.arange(len(kept))
        code_n = place[found.code_n]
        if not (code_n[rows] < 0).any():
            logg.info(f"    every cell has a label in obs[{key!r}]")
        return cls(key, unlabeled, tuple(found.names[i] for i in kept), code_n)


def _check_spelling(unlabeled: str, names: Sequence[str], key: str) -> None:
    """Raise if a category differs from ``unlabeled`` in case or spaces only: its cells would be taken for labelled ones."""
    similar = [name for name in names if name.strip().casefold() == unlabeled.strip().casefold()]
    if similar:
        msg = f"obs[{key!r}] has no category {unlabeled!r}, but {similar[0]!r}. Pass unlabeled_category={similar[0]!r} if its cells have no label."
        raise ValueError(msg)
