from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vxpress.bridge.ask.intervention import Intervention
from vxpress.bridge.fits.upgrade import FIRST, upgraded
from vxpress.bridge.read.covariates import CovariateTable, Scale

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


def test_numbers_are_standardised_with_the_moments_of_the_fit() -> None:
    table = CovariateTable.learn(OBS, None, [], ["age", "same"], None)
    values = table.read(OBS).continuous_nc.numpy()
    np.testing.assert_allclose(values[:, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(values[:, 0].std(), 1, rtol=1e-6)
    np.testing.assert_array_equal(values[:, 1], 0)
    np.testing.assert_array_equal(table.read(OBS.iloc[2:]).continuous_nc.numpy(), values[2:])


def test_a_table_is_restored_from_its_mapping() -> None:
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


def test_equal_names_of_different_types_are_refused() -> None:
    with pytest.raises(ValueError, match="with the same name but different types"):
        CovariateTable.learn(OBS.assign(plate=pd.Categorical([1, "1", 1, "1"])), None, ["plate"], [], None)
    with pytest.raises(TypeError, match="name of a column"):
        CovariateTable.learn(OBS, ["batch"], [], [], None)  # type: ignore[arg-type]


def test_labels_are_required_for_training_only() -> None:
    table = CovariateTable.learn(OBS, "batch", [], [], "flag")
    assert table.read(OBS.drop(columns="flag"), labels=False).label_n is None


def test_unseen_categories_are_named() -> None:
    table = CovariateTable.learn(OBS, "batch", [], [], None)
    with pytest.raises(ValueError, match=r"\['new'\]"):
        table.read(OBS.assign(batch=["a", "new", "b", "c"]))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (dtype, value)
        for dtype in (np.float64, np.float32)
        for value in (14.62, 0.1, 34.7, 100.0, -3.3, 1e-30, 1e30, 0.0)
    ]
    + [(np.float64, 1e200), (np.float64, 1e-200)],
)
@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_a_number_without_spread_beyond_rounding_is_constant(dtype: type, value: float, noise: float) -> None:
    values: np.ndarray = np.full(101, value, dtype=dtype)
    values[::2] += dtype(noise * np.finfo(dtype).eps) * values[0]
    scale = Scale.of(values.astype(np.float64), dtype)
    assert scale.constant
    assert scale.sd == 1.0
    np.testing.assert_allclose(scale.standardise(values.astype(np.float64)), 0, atol=1e-5 * max(1, abs(value)))
    assert not scale.far(values.astype(np.float64)).any()


@pytest.mark.parametrize("value", [1e30, -1e308, 1e-5])
def test_numbers_of_any_size_reach_the_model_as_finite_numbers(value: float) -> None:
    obs = pd.DataFrame({"x": np.array([1.0, 2.0, 3.0]) * 1e-40})
    table = CovariateTable.learn(obs, None, [], ["x"], None)
    far = table.read(pd.DataFrame({"x": [value]})).continuous_nc.numpy()
    assert np.isfinite(far).all()
    assert np.sign(far) == np.sign(value)
    assert np.isfinite(Intervention.find(table, "x", value).code)


def test_a_spread_too_small_to_divide_by_is_constant() -> None:
    values = np.array([0.0, 5e-324] * 5)
    scale = Scale.of(values)
    assert scale.constant
    np.testing.assert_allclose(scale.standardise(values), 0, atol=1e-300)


@pytest.mark.parametrize("unit", [1.0, 1e-150, 1e150, 1e-3])
@pytest.mark.parametrize("offset", [0.0, 1e3, -1e6])
def test_spread_is_relative_to_size(unit: float, offset: float) -> None:
    values = unit * (offset + np.random.default_rng(0).normal(0, 1, 200))
    scale = Scale.of(values)
    assert not scale.constant
    found = scale.standardise(values)
    np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-6)
    assert (scale.low, scale.high) == (values.min(), values.max())


def test_constants_and_values_far_outside_the_range_raise_warnings(warned: list[str]) -> None:
    table = CovariateTable.learn(OBS, None, [], ["age", "same"], None)
    assert len(warned) == 1
    assert "obs['same'] is constant" in warned[0]
    warned.clear()
    table.read(OBS)
    table.read(OBS.assign(age=[5.0, 45.0, 10.0, 40.0], same=1 + 1e-9))
    assert not warned
    table.read(OBS.assign(age=[10.0, 20.0, 99.0, 98.0]))
    assert "obs['age'] holds 99 (and 1 more" in warned[0]
    assert "10 to 40" in warned[0]
    table.read(OBS.assign(same=2.0))
    assert "obs['same'] holds 2" in warned[1]
    assert len(warned) == 2


STORED = CovariateTable.learn(OBS, "batch", ["plate"], ["age"], "flag").to_uns()


@pytest.mark.parametrize("field", STORED)
def test_a_record_with_a_missing_field_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="damaged"):
        CovariateTable.from_uns({name: value for name, value in STORED.items() if name != field})


@pytest.mark.parametrize("field", CovariateTable.learn(OBS, None, [], [], None).to_uns())
def test_a_record_without_covariates_is_refused(field: str) -> None:
    empty = CovariateTable.learn(OBS, None, [], [], None).to_uns()
    with pytest.raises(ValueError, match="damaged"):
        CovariateTable.from_uns({name: value for name, value in empty.items() if name != field})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("categories_0", ["c", "b", "b"]),
        ("categories_0", ["c", "", "a"]),
        ("categories_0", []),
        ("categories_1", [1, 3]),
        ("categorical_keys", ["batch", "batch"]),
        ("categorical_keys", ["plate", "batch"]),
        ("labels_categories", ["True", "True"]),
        ("labels_key", ""),
        ("labels_key", 3),
        ("batch_key", "plate"),
        ("continuous_keys", []),
        ("continuous_keys", ["age", "size"]),
        ("continuous_sd", [0.0]),
        ("continuous_sd", [-1.0]),
        ("continuous_sd", [np.nan]),
        ("continuous_mean", [np.inf]),
        ("continuous_mean", [1e9]),
        ("continuous_mean", [1.0, 2.0]),
        ("continuous_min", [50.0]),
        ("continuous_max", ["40"]),
    ],
)
def test_impossible_values_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match="damaged"):
        CovariateTable.from_uns(STORED | {field: np.array(value) if isinstance(value, list) else value})


def test_the_error_for_a_missing_batch_column_says_how_to_add_it() -> None:
    table = CovariateTable.learn(OBS, "batch", ["plate"], ["age"], None)
    for key, hint in (
        ("batch", "'new batch name'"),
        ("plate", "'name of the category'"),
        ("age", "number of every cell"),
    ):
        with pytest.raises(KeyError, match=rf"query\.obs\['{key}'\] = .*|{hint}"):
            table.read(OBS.drop(columns=key))
    with pytest.raises(KeyError, match="new batch name"):
        table.with_categories_of(OBS.drop(columns="batch"))


def test_other_cells_may_store_numbers_as_another_type() -> None:
    days = pd.Series(pd.Categorical([0.0, 1.5, 3.0, 0.0]), index=OBS.index)
    table = CovariateTable.learn(OBS.assign(day=days), None, ["day", "plate"], [], None)
    assert table.categorical[0] == ("day", ("0", "1.5", "3"))
    other = OBS.assign(day=days.astype(float), plate=OBS["plate"].astype("Float32"))
    extended, added = table.with_categories_of(other)
    assert added == ((), ())
    assert extended == table
    np.testing.assert_array_equal(table.read(other).categorical_nk, table.read(OBS.assign(day=days)).categorical_nk)
    _, added = table.with_categories_of(other.assign(plate=[1, 2, 10, 3]))
    assert added == ((), ("10", "2"))
    with pytest.raises(ValueError, match=r"fractional.*2\.5"):
        table.with_categories_of(other.assign(plate=[1.0, 2.5, 3.0, 3.0]))


def test_batches_are_named_as_in_the_column() -> None:
    table = CovariateTable.learn(OBS, "plate", [], [], None)
    for value in (3, 3.0, "3", np.float32(3), [3], np.array([3.0]), pd.Series([3]), pd.Categorical([3]), (3,)):
        assert table.batch_codes(value) == (1,)
    assert table.batch_codes([3.0, "1", 3]) == (1, 0)
    for value in (2, [1, None], [], True, "plate"):
        with pytest.raises(ValueError, match=r"knows the batches \['1', '3'\]"):
            table.batch_codes(value)
    pairs = CovariateTable.learn(OBS.assign(pair=[(1, 2), (3, 4), (1, 2), (3, 4)]), "pair", [], [], None)
    assert pairs.batch_codes((3, 4)) == (1,)
    assert pairs.batch_codes([(1, 2), (3, 4)]) == (0, 1)


def test_covariates_of_the_first_format_are_read_without_a_range(warned: list[str]) -> None:
    old: dict[str, object] = {"batch_key": "plate", "categorical_keys": ["plate"], "categories_0": ["1", "3"]}
    old |= {"continuous_keys": ["age"], "continuous_mean": [25.0], "continuous_sd": [5.0]}
    record = {name: np.array(value) if isinstance(value, list) else value for name, value in old.items()}
    table = CovariateTable.from_uns(
        upgraded({"format": FIRST, "covariates": record, "params": {"n_train": 7}})["covariates"]
    )
    np.testing.assert_allclose(table.read(OBS.assign(age=[20.0, 25.0, 30.0, 1e6])).continuous_nc[:3, 0], [-1, 0, 1])
    assert not warned
    assert CovariateTable.from_uns(table.to_uns()) == table
    bare = CovariateTable.from_uns(upgraded({"format": FIRST, "params": {"n_train": 7}})["covariates"])
    assert bare == CovariateTable.learn(OBS, None, [], [], None)
