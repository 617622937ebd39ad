"""One name of a category, wherever it comes from."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest

from vxpress._names import Names, each_value, find_name, find_names, name_of

THREE = [
    3,
    3.0,
    np.int8(3),
    np.uint64(3),
    np.float16(3),
    np.float32(3),
    np.float64(3),
    np.longdouble(3),
    Decimal("3.0"),
]


@pytest.mark.parametrize("value", [*THREE, Fraction(3), "3", np.str_("3"), b"3", np.array(3.0)])
def test_three_has_one_name(value: Any) -> None:
    assert name_of(value) == "3"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (1.5, "1.5"),
        (np.float32(0.1), "0.1"),
        (np.float16(0.1), "0.1"),
        (0.1, "0.1"),
        (10 * (0.1 + 0.7), "8"),
        (np.float32(7) - np.float32(4e-7), "7"),
        (1e-17, "0"),
        (-0.0, "0"),
        (-2.0, "-2"),
        (200000.75, "200000.75"),
        (np.float32(20000.002), "20000.002"),
        (7.99999, "7.99999"),
        (2**60 + 1, str(2**60 + 1)),
        (True, "True"),
        (np.False_, "False"),
        (pd.Timestamp("2024-01-02"), "2024-01-02"),
        (np.datetime64("2024-01-02"), "2024-01-02"),
        (date(2024, 1, 2), "2024-01-02"),
        (pd.Timestamp("2024-01-02 03:04"), "2024-01-02 03:04:00"),
        (timedelta(days=1), "1 days 00:00:00"),
        (np.timedelta64(1, "D"), "1 days 00:00:00"),
        (pd.Interval(0, 1), "(0, 1]"),
        ((np.int64(1), "a"), "(1, 'a')"),
        (" a ", " a "),
    ],
)
def test_names_of_other_values(value: Any, name: str) -> None:
    assert name_of(value) == name


@pytest.mark.parametrize("value", [None, np.nan, pd.NA, pd.NaT, np.inf, -np.inf, 2.0**60, np.float32(2**30)])
def test_what_has_no_name_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"missing|infinite|above"):
        name_of(value)
    assert find_name(value, ("nan", "None", "inf", str(2**60))) is None


@pytest.mark.parametrize("dtype", ["int64", "int8", "float64", "float32", "Int64", "Float64", "Float32", object])
@pytest.mark.parametrize("categorical", [False, True])
def test_names_and_codes_do_not_depend_on_how_numbers_are_stored(dtype: Any, categorical: bool) -> None:
    column = pd.Series([10, 2, 2, 1, 10], dtype=dtype)
    found = Names.of(column.astype("category") if categorical else column)
    assert found.names == ("1", "2", "10")
    np.testing.assert_array_equal(found.code_n, [2, 1, 1, 0, 2])


@pytest.mark.parametrize("dtype", ["string", object, "category"])
def test_text_keeps_its_order(dtype: Any) -> None:
    found = Names.of(pd.Series(["10", "2", "1"], dtype=object).astype(dtype))
    assert found.names == ("1", "10", "2")
    np.testing.assert_array_equal(found.code_n, [1, 2, 0])


def test_categories_keep_theirs_and_unused_ones_do_not_count() -> None:
    found = Names.of(pd.Series(pd.Categorical([3.0, None, 1.5], categories=[3.0, 7.0, 1.5])))
    assert found.names == ("3", "1.5")
    np.testing.assert_array_equal(found.code_n, [0, -1, 1])


def test_fractions_of_single_precision_are_short_and_lie_where_double_precision_ones_do() -> None:
    single = pd.Series(np.array([0.1, 0.3, 1.0], dtype=np.float32))
    assert Names.of(single.astype("category")).names == ("0.1", "0.3", "1")
    assert Names.of(single).fractional == ("0.1", "0.3")
    known = ("0.1", "0.3", "1")
    np.testing.assert_array_equal(Names.of(single.astype(np.float64).astype("category")).among(known), [0, 1, 2])
    doubles = Names.of(single.astype(np.float64).astype("category")).names
    np.testing.assert_array_equal(Names.of(single.astype("category")).among(doubles), [0, 1, 2])


def test_rounding_errors_make_no_category_and_hide_none() -> None:
    assert Names.of(pd.Series([7.0, 7.999999999999999, 8.0])).names == ("7", "8")
    assert Names.of(pd.Series([200000.0, 200000.75])).fractional == ("200000.75",)
    assert Names.of(pd.Series([2**53 + 1, 2**53 + 3])).names == (str(2**53 + 1), str(2**53 + 3))
    with pytest.raises(ValueError, match="leave out whole numbers"):
        Names.of(pd.Series([2.0**53 + 2, 2.0**53 + 4]))


@pytest.mark.parametrize(
    "values", [[1, "1"], [1.0, "1"], [True, "True"], [b"a", "a"], [np.nan, 2, "2"], ["2024-01-01", date(2024, 1, 1)]]
)
@pytest.mark.parametrize("categorical", [False, True])
def test_types_that_read_alike_are_refused(values: list, categorical: bool) -> None:
    column = pd.Series(values, dtype=object)
    if categorical:
        column = pd.Series(pd.Categorical(column, categories=[v for v in values if v == v]))
    with pytest.raises(ValueError, match=r"with the same name but different types.*astype\(str\)"):
        Names.of(column, "adata.obs['t']")


def test_python_takes_one_and_true_for_the_same_but_their_names_differ() -> None:
    found = Names.of(pd.Series([True, 1, 1.0, None], dtype=object))
    assert found.names == ("1", "True")
    np.testing.assert_array_equal(found.code_n, [1, 0, 0, -1])


def test_the_empty_string_and_lists_are_refused() -> None:
    with pytest.raises(ValueError, match=r"empty string in 2 of 3 cells.*replace"):
        Names.of(pd.Series(["", "b", ""]), "adata.obs['t']")
    with pytest.raises(ValueError, match=r"cannot name a category.*astype\(str\)"):
        Names.of(pd.Series([[1], [2]]), "adata.obs['t']")


def test_arguments_are_found_as_they_stand_in_a_column() -> None:
    known = ("1", "3.0", "0.1", "True")
    assert find_names([1, 1.0, "1", np.int8(1), "1.0", 3, 3.0, "3", np.float32(0.1), True], known) == [
        *["1"] * 5,
        *["3.0"] * 3,
        "0.1",
        "True",
    ]
    assert find_names([2, "one", None, [1], "true"], known) == [None] * 5
    assert find_name("01", ("1",)) is None


def test_no_two_categories_share_one() -> None:
    np.testing.assert_array_equal(Names.of(pd.Series(["3", "3.0"])).among(("3",)), [0, -1])
    np.testing.assert_array_equal(Names.of(pd.Series(["3", "3.0"])).among(("3.0", "3")), [1, 0])
    np.testing.assert_array_equal(Names.of(pd.Series(["3.0", "4"])).among(("3",)), [0, -1])


def test_values_one_by_one_keep_their_types() -> None:
    single = np.array([0.1, 0.2], dtype=np.float32)
    for values in (
        single,
        pd.Series(single),
        pd.Index(single),
        pd.Categorical(single),
        pd.Series(single).astype("category"),
    ):
        assert [name_of(value) for value in each_value(values)] == ["0.1", "0.2"]
    assert each_value("ab") == ["ab"]
    assert each_value(3) == [3]
    assert each_value([1, "a"]) == [1, "a"]
