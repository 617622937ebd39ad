"""Names of categories: one rule for columns of ``obs``, arguments, stored fits and other cells.

A category is identified by its name, a string, because its type can change: a column of integers becomes floats when
AnnDatas are merged, a categorical in a file, and text in a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd

# a float this close to a whole number, in units of its rounding error, is that number
ROUNDING = 8
# and never farther from it than this, for any size
FARTHEST = 1e-3
_WHOLE_TEXT = re.compile(r"-?\d+(\.0)?")


def name_of(value: Any) -> str:
    """Return the name of one value.

    Whole numbers of any type are written without a decimal point, within the rounding error of floats: 3, 3.0 and
    7.999999999999999 are ``"3"``, ``"3"`` and ``"8"``. Other floats are the shortest text that reproduces them in their
    type, dates are in ISO 8601, and bytes are UTF-8. Raises ``ValueError`` for values without a name: missing and infinite
    values, and floats too large to distinguish whole numbers.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if pd.api.types.is_scalar(value) and pd.isna(value):
        msg = "a missing value"
        raise ValueError(msg)
    # before whole numbers, because numpy treats it as one
    if isinstance(value, (timedelta, np.timedelta64)):
        return str(pd.Timedelta(value))
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, (Real, Decimal)):
        return _name_of_number(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return str(value)
    if isinstance(value, (date, datetime, np.datetime64)):
        # pandas writes a column of dates without the time if it is midnight in all of them
        moment = pd.Timestamp(value)
        return moment.isoformat(sep=" ").removesuffix(" 00:00:00")
    if isinstance(value, tuple):
        return str(tuple(part.item() if isinstance(part, np.generic) else part for part in value))
    return str(value)


def _name_of_number(value: Any) -> str:
    # all but numpy's smaller floats are compared in double precision
    eps = float(np.finfo(type(value) if isinstance(value, np.floating) else np.float64).eps)
    number = float(value)
    if not np.isfinite(number):
        msg = "an infinite value"
        raise ValueError(msg)
    if abs(number) > 2 / eps:
        msg = f"{number:g}, a float above {2 / eps:.0f}, where floats leave out whole numbers"
        raise ValueError(msg)
    nearest = round(number)
    if abs(number - nearest) <= min(ROUNDING * eps * max(1.0, abs(number)), FARTHEST):
        return str(nearest)
    return str(value) if isinstance(value, np.floating) else repr(number)


def find_name(value: Any, known: Sequence[str]) -> str | None:
    """Find the name in ``known`` that a value has, or return None.

    If the result of :func:`name_of` is not in ``known``, other spellings of the same number are tried: 3 as ``"3.0"``, and
    a number in single precision as the same number in double precision.
    """
    try:
        return next((name for name in _spellings(value) if name in known), None)
    except ValueError:
        return None


def find_names(values: Sequence[Any], known: Sequence[str]) -> list[str | None]:
    """Apply :func:`find_name` to many values, of which few differ."""
    seen: dict[tuple[type, Any], str | None] = {}
    out: list[str | None] = []
    for given in values:
        value = given[()] if isinstance(given, np.ndarray) and given.ndim == 0 else given
        try:
            key = (type(value), value)
            if key not in seen:
                seen[key] = find_name(value, known)
            out.append(seen[key])
        except TypeError:  # a list, for example, which is not a category
            out.append(None)
    return out


def _spellings(value: Any) -> Iterator[str]:
    name = name_of(value)
    yield name
    if isinstance(value, np.ndarray):
        value = value[()]
    if isinstance(value, (float, np.floating)):
        with np.errstate(over="ignore"):
            single = np.float32(value)
        yield name_of(float(value))
        if np.isfinite(single) and float(single) == float(value) and abs(single) <= 2**24:
            yield name_of(single)
    number = isinstance(value, (str, Real, Decimal)) and not isinstance(value, (bool, np.bool_))
    if number and _WHOLE_TEXT.fullmatch(name):
        yield name.removesuffix(".0") if name.endswith(".0") else f"{name}.0"


@dataclass(frozen=True)
class Names:
    """The names of the categories of a column, and the index of each cell's category, int64 (n,), -1 if it is missing.

    The order is that of a categorical; otherwise numbers are in increasing order, and other values are sorted by name.
    ``fractional`` are the names that are not whole numbers if the column holds floats and is not categorical.
    """

    names: tuple[str, ...]
    code_n: np.ndarray
    values: tuple[Any, ...]
    fractional: tuple[str, ...]

    @classmethod
    def of(cls, column: pd.Series, where: str = "the column") -> Names:
        """Make the names of a column, called ``where`` in messages; raises ``ValueError`` if a category has no valid name."""
        values, code_n = _distinct(column, where)
        categorical = isinstance(column.dtype, pd.CategoricalDtype)
        first: dict[str, Any] = {}
        named: list[str] = []
        for value in values:
            try:
                name = name_of(value)
            except ValueError as error:
                msg = f"{where} holds {error}, which cannot name a category. Convert it to text: {where}.astype(str)."
                raise ValueError(msg) from error
            other = first.setdefault(name, value)
            if _kind(other) != _kind(value):
                msg = (
                    f"{where} has categories with the same name but different types: {other!r} and {value!r}. Make them "
                    f"one type: {where} = {where}.astype(str)."
                )
                raise ValueError(msg)
            named.append(name)
        if "" in first:
            msg = (
                f"{where} holds the empty string in {int((code_n == named.index('')).sum())} of {len(code_n)} cells, but a "
                f"category needs a name. Replace it: {where} = {where}.astype(object).replace('', 'unknown')."
            )
            raise ValueError(msg)
        names = list(first)
        if not categorical:
            numbers = all(_kind(value) == "number" for value in first.values())
            names.sort(key=first.__getitem__ if numbers else None)
        position = {name: i for i, name in enumerate(names)}
        place = np.array([*(position[name] for name in named), -1], dtype=np.int64)
        plain_float = not categorical and pd.api.types.is_float_dtype(column.dtype)
        fractional = tuple(name for name in names if plain_float and not _WHOLE_TEXT.fullmatch(name))
        return cls(tuple(names), place[code_n], tuple(first[name] for name in names), fractional)

    def among(self, known: Sequence[str]) -> np.ndarray:
        """Return the position of every category in ``known``, int64, -1 if absent; no two categories share a position."""
        place = {name: i for i, name in enumerate(known)}
        at = np.array([place.get(name, -1) for name in self.names], dtype=np.int64)
        free = set(known) - set(self.names)
        for i in np.flatnonzero(at < 0):
            name = find_name(self.values[i], tuple(free))
            if name is not None:
                at[i] = place[name]
                free.discard(name)
        return at

    def labels(self, missing: str) -> np.ndarray:
        """Return the name of every cell's category, object (n,), or ``missing``."""
        return np.array([*self.names, missing], dtype=object)[self.code_n]


def each_value(values: Any) -> list[Any]:
    """List the values of a sequence, an array or a column, each in its own type; a single value gives a list of one."""
    if isinstance(values, np.ndarray) and values.ndim == 0:
        return [values[()]]
    if isinstance(values, (pd.Series, pd.Index, pd.Categorical)):
        return _items(values)
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        return [values]
    return list(values)


def _distinct(column: pd.Series, where: str) -> tuple[list[Any], np.ndarray]:
    """Return the distinct values, and the index of the value of each cell, -1 if missing."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        used = column.cat.remove_unused_categories().cat
        return _items(used.categories), used.codes.to_numpy().astype(np.int64)
    try:
        if column.dtype == object and pd.api.types.infer_dtype(column, skipna=True) in ("mixed", "mixed-integer"):
            return _distinct_by_type(column)
        code_n, found = pd.factorize(column)
    except TypeError as error:
        msg = f"{where} holds values that cannot name a category ({error}). Use text or numbers: {where}.astype(str)."
        raise ValueError(msg) from error
    return _items(found), code_n.astype(np.int64)


def _distinct_by_type(column: pd.Series) -> tuple[list[Any], np.ndarray]:
    """Do the same for mixed types, because Python treats 1 and True as one value."""
    seen: dict[tuple[type, Any], int] = {}
    missing_n = column.isna().to_numpy()
    values = column.to_numpy(dtype=object)
    codes = [
        -1 if gone else seen.setdefault((type(v), v), len(seen)) for v, gone in zip(values, missing_n, strict=True)
    ]
    return [value for _, value in seen], np.array(codes, dtype=np.int64)


def _items(values: Any) -> list[Any]:
    """List values in their own type; iterating over pandas converts single precision to double."""
    if isinstance(getattr(values, "dtype", None), pd.CategoricalDtype):
        categories = _items(values.cat.categories if isinstance(values, pd.Series) else values.categories)
        codes = values.cat.codes if isinstance(values, pd.Series) else values.codes
        return [pd.NA if code < 0 else categories[code] for code in codes]
    if isinstance(getattr(values, "dtype", None), np.dtype) and values.dtype.kind == "f":
        return list(np.asarray(values))
    return list(values)


def _kind(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if isinstance(value, (Real, Decimal)):
        return "number"
    for kind in (str, bytes, tuple, date, timedelta):
        if isinstance(value, kind):
            return kind.__name__
    return type(value).__name__
