"""Columns of ``obs`` and ``var`` and entries of ``obsm``, read as one column, as numbers, as a mask or as an array."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from vxpress._keys import LIBRARY_SIZE
from vxpress._names import Names


def find_column(
    frame: pd.DataFrame, key: Any, *, argument: str | None = None, of: str = "obs", hint: str = ""
) -> pd.Series:
    """The one column of this name, which may have gaps; ``argument`` is what named it, ``hint`` the cure if it is absent."""
    asked = repr(key) if argument is None else f"{argument}={key!r}"
    if not isinstance(key, str):
        msg = f"The name of a column of adata.{of} is expected; found {asked}."
        raise TypeError(msg)
    if key not in frame.columns:
        if not hint and key == LIBRARY_SIZE:
            hint = "vx.pp.library_size(adata) writes it."
        msg = f"{asked} is not a column of adata.{of} (found: {list(frame.columns)}). {hint}".rstrip()
        raise KeyError(msg)
    column = frame[key]
    if isinstance(column, pd.DataFrame):
        msg = (
            f"adata.{of} has {column.shape[1]} columns that are named {key!r}, and one is expected: a name that is repeated says "
            f"no column. Keep the first: adata.{of} = adata.{of}.loc[:, ~adata.{of}.columns.duplicated()].copy()."
        )
        raise ValueError(msg)
    return column


def get_column(
    obs: pd.DataFrame, key: Any, *, argument: str | None = None, numeric: bool = False, hint: str = ""
) -> pd.Series:
    """A column of ``obs`` without gaps, or an error that lists what is there or says how to fill it."""
    column = find_column(obs, key, argument=argument, hint=hint)
    missing = int(column.isna().sum())
    if missing:
        name = f"adata.obs[{key!r}]"
        fill = f"{name}.fillna({name}.median())" if numeric else f"{name}.astype(object).fillna('unknown')"
        msg = (
            f"obs[{key!r}] is missing (NaN) in {missing} of {len(obs)} cells. Give these cells a value, for example "
            f"{name} = {fill}, or leave them out with adata = adata[{name}.notna()].copy()."
        )
        raise ValueError(msg)
    return column


def get_names(obs: pd.DataFrame, key: Any, *, argument: str | None = None, gaps: bool = False, hint: str = "") -> Names:
    """The categories of a column of ``obs``, of which only a column with ``gaps`` may leave cells out."""
    read = find_column if gaps else get_column
    return Names.of(read(obs, key, argument=argument, hint=hint), f"adata.obs[{key!r}]")


def get_categories(obs: pd.DataFrame, key: Any, *, argument: str | None = None, gaps: bool = False) -> Names:
    """The same of cells that define the categories: floats that are no whole numbers are refused."""
    found = get_names(obs, key, argument=argument, gaps=gaps)
    check_no_fractions(found, key)
    return found


def check_no_fractions(found: Names, key: str, known: tuple[str, ...] = ()) -> None:
    """Raise where a column of floats holds fractions that are no known categories."""
    unknown = [name for name, at in zip(found.names, found.among(known), strict=True) if at < 0]
    fractional = [name for name in unknown if name in found.fractional]
    if fractional:
        msg = (
            f"obs[{key!r}] holds fractional numbers (for example {fractional[0]}), not categories. A covariate that is a number goes "
            f"into continuous_covariate_keys=; to make categories of them, adata.obs[{key!r}] = adata.obs[{key!r}].astype('category')."
        )
        raise ValueError(msg)


def get_numbers(obs: pd.DataFrame, key: Any, *, hint: str = "") -> np.ndarray:
    """A numeric column of ``obs`` as float64 (n,), all of it finite."""
    column = get_column(obs, key, numeric=True, hint=hint)
    if not is_real(column.dtype):
        name = f"adata.obs[{key!r}]"
        numbers = {"M": f"({name} - {name}.min()).dt.days", "m": f"{name}.dt.total_seconds()"}
        cure = numbers.get(getattr(column.dtype, "kind", "O"), f"{name}.astype(float)")
        msg = (
            f"obs[{key!r}] has dtype {column.dtype}; numbers are expected. Make it numbers, {cure}, or name it in "
            "categorical_covariate_keys= instead."
        )
        raise ValueError(msg)
    values = column.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        msg = f"obs[{key!r}] holds infinite values; finite numbers are expected."
        raise ValueError(msg)
    return values


def check_drawable(obs: pd.DataFrame, key: str) -> None:
    """Raise unless scanpy can colour cells by a column of ``obs``: numbers, booleans, categories and text."""
    column = find_column(obs, key, argument="color")
    kinds = ("string", "empty", "boolean", "categorical", "integer", "floating", "mixed-integer-float")
    found = pd.api.types.infer_dtype(column, skipna=True)
    if found not in kinds or column.dtype == "boolean":
        msg = (
            f"color={key!r}: obs[{key!r}] holds {found} values (dtype {column.dtype}), which have no colours. Make them categories: "
            f"adata.obs[{key!r}] = adata.obs[{key!r}].astype(str).astype('category')."
        )
        raise ValueError(msg)


def is_real(dtype: Any) -> bool:
    """Whether a dtype holds real numbers."""
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)


def as_mask(values: Any, n: int, where: str, *, of: str, gaps: str) -> np.ndarray:
    """Booleans, one per ``of`` ("gene", "cell"), of whatever type stores them: also nullable ones, categories, 0 and 1.

    ``where`` names them in messages, and ``gaps`` says what to do where some are missing.
    """
    column = values if isinstance(values, pd.Series) else None
    if column is None:
        array = values if isinstance(values, (pd.Categorical, pd.api.extensions.ExtensionArray)) else np.asarray(values)
        if array.ndim != 1 or len(array) != n:
            msg = f"{where} should be {n} booleans, one per {of}; found shape {np.shape(array)}."
            raise ValueError(msg)
        column = pd.Series(array)
    if len(column) != n:
        msg = f"{where} should be {n} booleans, one per {of}; found {len(column)} values."
        raise ValueError(msg)
    missing = int(column.isna().sum())
    if missing:
        msg = f"{where} is missing (NaN) for {missing} of {n} {of}s. {gaps}"
        raise ValueError(msg)
    found = pd.unique(column.astype(object))
    if not all(isinstance(v, (bool, np.bool_, int, float, np.number)) and v in (0, 1) for v in found):
        text = {str(v) for v in found} <= {"True", "False"}
        cure = f"{where}.astype(str) == 'True' makes them booleans." if text else "A comparison gives booleans."
        msg = f"{where} should be {n} booleans, one per {of}; found dtype {column.dtype} with values such as {found[0]!r}. {cure}"
        raise ValueError(msg)
    return column.astype(object).to_numpy().astype(bool)


def get_array(adata: AnnData, key: str, rewrite: str) -> np.ndarray:
    """An entry of ``obsm`` as a float32 array, whatever holds it; ``rewrite`` is the call that writes it anew."""
    return as_array(adata.obsm, key, rewrite)


def as_array(obsm: Mapping[str, Any], key: str, rewrite: str) -> np.ndarray:
    """The same of any mapping."""
    value = obsm[key]
    try:
        if sparse.issparse(value):
            value = value.toarray()
        array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        msg = f"obsm[{key!r}] is a {type(value).__name__} that is no array of numbers ({error}). {rewrite}"
        raise ValueError(msg) from error
    if array.ndim != 2:
        msg = f"obsm[{key!r}] has {array.ndim} dimension(s); cells x latent dimensions are expected. {rewrite}"
        raise ValueError(msg)
    # pandas hands out arrays that may not be written to, which torch warns of
    return array if array.flags.writeable else array.copy()
