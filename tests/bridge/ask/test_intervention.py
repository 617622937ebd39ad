from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vxpress.bridge.ask.intervention import Intervention
from vxpress.bridge.read.covariates import CovariateTable

OBS = pd.DataFrame(
    {
        "batch": pd.Categorical(["b", "a", "b", "c"], categories=["c", "b", "a"]),
        "plate": [3, 1, 1, 3],
        "flag": [True, False, True, True],
        "age": [10.0, 20.0, 30.0, 40.0],
    },
    index=list("wxyz"),
)
TABLE = CovariateTable.learn(OBS, "batch", ["plate", "flag"], ["age"], None)


@pytest.mark.parametrize(
    ("key", "value", "column"),
    [
        ("batch", "a", [2] * 4),
        ("plate", 3, [1] * 4),
        ("plate", "3", [1] * 4),
        ("plate", 3.0, [1] * 4),
        ("flag", True, [1] * 4),
    ],
)
def test_one_category_is_set_and_the_others_are_unchanged(key: str, value: object, column: list[int]) -> None:
    before = TABLE.read(OBS)
    change = Intervention.find(TABLE, key, value)
    after = change.apply(before)
    k = ["batch", "plate", "flag"].index(key)
    np.testing.assert_array_equal(after.categorical_nk[:, k], column)
    others = [i for i in range(3) if i != k]
    np.testing.assert_array_equal(after.categorical_nk[:, others], before.categorical_nk[:, others])
    np.testing.assert_array_equal(after.continuous_nc, before.continuous_nc)
    np.testing.assert_array_equal(change.weights(before), (OBS[key].astype(str) == str(change.value)).to_numpy())
    np.testing.assert_array_equal(TABLE.read(OBS).categorical_nk, before.categorical_nk)


def test_a_number_is_standardised_as_in_the_fit() -> None:
    before = TABLE.read(OBS)
    change = Intervention.find(TABLE, "age", 30)
    after = change.apply(before)
    np.testing.assert_allclose(after.continuous_nc[:, 0], before.continuous_nc[2, 0], rtol=1e-6)
    np.testing.assert_array_equal(after.categorical_nk, before.categorical_nk)
    weights = change.weights(before)
    assert weights.argmax() == 2
    assert weights[2] == pytest.approx(1)
    assert weights[1] == pytest.approx(weights[3])


@pytest.mark.parametrize(
    ("key", "value", "error", "match"),
    [
        ("bath", "a", KeyError, r"\['batch', 'plate', 'flag', 'age'\]"),
        ("batch", "new", ValueError, "is not a category"),
        ("plate", 1.5, ValueError, "is not a category"),
        ("age", "old", ValueError, "finite number"),
        ("age", np.nan, ValueError, "finite number"),
        ("age", True, ValueError, "finite number"),
    ],
)
def test_unknown_values_are_refused(key: str, value: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Intervention.find(TABLE, key, value)


def test_a_fit_without_covariates_and_a_covariate_of_both_kinds() -> None:
    with pytest.raises(KeyError, match="it has none"):
        Intervention.find(CovariateTable.learn(OBS, None, [], [], None), "batch", "a")
    both = CovariateTable.learn(OBS, None, ["plate"], ["plate"], None)
    with pytest.raises(ValueError, match="both"):
        Intervention.find(both, "plate", 1)
