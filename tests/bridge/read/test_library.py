from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from vxpress.bridge.read.counts import CountData
from vxpress.bridge.read.library import read_library, resolve_library

INSIDE = np.array([5.0, 10.0, 0.0])
TOTAL = np.array([8.0, 10.0, 2.0])
COUNTS = CountData(sparse.csr_matrix((3, 1)), None, INSIDE, TOTAL)


def _obs(**columns: object) -> pd.DataFrame:
    return pd.DataFrame(columns, index=["a", "b", "c"])


def test_sum_of_the_genes_present_without_a_column() -> None:
    library = resolve_library(_obs(), COUNTS, "observed", modelled_only=False)
    np.testing.assert_array_equal(library.values_n, TOTAL)
    assert library.beyond


def test_the_column_has_priority_and_preset_scvi_uses_the_modelled_genes() -> None:
    obs = _obs(library_size=[20, 30, 40])
    assert resolve_library(obs, COUNTS, "observed", modelled_only=False).values_n.tolist() == [20, 30, 40]
    reference = resolve_library(obs, COUNTS, "observed", modelled_only=True)
    np.testing.assert_array_equal(reference.values_n, INSIDE)
    assert not reference.beyond


def test_a_size_factor_is_scaled_to_the_mean_library() -> None:
    factors = np.array([0.5, 1.5, 1.0])
    library = resolve_library(_obs(sf=factors), COUNTS, "sf", modelled_only=False)
    np.testing.assert_allclose(library.values_n.mean(), TOTAL.mean())
    np.testing.assert_allclose(library.values_n / factors, library.factor)
    assert "rescaled" in library.source
    assert not library.beyond  # every gene is modelled with any factor
    again = read_library(_obs(sf=2 * factors), COUNTS, library.source, "sf", library.factor)
    np.testing.assert_allclose(again, 2 * library.values_n)


def test_a_column_of_molecules_is_not_rescaled() -> None:
    library = resolve_library(_obs(n_counts=[9, 11, 3]), COUNTS, "n_counts", modelled_only=False)
    assert library.values_n.tolist() == [9, 11, 3]
    assert library.factor == 1.0


@pytest.mark.parametrize(
    ("column", "match"),
    [
        ([1.0, 30.0, 40.0], "smaller than the molecules"),
        ([0.0, 30.0, 40.0], "zero, negative"),
        ([-1.0, 30.0, 40.0], "zero, negative"),
        ([np.inf, 30.0, 40.0], "infinite"),
        ([np.nan, 30.0, 40.0], "missing"),
        (["x", "y", "z"], "dtype"),
    ],
)
def test_impossible_libraries_are_refused(column: list, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        resolve_library(_obs(library_size=column), COUNTS, "observed", modelled_only=False)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(KeyError, match="size_factor"):
        resolve_library(_obs(), COUNTS, "size_factor", modelled_only=False)
