"""Read columns of ``obs`` and ``var`` and entries of ``obsm`` as one column, as numbers, as a mask or as an array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from vxpress._keys import LIBRARY_SIZE
from vxpress._names import Names


def find_column(
    frame: pd.DataFrame, key: Any, *, argument: str | None = None, of: str = "obs", hint: str = ""
) -> pd.Series:
    """Return the one column with this name, which may have missing values.

    Messages name ``argument`` as the source of the name, and give ``hint`` if the column is absent.
    """
    given = repr(key) if argument is None else f"{argument}={key!r}"
    if not isinstance(key, str):
        msg = f"The name of a column of adata.{of} is expected; found {given}."
        raise TypeError(msg)
    if key not in frame.columns:
        if not hint and key == LIBRARY_SIZE:
            hint = "vx.pp.library_size(adata) writes it."
        # a MuData puts the name of the modality in front of its columns
        namesakes = [name for name in map(str, frame.columns) if name.split(":")[-1] == key.split(":")[-1]]
        if namesakes:
            hint = (
                f"There is {' and '.join(map(repr, namesakes))}: pass {namesakes[0]!r} if it is meant. {hint}".rstrip()
            )
        msg = f"{given} is not a column of adata.{of} (found: {list(frame.columns)}). {hint}".rstrip()
        raise KeyError(msg)
    column = frame[key]
    if isinstance(column, pd.DataFrame):
        msg = (
            f"adata.{of} has {column.shape[1]} columns named {key!r}; one is expected, because a repeated name does not "
            f"identify a column. Keep the first: adata.{of} = adata.{of}.loc[:, ~adata.{of}.columns.duplicated()].copy()."
        )
        raise ValueError(msg)
    return column


def get_column(
    obs: pd.DataFrame, key: Any, *, argument: str | None = None, numeric: bool = False, hint: str = ""
) -> pd.Series:
    """Return a column of ``obs`` without missing values; the error lists the columns found, or says how to fill the gaps."""
    column = find_column(obs, key, argument=argument, hint=hint)
    missing = int(column.isna().sum())
    if missing:
        name = f"adata.obs[{key!r}]"
        fill = f"{name}.fillna({name}.median())" if numeric else f"{name}.astype(object).fillna('unknown')"
        msg = (
            f"obs[{key!r}] is missing (NaN) in {missing} of {len(obs)} cells. Give these cells a value, for example "
            f"{name} = {fill}, or remove them: adata = adata[{name}.notna()].copy()."
        )
        raise ValueError(msg)
    return column


def get_names(obs: pd.DataFrame, key: Any, *, argument: str | None = None, gaps: bool = False, hint: str = "") -> Names:
    """Return the categories of a column of ``obs``; missing values are allowed only with ``gaps``."""
    read = find_column if gaps else get_column
    return Names.of(read(obs, key, argument=argument, hint=hint), f"adata.obs[{key!r}]")


def get_categories(obs: pd.DataFrame, key: Any, *, argument: str | None = None, gaps: bool = False) -> Names:
    """Return the same for cells that define the categories: floats that are not whole numbers are an error."""
    found = get_names(obs, key, argument=argument, gaps=gaps)
    check_no_fractions(found, key)
    return found


def check_no_fractions(found: Names, key: str, known: tuple[str, ...] = ()) -> None:
    """Raise if a column of floats holds fractional numbers that are not known categories."""
    unknown = [name for name, at in zip(found.names, found.among(known), strict=True) if at < 0]
    fractional = [name for name in unknown if name in found.fractional]
    if fractional:
        msg = (
            f"obs[{key!r}] holds fractional numbers (for example {fractional[0]}), not categories. Pass a numeric covariate with "
            f"continuous_covariate_keys=, or convert it to categories: adata.obs[{key!r}] = adata.obs[{key!r}].astype('category')."
        )
        raise ValueError(msg)


def get_numbers(obs: pd.DataFrame, key: Any, *, hint: str = "") -> np.ndarray:
    """Return a numeric column of ``obs`` as float64 (n,); all values are finite."""
    column = get_column(obs, key, numeric=True, hint=hint)
    if not is_real(column.dtype):
        name = f"adata.obs[{key!r}]"
        numbers = {"M": f"({name} - {name}.min()).dt.days", "m": f"{name}.dt.total_seconds()"}
        cure = numbers.get(getattr(column.dtype, "kind", "O"), f"{name}.astype(float)")
        msg = (
            f"obs[{key!r}] has dtype {column.dtype}; numbers are expected. Convert it to numbers, {cure}, or name it in "
            "categorical_covariate_keys= instead."
        )
        raise ValueError(msg)
    values = column.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        msg = f"obs[{key!r}] holds infinite values; finite numbers are expected."
        raise ValueError(msg)
    return values


def check_drawable(obs: pd.DataFrame, key: str) -> None:
    """Raise unless scanpy can color cells by a column of ``obs``: numbers, booleans, categories and text."""
    column = find_column(obs, key, argument="color")
    kinds = ("string", "empty", "boolean", "categorical", "integer", "floating", "mixed-integer-float")
    found = pd.api.types.infer_dtype(column, skipna=True)
    if found not in kinds or column.dtype == "boolean":
        msg = (
            f"color={key!r}: obs[{key!r}] holds {found} values (dtype {column.dtype}), which cannot be colored. Convert them to categories: "
            f"adata.obs[{key!r}] = adata.obs[{key!r}].astype(str).astype('category')."
        )
        raise ValueError(msg)


def is_real(dtype: Any) -> bool:
    """Return whether a dtype holds real numbers."""
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)


def is_mask(values: Any) -> bool:
    """Return whether an argument holds booleans, in any type that stores them, also with missing values."""
    if isinstance(values, (str, bytes)) or not pd.api.types.is_list_like(values) or sparse.issparse(values):
        return False
    if isinstance(values, Iterator):
        # reading it would empty it
        return False
    if getattr(values, "ndim", 1) != 1 or isinstance(values, (Mapping, AbstractSet)):
        return bool(pd.api.types.is_bool_dtype(getattr(values, "dtype", object)))
    column = _as_column(values)
    if column.dtype.kind in "iuf" or pd.api.types.is_string_dtype(column):
        return False
    known = column.astype(object)[column.notna().to_numpy()]
    return bool(len(known)) and all(isinstance(value, (bool, np.bool_)) for value in known)


def as_mask(values: Any, names: pd.Index, where: str, *, of: str, gaps: str = "") -> np.ndarray:
    """Return booleans, one per ``of`` ("gene", "cell"), from any type that stores them: also nullable ones, categories, 0 and 1.

    ``names`` are those of the genes or cells; the index of a Series agrees with them, or is a plain enumeration. Messages call
    the values ``where``, and give ``gaps`` as advice if some are missing.
    """
    n = len(names)
    if np.ndim(values) != 1 or len(values) != n:
        msg = f"{where} should be {n} booleans, one per {of}; found shape {np.shape(values)}."
        raise ValueError(msg)
    column = _as_column(values)
    enumeration = isinstance(column.index, pd.RangeIndex)
    if not enumeration and not column.index.equals(names):
        msg = (
            f"The index of {where} differs from adata.{of.replace('cell', 'obs').replace('gene', 'var')}_names, so it is unclear which "
            f"value belongs to which {of}. Bring it in their order with .reindex(), or, if it is in their order, pass .to_numpy()."
        )
        raise ValueError(msg)
    missing = int(column.isna().sum())
    if missing:
        gaps = gaps or f"Give each {of} a value, for example with .fillna(False)."
        msg = f"{where} is missing (NaN) for {missing} of {n} {of}s. {gaps}"
        raise ValueError(msg)
    found = pd.unique(column.astype(object))
    if not all(isinstance(v, (bool, np.bool_, int, float, np.number)) and v in (0, 1) for v in found):
        text = {str(v) for v in found} <= {"True", "False"}
        cure = f"{where}.astype(str) == 'True' converts them to booleans." if text else "A comparison gives booleans."
        msg = f"{where} should be {n} booleans, one per {of}; found dtype {column.dtype} with values such as {found[0]!r}. {cure}"
        raise ValueError(msg)
    return column.astype(object).to_numpy().astype(bool)


def _as_column(values: Any) -> pd.Series:
    """Return values of one dimension as a Series; the elements of a list keep their types."""
    if isinstance(values, pd.Series):
        return values
    typed = isinstance(values, (np.ndarray, pd.Index, pd.api.extensions.ExtensionArray))
    return pd.Series(values) if typed else pd.Series(list(values), dtype=object)


def get_array(obsm: Mapping[str, Any], key: str, rewrite: str) -> np.ndarray:
    """Return an entry of ``obsm`` of any type as a float32 array; ``rewrite`` is the call that writes it again."""
    value = obsm[key]
    try:
        if sparse.issparse(value):
            value = value.toarray()
        array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        msg = f"obsm[{key!r}] is a {type(value).__name__} that cannot be converted to an array of numbers ({error}). {rewrite}"
        raise ValueError(msg) from error
    if array.ndim != 2:
        msg = f"obsm[{key!r}] has {array.ndim} dimension(s); two (cells, latent dimensions) are expected. {rewrite}"
        raise ValueError(msg)
    # pandas returns read-only arrays, about which torch warns
    return array if array.flags.writeable else array.copy()
