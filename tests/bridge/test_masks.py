"""Masks as arguments: every function that selects cells or genes reads them alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from vxpress.bridge.ask.arguments import named_genes
from vxpress.bridge.ask.comparable import shared_cells
from vxpress.bridge.ask.endpoints import endpoint_rows
from vxpress.bridge.ask.outliers import _mask
from vxpress.bridge.read.prepare import modelled_genes
from vxpress.bridge.read.selection import select_cells

NAMES = ["a", "b", "c", "d"]
CHOSEN = [True, False, False, True]


def adata_of(n: int) -> AnnData:
    return AnnData(np.ones((n, n), dtype=np.float32), obs=pd.DataFrame(index=NAMES), var=pd.DataFrame(index=NAMES))


def genes_of(adata: AnnData, mask: object) -> np.ndarray:
    return adata.var_names.isin(named_genes(adata, mask))  # type: ignore[arg-type]


def rows_as_mask(rows: np.ndarray) -> np.ndarray:
    return np.isin(np.arange(len(NAMES)), rows)


READERS: dict[str, Callable[[AnnData, object], np.ndarray]] = {
    "cells=": lambda adata, mask: rows_as_mask(select_cells(adata, mask, "cells")),
    "source=": lambda adata, mask: rows_as_mask(endpoint_rows(adata, mask, None, "source")),
    "calibration=": lambda adata, mask: _mask(adata, mask),  # type: ignore[arg-type]  # noqa: PLW0108
    "genes=": genes_of,
    "mask_var=": lambda adata, mask: modelled_genes(adata, mask)[0],
}


@pytest.fixture(params=READERS)
def read(request: pytest.FixtureRequest) -> Callable[[AnnData, object], np.ndarray]:
    return READERS[request.param]


@pytest.mark.parametrize(
    "mask",
    [
        CHOSEN,
        np.array(CHOSEN),
        np.array(CHOSEN, dtype=object),
        pd.array(CHOSEN, dtype="boolean"),
        pd.Series(CHOSEN, index=NAMES),
        pd.Series(CHOSEN, dtype="boolean"),
        pd.Series(CHOSEN, index=NAMES, dtype="category"),
    ],
)
def test_booleans_of_every_type_select(read: Callable[[AnnData, object], np.ndarray], mask: object) -> None:
    np.testing.assert_array_equal(read(adata_of(4), mask), CHOSEN)


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (pd.array([True, None, False, True], dtype="boolean"), r"missing \(NaN\) for 1 of 4 .*fillna"),
        (pd.Series([True, None, False, True], index=NAMES, dtype=object), r"missing \(NaN\) for 1 of 4 .*fillna"),
        (pd.Series(CHOSEN, index=NAMES[::-1]), "index of .* differs"),
        (np.array(CHOSEN[:3]), "should be 4 booleans"),
        (np.array(CHOSEN)[:, None], "should be 4 booleans"),
    ],
)
def test_masks_with_gaps_or_in_another_order_are_refused(
    read: Callable[[AnnData, object], np.ndarray], mask: object, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        read(adata_of(4), mask)


def test_gaps_in_a_column_of_cells_are_named() -> None:
    adata = adata_of(4)
    adata.obs["kept"] = pd.array([True, None, False, True], dtype="boolean")
    with pytest.raises(ValueError, match=r"obs\['kept'\].* missing \(NaN\) for 1 of 4 cells"):
        select_cells(adata, "kept", "cells")
    with pytest.raises(ValueError, match=r"obs\['kept'\].* missing \(NaN\) for 1 of 4 cells"):
        shared_cells(adata, [], "kept")


def test_a_generator_of_positions_is_read_once() -> None:
    np.testing.assert_array_equal(select_cells(adata_of(4), (i for i in (3, 1)), "cells"), [1, 3])


def test_zeros_and_ones_are_not_taken_for_positions_of_two_cells() -> None:
    with pytest.raises(ValueError, match=r"astype\(bool\)"):
        select_cells(adata_of(4), np.array([1, 0, 0, 1]), "cells")
    np.testing.assert_array_equal(select_cells(adata_of(4), np.array([1, 0]), "cells"), [0, 1])
