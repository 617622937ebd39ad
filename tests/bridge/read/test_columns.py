from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from vxpress.bridge.read.columns import as_mask, find_column, get_array, get_categories, get_numbers, is_mask

OBS = pd.DataFrame({"batch": list("aabb"), "age": [1.0, 2.0, 3.0, 4.5]})


def test_a_repeated_column_is_refused_with_the_call_that_drops_it() -> None:
    twice = pd.concat([OBS, OBS], axis=1)
    for read in (find_column, get_categories, get_numbers):
        with pytest.raises(ValueError, match=r"2 columns named 'age'.*repeated.*duplicated\(\)"):
            read(twice, "age")
    assert find_column(twice.loc[:, ~twice.columns.duplicated()], "age").tolist() == OBS["age"].tolist()


def test_missing_columns_and_invalid_names_are_refused() -> None:
    with pytest.raises(
        KeyError, match=r"groupby='x' is not a column of adata.obs \(found: \['batch', 'age'\]\). Do this"
    ):
        find_column(OBS, "x", argument="groupby", hint="Do this.")
    with pytest.raises(TypeError, match="name of a column"):
        find_column(OBS, ["batch"])


@pytest.mark.parametrize(
    "values",
    [
        [True, False, True],
        np.array([1, 0, 1]),
        np.array([1.0, 0.0, 1.0]),
        np.array([True, False, True], dtype=object),
        pd.array([True, False, True], dtype="boolean"),
        pd.array([1, 0, 1], dtype="Int8"),
        pd.Categorical([True, False, True]),
        pd.Series([True, False, True], index=list("xyz")),
    ],
)
def test_booleans_of_every_type_are_a_mask(values: object) -> None:
    mask = as_mask(values, pd.Index(list("xyz")), "mask_var", of="gene")
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, [True, False, True])


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (np.array([True, np.nan, False], dtype=object), "1 of 3 genes. Fill"),
        (pd.array([True, None, False], dtype="boolean"), "1 of 3 genes. Fill"),
        (np.array([1.0, np.nan, 0.0]), "1 of 3 genes. Fill"),
        (["True", "False", "True"], r"astype\(str\) == 'True'"),
        (np.array([0, 1, 2]), "3 booleans, one per gene"),
        (np.array([0.5, 1, 0]), "comparison"),
        (np.ones((3, 1), dtype=bool), r"shape \(3, 1\)"),
        (np.ones(2, dtype=bool), "3 booleans"),
        (np.array(True), "3 booleans"),
        (pd.Series([True, False, True], index=list("zyx")), "differs from adata.var_names"),
    ],
)
def test_invalid_masks_are_refused(values: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        as_mask(values, pd.Index(list("xyz")), "mask_var", of="gene", gaps="Fill them.")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([True, None], True),
        (pd.array([True, None], dtype="boolean"), True),
        (pd.Categorical([True, None]), True),
        (np.ones((2, 1), dtype=bool), True),
        ([1, 0], False),
        (["True", "False"], False),
        ([None, None], False),
        ([], False),
        ("a name", False),
        (slice(2), False),
        ({"a": True}, False),
    ],
)
def test_booleans_are_distinguished_from_names_and_positions(values: object, expected: bool) -> None:
    assert is_mask(values) is expected


def test_arrays_are_read_from_any_container() -> None:
    z = np.arange(6, dtype=np.float32).reshape(3, 2)
    for value in (
        z,
        z.astype(np.float64),
        sparse.csr_matrix(z),
        sparse.csc_array(z),
        pd.DataFrame(z),
        pd.DataFrame(z, dtype="Float32"),
    ):
        np.testing.assert_array_equal(get_array({"X": value}, "X", "Write."), z)
    z.flags.writeable = False
    assert get_array({"X": z}, "X", "Write.").flags.writeable
    for value in (np.array([["a", "b"]]), pd.DataFrame({"a": ["x"]}), np.zeros(3), np.zeros((3, 2, 1))):
        with pytest.raises(ValueError, match=r"obsm\['X'\].*Write\."):
            get_array({"X": value}, "X", "Write.")


def test_regular_awkward_arrays_are_read() -> None:
    ak = pytest.importorskip("awkward")
    np.testing.assert_array_equal(get_array({"X": ak.Array([[1.0, 2.0], [3.0, 4.0]])}, "X", ""), [[1, 2], [3, 4]])
    with pytest.raises(ValueError, match=r"obsm\['X'\]"):
        get_array({"X": ak.Array([[1.0], [3.0, 4.0]])}, "X", "")


def test_anndata_accepts_repeated_columns() -> None:
    adata = ad.AnnData(np.ones((4, 2), dtype=np.float32))
    adata.obs = pd.concat([OBS, OBS], axis=1).set_axis(adata.obs_names)
    with pytest.raises(ValueError, match="repeated"):
        find_column(adata.obs, "batch")


@pytest.mark.parametrize(
    ("key", "column"),
    [("cell_type", "rna:cell_type"), ("rna:cell_type", "cell_type"), ("rna:cell_type", "protein:cell_type")],
)
def test_a_column_under_the_name_that_a_mudata_gives_it_is_named(key: str, column: str) -> None:
    obs = pd.DataFrame({"other": [1], column: ["a"], "cell_types": ["b"]})
    with pytest.raises(KeyError, match=rf"There is '{column}': pass '{column}' if it is meant"):
        find_column(obs, key, argument="groupby")
    with pytest.raises(KeyError) as caught:
        find_column(obs, "type")
    assert "There is" not in str(caught.value)
