"""Labels are read from columns of any kind; missing values and one category stand for cells without a label."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vxpress.bridge.read.labels import CellLabels

ROWS = np.arange(20)


def _obs(values: list[object]) -> pd.DataFrame:
    return pd.DataFrame({"type": pd.Series(values, dtype=object)})


@pytest.mark.parametrize("gap", [None, np.nan, "none yet"])
def test_both_spellings_of_no_label(gap: object) -> None:
    found = CellLabels.read(_obs(["b", "a"] * 8 + [gap] * 4), "type", "none yet", ROWS)
    assert found.names == ("a", "b")
    np.testing.assert_array_equal(found.code_n, [1, 0] * 8 + [-1] * 4)


def test_numbers_and_categoricals() -> None:
    numbers = pd.DataFrame({"type": [2.0, 10.0] * 8 + [np.nan] * 4})
    assert CellLabels.read(numbers, "type", "Unknown", ROWS).names == ("2", "10")
    minus_one = pd.DataFrame({"type": [2, 10] * 8 + [-1] * 4})
    assert CellLabels.read(minus_one, "type", "-1", ROWS).names == ("2", "10")
    categorical = pd.DataFrame({"type": pd.Categorical(["b", "a"] * 10, categories=["b", "a", "unused"])})
    assert CellLabels.read(categorical, "type", "Unknown", ROWS).names == ("b", "a")


def test_a_label_of_cells_without_counts_is_unknown_to_the_fit() -> None:
    found = CellLabels.read(_obs(["a", "b"] * 8 + ["c"] * 4), "type", "Unknown", np.arange(16))
    assert found.names == ("a", "b")
    assert set(found.code_n[16:]) == {-1}


def test_errors_say_what_is_missing() -> None:
    with pytest.raises(ValueError, match="1 label"):
        CellLabels.read(_obs(["a"] * 16 + [None] * 4), "type", "Unknown", ROWS)
    with pytest.raises(ValueError, match="unlabeled_category='unknown'"):
        CellLabels.read(_obs(["a", "b"] * 8 + ["unknown"] * 4), "type", "Unknown", ROWS)
    with pytest.raises(KeyError, match="labels_key='kind'"):
        CellLabels.read(_obs(["a", "b"] * 10), "kind", "Unknown", ROWS)


def test_names_of_cells_are_no_labels() -> None:
    with pytest.raises(ValueError, match="has one cell only"):
        CellLabels.read(_obs([f"cell{i}" for i in range(20)]), "type", "Unknown", ROWS)
