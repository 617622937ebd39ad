from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vxpress.bridge.covariates import CovariateTable

OBS = pd.DataFrame(
    {
        "batch": pd.Categorical(["b", "a", "b", "c"], categories=["c", "b", "a", "unused"]),
        "plate": [3, 1, 1, 3],
        "flag": [True, False, True, True],
        "age": [10.0, 20.0, 30.0, 40.0],
        "same": [1.0, 1.0, 1.0, 1.0],
    },
    index=list("wxyz"),
)


def test_codes_follow_the_categories() -> None:
    table = CovariateTable.learn(OBS, "batch", ["plate", "flag"], ["age"], None)
    assert table.batches == ("c", "b", "a")
    covariates = table.read(OBS)
    np.testing.assert_array_equal(covariates.categorical_nk[:, 0], [1, 2, 1, 0])
    assert table.categorical[1:] == (("plate", ("1", "3")), ("flag", ("False", "True")))
    np.testing.assert_array_equal(covariates.categorical_nk[:, 1], [1, 0, 0, 1])


def test_numbers_are_standardised_by_the_cells_of_the_fit() -> None:
    table = CovariateTable.learn(OBS, None, [], ["age", "same"], None)
    values = table.read(OBS).continuous_nc.numpy()
    np.testing.assert_allclose(values[:, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(values[:, 0].std(), 1, rtol=1e-6)
    np.testing.assert_array_equal(values[:, 1], 0)
    np.testing.assert_array_equal(table.read(OBS.iloc[2:]).continuous_nc.numpy(), values[2:])


def test_a_table_comes_back_from_its_mapping() -> None:
    table = CovariateTable.learn(OBS, "batch", ["plate"], ["age"], "flag")
    assert CovariateTable.from_uns(table.to_uns()) == table
    empty = CovariateTable.learn(OBS, None, [], [], None)
    assert CovariateTable.from_uns(empty.to_uns()) == empty


def test_codes_do_not_depend_on_dtype_or_category_order() -> None:
    table = CovariateTable.learn(OBS, "batch", ["plate"], [], None)
    other = OBS.assign(batch=OBS["batch"].astype(str), plate=OBS["plate"].astype(str).astype("category"))
    np.testing.assert_array_equal(table.read(other).categorical_nk, table.read(OBS).categorical_nk)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((OBS, "bath", [], [], None), KeyError, "found"),
        ((OBS, None, ["age2"], [], None), KeyError, "age2"),
        ((OBS.assign(batch=["a", None, "b", "a"]), "batch", [], [], None), ValueError, "missing"),
        ((OBS.assign(age=[1.0, np.nan, 2.0, 3.0]), None, [], ["age"], None), ValueError, "missing"),
        ((OBS.assign(age=[1.0, np.inf, 2.0, 3.0]), None, [], ["age"], None), ValueError, "infinite"),
        ((OBS, None, [], ["batch"], None), ValueError, "categorical_covariate_keys"),
        ((OBS.assign(age=OBS["age"] + 0.5), None, ["age"], [], None), ValueError, "continuous_covariate_keys"),
        ((OBS, "batch", ["plate", "plate"], [], None), ValueError, "twice"),
    ],
)
def test_bad_columns_are_refused(arguments: tuple, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        CovariateTable.learn(*arguments)


def test_whole_numbers_read_the_same_as_int_and_as_float() -> None:
    table = CovariateTable.learn(OBS, None, ["plate"], [], None)
    other = OBS.assign(plate=OBS["plate"].astype(float))
    np.testing.assert_array_equal(table.read(other).categorical_nk, table.read(OBS).categorical_nk)


def test_names_that_read_alike_are_refused() -> None:
    with pytest.raises(ValueError, match="read alike"):
        CovariateTable.learn(OBS.assign(plate=pd.Categorical([1, "1", 1, "1"])), None, ["plate"], [], None)
    with pytest.raises(TypeError, match="name of a column"):
        CovariateTable.learn(OBS, ["batch"], [], [], None)  # type: ignore[arg-type]


def test_labels_are_not_asked_of_cells_that_are_not_trained_on() -> None:
    table = CovariateTable.learn(OBS, "batch", [], [], "flag")
    assert table.read(OBS.drop(columns="flag"), labels=False).label_n is None


def test_unseen_categories_are_named() -> None:
    table = CovariateTable.learn(OBS, "batch", [], [], None)
    with pytest.raises(ValueError, match=r"\['new'\]"):
        table.read(OBS.assign(batch=["a", "new", "b", "c"]))
