"""Covariates from ``obs``: categories and codes, standardised numbers, labels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from scanpy import logging as logg

from vxpress._keys import LIBRARY_SIZE
from vxpress.bridge.learned import MIN_CELLS, few, learned, with_cells
from vxpress.core.covariates import Covariates

# value of transform_batch= that leaves every cell in its own batch
OBSERVED = "observed"


@dataclass(frozen=True)
class CovariateTable:
    """What a fit knows of its covariates: columns, their categories, and mean and standard deviation of numbers.

    The batch, where there is one, is the first categorical column.  ``n_train`` are the numbers of training cells of each
    categorical column's categories, 0 before there are any.
    """

    batch_key: str | None
    categorical: tuple[tuple[str, tuple[str, ...]], ...] = ()
    continuous: tuple[tuple[str, float, float], ...] = ()
    labels: tuple[str, tuple[str, ...]] | None = None
    n_train: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def learn(
        cls,
        obs: pd.DataFrame,
        batch_key: str | None,
        categorical_keys: Sequence[str],
        continuous_keys: Sequence[str],
        labels_key: str | None,
    ) -> CovariateTable:
        """Categories and scales of the cells of a fit."""
        for key in (batch_key, *categorical_keys, *continuous_keys, labels_key):
            if key is not None and not isinstance(key, str):
                msg = f"The name of a column of adata.obs is expected; found {key!r}."
                raise TypeError(msg)
        keys = ([batch_key] if batch_key is not None else []) + [k for k in categorical_keys if k != batch_key]
        if len(set(keys)) < len(keys) or len(set(continuous_keys)) < len(continuous_keys):
            msg = f"A covariate is named twice: {[*keys, *continuous_keys]}. Name each column once."
            raise ValueError(msg)
        categorical = tuple((key, category_names(obs, key)) for key in keys)
        for key, names in categorical:
            if len(names) == 1:
                logg.warning(f"obs[{key!r}] has one category ({names[0]!r}) only: there is nothing to correct for.")
        continuous = tuple((key, *_location_scale(obs, key)) for key in continuous_keys)
        labels = None if labels_key is None else (labels_key, category_names(obs, labels_key))
        return cls(batch_key, categorical, continuous, labels, tuple((0,) * len(names) for _, names in categorical))

    def trained_on(self, codes_nk: np.ndarray, known: Sequence[int] | None = None) -> CovariateTable:
        """The table after training on cells of these categories, which only trained those behind the first ``known``."""
        first = [0] * len(self.n_train) if known is None else known
        counts = [np.bincount(codes_nk[:, k], minlength=len(n)) for k, n in enumerate(self.n_train)]
        return replace(
            self,
            n_train=tuple(
                (*n[:start], *(int(m) for m in found[start:]))
                for n, start, found in zip(self.n_train, first, counts, strict=True)
            ),
        )

    @property
    def learned(self) -> tuple[np.ndarray, ...]:
        """Which categories of each categorical column had enough training cells; all of them where none had."""
        return tuple(learned(n) for n in self.n_train)

    @property
    def averaged_batches(self) -> tuple[int, ...]:
        """Codes of the batches that an average over batches is taken of: those with enough training cells."""
        return tuple(np.flatnonzero(self.learned[0]).tolist()) if self.batch_key is not None else ()

    @property
    def batches(self) -> tuple[str, ...]:
        """Names of the batches; empty without a batch covariate."""
        return self.categorical[0][1] if self.batch_key is not None else ()

    def batch_codes(self, transform_batch: str | Sequence[str] | None) -> tuple[int, ...]:
        """Codes of the batches to decode under, for ``None`` all that were learned; empty without a batch covariate."""
        known = self.batches
        if transform_batch is None:
            self._warn_left_out()
            return self.averaged_batches
        # a batch that is named twice has no double weight
        names = tuple(dict.fromkeys(map(str, [transform_batch] if np.ndim(transform_batch) == 0 else transform_batch)))
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            msg = f"transform_batch={transform_batch!r}: the fit knows the batches {list(known)}. Name one or more of these, or fit with batch_key=."
            raise ValueError(msg)
        codes = tuple(known.index(name) for name in names)
        small, n = few(names, [self.n_train[0][code] for code in codes])
        if small:
            logg.warning(
                f"transform_batch= names batches with fewer than {MIN_CELLS} training cells: {with_cells(small, n)}. The fit has "
                "hardly learned them, and what is decoded under them is uncertain."
            )
        return codes

    def _warn_left_out(self) -> None:
        names, n = few(self.batches, self.n_train[0]) if self.batch_key is not None else ((), ())
        if names and len(names) < len(self.batches):
            logg.warning(
                f"The average over batches leaves out those with fewer than {MIN_CELLS} training cells: {with_cells(names, n)}. "
                "transform_batch= takes them in by name."
            )

    def with_categories_of(self, obs: pd.DataFrame) -> tuple[CovariateTable, tuple[tuple[str, ...], ...]]:
        """The table with the categories of other cells behind its own, and the added ones of each categorical column."""
        added = []
        for key, names in self.categorical:
            found = _as_names(get_column(obs, key))
            added.append(tuple(sorted(set(found) - set(names))))
        categorical = tuple((key, (*names, *more)) for (key, names), more in zip(self.categorical, added, strict=True))
        n_train = tuple((*n, *(0 for _ in more)) for n, more in zip(self.n_train, added, strict=True))
        return replace(self, categorical=categorical, n_train=n_train), tuple(added)

    def decoding_batches(self, transform_batch: str | Sequence[str] | None) -> tuple[int | None, ...]:
        """Codes of the batches to decode under; ``None`` is each cell's own batch, which ``"observed"`` asks for."""
        if not isinstance(transform_batch, str) or transform_batch != OBSERVED:
            return self.batch_codes(transform_batch) or (None,)
        if OBSERVED in self.batches:
            logg.warning(
                f"transform_batch={OBSERVED!r} decodes every cell under its own batch, though a batch of the fit has that "
                f"name; transform_batch=[{OBSERVED!r}] names the batch."
            )
        return (None,)

    def read(self, obs: pd.DataFrame, *, labels: bool = True) -> Covariates:
        """Codes and standardised values of some cells; ``labels=False`` where only training needs them."""
        codes = [category_codes(obs, key, names) for key, names in self.categorical]
        values = [(_numbers(obs, key) - mean) / sd for key, mean, sd in self.continuous]
        n = len(obs)
        return Covariates(
            torch.from_numpy(np.stack(codes, axis=1) if codes else np.zeros((n, 0), dtype=np.int64)),
            torch.from_numpy((np.stack(values, axis=1) if values else np.zeros((n, 0))).astype(np.float32)),
            None if self.labels is None or not labels else torch.from_numpy(category_codes(obs, *self.labels)),
        )

    def to_uns(self) -> dict[str, Any]:
        """As a mapping; names chosen by the user are values, never keys."""
        out: dict[str, Any] = {}
        if self.batch_key is not None:
            out["batch_key"] = self.batch_key
        if self.categorical:
            out["categorical_keys"] = _strings([key for key, _ in self.categorical])
            out |= {f"categories_{i}": _strings(names) for i, (_, names) in enumerate(self.categorical)}
            out |= {f"n_train_{i}": np.array(n, dtype=np.int64) for i, n in enumerate(self.n_train)}
        if self.continuous:
            out["continuous_keys"] = _strings([key for key, _, _ in self.continuous])
            out["continuous_mean"] = np.array([mean for _, mean, _ in self.continuous])
            out["continuous_sd"] = np.array([sd for _, _, sd in self.continuous])
        if self.labels is not None:
            out["labels_key"], out["labels_categories"] = self.labels[0], _strings(self.labels[1])
        return out

    @classmethod
    def from_uns(cls, stored: Mapping[str, Any]) -> CovariateTable:
        """The table that :meth:`to_uns` stored."""
        categorical = tuple(
            (str(key), tuple(map(str, stored[f"categories_{i}"])))
            for i, key in enumerate(stored.get("categorical_keys", ()))
        )
        continuous = tuple(
            (str(key), float(mean), float(sd))
            for key, mean, sd in zip(
                stored.get("continuous_keys", ()),
                stored.get("continuous_mean", ()),
                stored.get("continuous_sd", ()),
                strict=True,
            )
        )
        labels = (
            (str(stored["labels_key"]), tuple(map(str, stored["labels_categories"])))
            if "labels_key" in stored
            else None
        )
        batch_key = stored.get("batch_key")
        n_train = tuple(_n_train(stored, i, len(names)) for i, (_, names) in enumerate(categorical))
        return cls(None if batch_key is None else str(batch_key), categorical, continuous, labels, n_train)


def _n_train(stored: Mapping[str, Any], i: int, n_categories: int) -> tuple[int, ...]:
    """Numbers of training cells, checked."""
    values = np.asarray(stored[f"n_train_{i}"])
    if values.dtype.kind not in "iu" or values.shape != (n_categories,) or (values < 0).any():
        msg = (
            f"The stored fit is damaged: covariates/n_train_{i} should be {n_categories} numbers of training cells, one per "
            f"category; found {values!r}. Fit again: vx.tl.fit_vae(adata)."
        )
        raise ValueError(msg)
    return tuple(int(n) for n in values)


def _strings(names: Sequence[str]) -> np.ndarray:
    return np.array(list(names), dtype=object)


def get_column(obs: pd.DataFrame, key: str, *, numeric: bool = False) -> pd.Series:
    """A column of ``obs`` without gaps, or an error that lists what is there or says how to fill it."""
    if key not in obs.columns:
        hint = " vx.pp.library_size(adata) writes it." if key == LIBRARY_SIZE else ""
        msg = f"{key!r} is not a column of adata.obs (found: {list(obs.columns)}).{hint}"
        raise KeyError(msg)
    column = obs[key]
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


def category_names(obs: pd.DataFrame, key: str) -> tuple[str, ...]:
    """Names of the categories of a column, in its order, else sorted."""
    column = get_column(obs, key)
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = tuple(map(str, column.cat.remove_unused_categories().cat.categories))
    else:
        if pd.api.types.is_float_dtype(column.dtype) and not np.allclose(column, np.rint(column)):
            msg = f"obs[{key!r}] holds fractional numbers; a categorical covariate is expected. Name it in continuous_covariate_keys= instead."
            raise ValueError(msg)
        names = tuple(sorted({str(name) for name in pd.unique(_as_names(column))}))
    if len(set(names)) < len(names):
        msg = f"obs[{key!r}] has categories that read alike, such as 1 and '1': {list(names)}. Make them one type: .astype(str)."
        raise ValueError(msg)
    return names


def _as_names(column: pd.Series) -> pd.Series:
    """As strings; whole numbers read the same whether pandas holds them as int or, after a merge, as float."""
    if pd.api.types.is_float_dtype(column.dtype) and np.allclose(column, np.rint(column)):
        column = column.astype(np.int64)
    return column.astype(str)


def category_name(value: Hashable) -> str:
    """The name of a category, as the columns of ``obs`` are read: whole numbers without a point."""
    if isinstance(value, Real) and not isinstance(value, (bool, Integral)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def category_codes(obs: pd.DataFrame, key: str, names: Sequence[str]) -> np.ndarray:
    """Positions of the values of a column among ``names``, int64 (n,)."""
    found = _as_names(get_column(obs, key))
    codes = pd.Index(names).get_indexer(found).astype(np.int64)
    if (codes < 0).any():
        unseen = sorted(set(found[codes < 0]))
        msg = (
            f"obs[{key!r}] holds {unseen}, which the fit has not seen (it knows {list(names)}). Rename these categories, leave "
            "the cells out, or make room for them: vx.tl.encode(adata, model=...). After that adata holds the fit that knows "
            "them: leave model= out."
        )
        raise ValueError(msg)
    return codes


def _numbers(obs: pd.DataFrame, key: str) -> np.ndarray:
    column = get_column(obs, key, numeric=True)
    if not pd.api.types.is_numeric_dtype(column.dtype):
        msg = f"obs[{key!r}] has dtype {column.dtype}; numbers are expected. Name it in categorical_covariate_keys= instead."
        raise ValueError(msg)
    values = column.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        msg = f"obs[{key!r}] holds infinite values; finite numbers are expected."
        raise ValueError(msg)
    return values


def _location_scale(obs: pd.DataFrame, key: str) -> tuple[float, float]:
    values = _numbers(obs, key)
    sd = float(values.std())
    return float(values.mean()), sd if sd > 0 else 1.0
