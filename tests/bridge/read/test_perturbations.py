"""Perturbations and doses as users write them in obs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from vxpress.bridge.read.perturbations import PerturbationTable


def _obs(condition: list[Any], dose: list[Any] | None = None) -> pd.DataFrame:
    return pd.DataFrame({"drug": condition} | ({} if dose is None else {"dose": dose}))


def _learn(obs: pd.DataFrame, control: Any = "ctrl") -> PerturbationTable:
    return PerturbationTable.learn(obs, "drug", control, "dose" if "dose" in obs else None)


def test_combinations_are_sums_of_single_perturbations() -> None:
    obs = _obs(["ctrl", "A", "B", "B + A", "A+ctrl"])
    table = _learn(obs)
    assert table.names == ("A", "B")
    np.testing.assert_array_equal(table.read(obs), [[0, 0], [1, 0], [0, 1], [1, 1], [1, 0]])
    assert not table.differ


def test_doses_are_in_units_of_the_highest_of_each_perturbation() -> None:
    obs = _obs(["ctrl", "A", "A", "B", "A+B", "B+A", "A+B"], [np.nan, 2.0, 8, "10", "2+5", "5+2", 4])
    table = _learn(obs)
    assert (table.low, table.high) == ((2.0, 4.0), (8.0, 10.0))
    expected = [[0, 0], [0.25, 0], [1, 0], [0, 1], [0.25, 0.5], [0.25, 0.5], [0.5, 0.4]]
    np.testing.assert_allclose(table.read(obs), expected)
    assert table.differ
    # cells of one condition have one code, and only they
    code = table.codes(obs)
    assert code[4] == code[5]
    assert len(set(code)) == 6


def test_doses_of_a_categorical_are_read_too() -> None:
    obs = _obs(["ctrl", "A", "A"], [0.0, 0.5, 1.0])
    np.testing.assert_allclose(_learn(obs).read(obs.astype("category")), [[0], [0.5], [1]])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("A", [8, 0]),
        ("A+B", [8, 10]),
        ("B+A", [8, 10]),
        ("ctrl", [0, 0]),
        ({"A": 2, "B": 0.5}, [2, 0.5]),
        ("A+ctrl", [8, 0]),
    ],
)
def test_a_condition_of_an_argument(value: Any, expected: list[float]) -> None:
    table = _learn(_obs(["ctrl", "A", "B"], [0, 8, 10]))
    np.testing.assert_array_equal(table.condition(value, "target"), expected)


@pytest.mark.parametrize(
    ("condition", "dose", "control", "message"),
    [
        (["ctrl", "A"], None, None, "control='ctrl'"),
        (["x", "DMSO"], None, "ctrl", "control='DMSO'"),
        (["ctrl", "ctrl"], None, "ctrl", "only the control"),
        (["ctrl", "A+"], None, "ctrl", "empty name"),
        (["ctrl", "A+A"], None, "ctrl", "twice"),
        (["ctrl", None], None, "ctrl", "missing"),
        (["ctrl", "A"], [0, -1.0], "ctrl", "is -1"),
        (["ctrl", "A"], [0, np.nan], "ctrl", r"is missing in 1 cell"),
        (["ctrl", "A+B"], ["0", "high"], "ctrl", "'0.5\\+1'"),
        (["ctrl", "A+B"], ["0", "1+2+3"], "ctrl", "or 2 joined"),
        (["ctrl", "A"], [0, 0], "ctrl", "is 0 in every cell"),
    ],
)
def test_impossible_columns_say_what_to_change(
    condition: list[Any], dose: list[Any] | None, control: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _learn(_obs(condition, dose), control)


def test_an_unknown_perturbation_is_an_error_that_names_it() -> None:
    table = _learn(_obs(["ctrl", "KLF1", "FOXO4"]))
    with pytest.raises(ValueError, match=r"'KLF2'.*Similar names: 'KLF1'"):
        table.read(_obs(["KLF1+KLF2"]))
    with pytest.raises(ValueError, match="'other'"):
        table.condition("other", "target")
    with pytest.raises(ValueError, match="not negative"):
        table.condition({"KLF1": -1}, "target")


def test_doses_outside_the_range_are_warned_about(warned: list[str]) -> None:
    table = _learn(_obs(["ctrl", "A", "A"], [0, 1, 4]))
    np.testing.assert_allclose(table.read(_obs(["A", "ctrl"], [2, 100])), [[0.5], [0]])
    assert not warned
    np.testing.assert_allclose(table.read(_obs(["A"], [8])), [[2.0]])
    assert "'A' is 8, but the fit has seen 1 to 4" in warned[0]


def test_few_cells_of_a_perturbation_are_warned_about(warned: list[str]) -> None:
    table = _learn(_obs(["ctrl", "A", "B"])).trained_on(np.repeat([[1.0, 0.0], [1.0, 1.0]], [40, 3], axis=0))
    assert table.n_train == (43, 3)
    assert "'B' (3)" in warned[0]


def test_the_stored_table_is_read_back_and_damage_is_found() -> None:
    table = _learn(_obs(["ctrl", "A", "B"], [0, 8, 10]))
    stored = table.to_uns()
    assert PerturbationTable.from_uns(stored) == table
    for change in (
        {"low": np.array([0.0, 1.0])},
        {"names": np.array(["A", "A"], dtype=object)},
        {"high": np.array([1.0])},
    ):
        with pytest.raises(ValueError, match="perturbations"):
            PerturbationTable.from_uns(stored | change)
    with pytest.raises(ValueError, match="fields"):
        PerturbationTable.from_uns({name: value for name, value in stored.items() if name != "control"})
