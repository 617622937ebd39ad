"""Read covariates from ``obs``: categories and codes, standardised numbers, labels."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from scanpy import logging as logg

from vxpress._names import each_value, find_name, find_names
from vxpress.bridge.read.columns import (
    check_no_fractions,
    get_categories,
    get_column,
    get_names,
    get_numbers,
    is_real,
)
from vxpress.bridge.read.learned import MIN_CELLS, few, learned, with_cells
from vxpress.bridge.read.panels import PanelTable
from vxpress.bridge.read.perturbations import PerturbationTable
from vxpress.core.covariates import Covariates

# types of transform_batch=: one batch as written in obs, or several
Batches: TypeAlias = Hashable | Iterable[Hashable]
# value of transform_batch= that keeps every cell in its own batch
OBSERVED = "observed"
# in standard deviations; the model multiplies and adds such numbers in single precision
FARTHEST = 1e20
SMALLEST_SPREAD = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Scale:
    """Mean, standard deviation and range of a continuous covariate in the cells of a fit.

    The standard deviation is 1 if the covariate is constant, so that nothing is divided by rounding errors.
    """

    mean: float
    sd: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray, dtype: Any = np.float64) -> Scale:
        """Compute the scale of some numbers, which were stored as ``dtype``."""
        low, high = float(values.min()), float(values.max())
        # a spread of numbers without all their digits cannot be divided by
        if high - low <= max(_rounding(dtype) * max(abs(low), abs(high)), SMALLEST_SPREAD):
            middle = low + 0.5 * (high - low)
            return cls(middle, 1.0, middle, middle)
        # squares of very large and very small numbers overflow or underflow
        unit = max(abs(low), abs(high))
        unit = 1.0 if 1e-100 < unit < 1e100 else unit
        return cls(float((values / unit).mean() * unit), float((values / unit).std() * unit), low, high)

    @property
    def constant(self) -> bool:
        """Whether all cells of the fit had one value, up to rounding."""
        return self.low == self.high

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """Standardise numbers as the model receives them, in single precision; the farthest are cut off so that all is finite."""
        with np.errstate(over="ignore"):
            return np.clip((values - self.mean) / self.sd, -FARTHEST, FARTHEST)

    def far(self, values: np.ndarray) -> np.ndarray:
        """Return which numbers are outside the range by more than one standard deviation; for a constant, which differ."""
        margin = _rounding(np.float32) * abs(self.mean) if self.constant else self.sd
        return (values < self.low - margin) | (values > self.high + margin)

    def range(self) -> str:
        """Describe the range in words."""
        return f"{self.low:g} in all cells" if self.constant else f"{self.low:g} to {self.high:g}"


def _rounding(dtype: Any) -> float:
    """Return the relative rounding error to expect in a constant: a few digits more than one operation loses."""
    plain = np.dtype(getattr(dtype, "numpy_dtype", dtype))
    return float(np.finfo(plain if plain.kind == "f" else np.float64).eps) ** 0.75


@dataclass(frozen=True)
class CovariateTable:
    """The covariates of a fit: columns, their categories, and the scale of numbers.

    The batch, if there is one, is the first categorical column. ``n_train`` holds the number of training cells of each
    category of each categorical column, 0 before training.
    """

    batch_key: str | None
    categorical: tuple[tuple[str, tuple[str, ...]], ...] = ()
    continuous: tuple[tuple[str, Scale], ...] = ()
    labels: tuple[str, tuple[str, ...]] | None = None
    n_train: tuple[tuple[int, ...], ...] = ()
    perturbations: PerturbationTable | None = None
    panels: PanelTable | None = None

    @classmethod
    def learn(
        cls,
        obs: pd.DataFrame,
        batch_key: str | None,
        categorical_keys: Sequence[str],
        continuous_keys: Sequence[str],
        labels_key: str | None,
        *,
        optional_keys: Sequence[str] = (),
    ) -> CovariateTable:
        """Read categories and scales from the cells of a fit; optional covariates that are named only there are the last ones."""
        for key in (batch_key, *categorical_keys, *continuous_keys, labels_key, *optional_keys):
            if key is not None and not isinstance(key, str):
                msg = f"The name of a column of adata.obs is expected; found {key!r}."
                raise TypeError(msg)
            if key == "":
                msg = "The name of a covariate is the empty string. Give the column a name: adata.obs = adata.obs.rename(columns={'': 'batch'})."
                raise ValueError(msg)
        keys = ([batch_key] if batch_key is not None else []) + [k for k in categorical_keys if k != batch_key]
        if len(set(keys)) < len(keys) or len(set(continuous_keys)) < len(continuous_keys):
            msg = f"A covariate is named twice: {[*keys, *continuous_keys]}. Name each column once."
            raise ValueError(msg)
        _check_optional(obs, optional_keys, continuous_keys)
        keys += [key for key in optional_keys if key not in keys]
        categorical = tuple((key, get_categories(obs, key).names) for key in keys)
        for key, names in categorical:
            if len(names) == 1:
                logg.warning(f"obs[{key!r}] has only one category ({names[0]!r}): there is nothing to correct for.")
        continuous = tuple((key, location_scale(obs, key)) for key in continuous_keys)
        labels = None if labels_key is None else (labels_key, get_categories(obs, labels_key).names)
        return cls(batch_key, categorical, continuous, labels, tuple((0,) * len(names) for _, names in categorical))

    def positions(self, keys: Sequence[str]) -> tuple[int, ...]:
        """Return the positions of some categorical columns."""
        known = [key for key, _ in self.categorical]
        return tuple(sorted(known.index(key) for key in keys))

    def trained_on(self, codes_nk: np.ndarray, known: Sequence[int] | None = None) -> CovariateTable:
        """Return the table after training on cells with these codes; only categories after the first ``known`` were trained."""
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
        """For each categorical column, which categories had enough training cells; see :func:`learned`."""
        return tuple(learned(n) for n in self.n_train)

    @property
    def averaged_batches(self) -> tuple[int, ...]:
        """Codes of the batches in averages over batches: those with enough training cells."""
        return tuple(np.flatnonzero(self.learned[0]).tolist()) if self.batch_key is not None else ()

    @property
    def batches(self) -> tuple[str, ...]:
        """Names of the batches; empty without a batch covariate."""
        return self.categorical[0][1] if self.batch_key is not None else ()

    def batch_codes(self, transform_batch: Batches | None) -> tuple[int, ...]:
        """Return the codes of the batches to decode under; ``None`` means all that were learned.

        Empty without a batch covariate.
        """
        known = self.batches
        if transform_batch is None:
            self._warn_left_out()
            return self.averaged_batches
        values = [transform_batch] if isinstance(transform_batch, tuple) else each_value(transform_batch)
        if isinstance(transform_batch, tuple) and find_name(transform_batch, known) is None:
            values = list(transform_batch)
        # a batch that is named twice counts once
        found = dict.fromkeys(find_names(values, known))
        if not found or None in found:
            if not known:
                msg = f"transform_batch={transform_batch!r}: the fit has no batches. Leave transform_batch= out, or fit with batch_key=."
                raise ValueError(msg)
            msg = f"transform_batch={transform_batch!r}: the fit knows the batches {list(known)}. Name one or more of these."
            raise ValueError(msg)
        names = tuple(name for name in found if name is not None)
        codes = tuple(known.index(name) for name in names)
        small, n = few(names, [self.n_train[0][code] for code in codes])
        if small:
            logg.warning(
                f"transform_batch= names batches with fewer than {MIN_CELLS} training cells: {with_cells(small, n)}. These are too few "
                "to learn them well, so expression decoded under them is uncertain."
            )
        return codes

    def _warn_left_out(self) -> None:
        out = [code for code in range(len(self.batches)) if code not in self.averaged_batches]
        if out:
            named = with_cells([self.batches[code] for code in out], [self.n_train[0][code] for code in out])
            logg.warning(
                f"The average over batches excludes batches with fewer than {MIN_CELLS} training cells: {named}. "
                "Name them in transform_batch= to include them."
            )

    def with_categories_of(self, obs: pd.DataFrame) -> tuple[CovariateTable, tuple[tuple[str, ...], ...]]:
        """Return the table with new categories of other cells appended, and the added categories of each categorical column."""
        added = []
        for key, names in self.categorical:
            found = get_names(obs, key, hint=self._hint(key))
            check_no_fractions(found, key, names)
            added.append(
                tuple(sorted(name for name, at in zip(found.names, found.among(names), strict=True) if at < 0))
            )
        categorical = tuple((key, (*names, *more)) for (key, names), more in zip(self.categorical, added, strict=True))
        n_train = tuple((*n, *(0 for _ in more)) for n, more in zip(self.n_train, added, strict=True))
        return replace(self, categorical=categorical, n_train=n_train), tuple(added)

    def _hint(self, key: str) -> str:
        """Return what to do if other cells lack a column."""
        if key == self.batch_key:
            return (
                f"The fit corrects for it: name the batch of these cells, query.obs[{key!r}] = 'new batch name', or one of "
                f"{list(self.batches)[:5]}."
            )
        if any(key == name for name, _ in self.continuous):
            return f"The fit uses this number of every cell: query.obs[{key!r}] = ..."
        return f"The fit uses this covariate of every cell: query.obs[{key!r}] = 'name of the category'."

    def decoding_batches(self, transform_batch: Batches | None) -> tuple[int | None, ...]:
        """Return the codes of the batches to decode under; a code of ``None`` is the cell's own batch (``"observed"``)."""
        if not isinstance(transform_batch, str) or transform_batch != OBSERVED:
            return self.batch_codes(transform_batch) or (None,)
        if OBSERVED in self.batches:
            logg.warning(
                f"transform_batch={OBSERVED!r} decodes every cell under its own batch, although a batch of the fit has "
                f"this name; transform_batch=[{OBSERVED!r}] selects that batch."
            )
        return (None,)

    def read(self, obs: pd.DataFrame, *, labels: bool = True, warn: bool = True) -> Covariates:
        """Read codes and standardised values of some cells; with ``labels=False`` without labels, which only training needs.

        ``warn=False`` raises no warning about numbers far outside the range of the fit.
        """
        codes = [category_codes(obs, key, names, self._hint(key)) for key, names in self.categorical]
        values = []
        for key, scale in self.continuous:
            found = get_numbers(obs, key, hint=self._hint(key))
            if warn:
                warn_far(key, scale, found, f"obs[{key!r}] holds")
            values.append(scale.standardise(found))
        n = len(obs)
        return Covariates(
            torch.from_numpy(np.stack(codes, axis=1) if codes else np.zeros((n, 0), dtype=np.int64)),
            torch.from_numpy((np.stack(values, axis=1) if values else np.zeros((n, 0))).astype(np.float32)),
            None if self.labels is None or not labels else torch.from_numpy(category_codes(obs, *self.labels)),
            None if self.perturbations is None else self.perturbations.read(obs),
            None if self.panels is None else torch.from_numpy(self.panels.codes(obs)),
        )

    def to_uns(self) -> dict[str, Any]:
        """Return the table as a mapping; names chosen by the user are values, never keys.

        Every field is always written, with an empty string if there is no such column, so that a lost field is detected.
        """
        scales = [scale for _, scale in self.continuous]
        labels_key, labels = ("", ()) if self.labels is None else self.labels
        return {
            "batch_key": self.batch_key or "",
            "categorical_keys": _strings([key for key, _ in self.categorical]),
            **{f"categories_{i}": _strings(names) for i, (_, names) in enumerate(self.categorical)},
            **{f"n_train_{i}": np.array(n, dtype=np.int64) for i, n in enumerate(self.n_train)},
            "continuous_keys": _strings([key for key, _ in self.continuous]),
            "continuous_mean": np.array([scale.mean for scale in scales], dtype=float),
            "continuous_sd": np.array([scale.sd for scale in scales], dtype=float),
            "continuous_min": np.array([scale.low for scale in scales], dtype=float),
            "continuous_max": np.array([scale.high for scale in scales], dtype=float),
            "labels_key": labels_key,
            "labels_categories": _strings(labels),
            **({} if self.perturbations is None else {"perturbations": self.perturbations.to_uns()}),
            **({} if self.panels is None else {"panels": self.panels.to_uns()}),
        }

    @classmethod
    def from_uns(cls, stored: Mapping[str, Any]) -> CovariateTable:
        """Read the table that :meth:`to_uns` stored; raises ``ValueError`` if a field is missing or a value is impossible."""
        keys = _stored_names(stored, "categorical_keys", empty=True)
        categorical = tuple((key, _stored_names(stored, f"categories_{i}")) for i, key in enumerate(keys))
        numbers = _stored_names(stored, "continuous_keys", empty=True)
        parts = [_stored_numbers(stored, f"continuous_{part}", len(numbers)) for part in ("mean", "sd")]
        # the range is infinite if it is unknown
        parts += [_stored_numbers(stored, f"continuous_{part}", len(numbers), finite=False) for part in ("min", "max")]
        scales = [Scale(*values) for values in zip(*parts, strict=True)]
        for key, scale in zip(numbers, scales, strict=True):
            inside = scale.low - scale.sd <= scale.mean <= scale.high + scale.sd
            _require(
                scale.sd > 0 and scale.low <= scale.high and inside,
                f"the number {key!r} has mean {scale.mean:g}, standard deviation {scale.sd:g} and range {scale.low:g} to "
                f"{scale.high:g}",
            )
        batch_key, labels_key = (_stored_text(stored, name) for name in ("batch_key", "labels_key"))
        _require(
            not batch_key or keys[:1] == (batch_key,),
            f"the batch {batch_key!r} is not the first categorical covariate, {list(keys)}",
        )
        names = _stored_names(stored, "labels_categories", empty=not labels_key)
        _require(bool(labels_key) or not names, "there are categories of labels, but no column")
        return cls(
            batch_key or None,
            categorical,
            tuple(zip(numbers, scales, strict=True)),
            (labels_key, names) if labels_key else None,
            tuple(_n_train(stored, i, len(names)) for i, (_, names) in enumerate(categorical)),
            PerturbationTable.from_uns(stored["perturbations"]) if "perturbations" in stored else None,
            PanelTable.from_uns(stored["panels"]) if "panels" in stored else None,
        )


def _check_optional(obs: pd.DataFrame, optional_keys: Sequence[str], continuous_keys: Sequence[str]) -> None:
    """Raise unless optional covariates are different columns with two categories or more."""
    if len(set(optional_keys)) < len(optional_keys):
        msg = f"optional_covariate_keys={list(optional_keys)} names a column twice. Name each column once."
        raise ValueError(msg)
    for key in optional_keys:
        found = get_names(obs, key, argument="optional_covariate_keys")
        many = is_real(obs[key].dtype) and len(found.names) > max(MIN_CELLS, len(obs) / MIN_CELLS)
        if key in continuous_keys or found.fractional or many:
            msg = (
                f"optional_covariate_keys= names {key!r}, which holds numbers. Only categories can be removed and kept by one "
                f"fit. Leave {key!r} out and pass continuous_covariate_keys=[{key!r}], or divide the cells into groups: "
                f"adata.obs['group'] = pd.cut(adata.obs[{key!r}], 3).astype(str)."
            )
            raise ValueError(msg)
        if len(found.names) < 2:
            msg = (
                f"optional_covariate_keys= names {key!r}, but all cells have the category {found.names[0]!r}: there is no effect "
                "to remove or to keep. Leave it out."
            )
            raise ValueError(msg)


def _n_train(stored: Mapping[str, Any], i: int, n_categories: int) -> tuple[int, ...]:
    """Read and check the numbers of training cells."""
    name = f"n_train_{i}"
    values = _field(stored, name)
    right = values.dtype.kind in "iu" and values.shape == (n_categories,) and bool((values >= 0).all())
    _require(
        right,
        f"{name!r} is {stored[name]!r}; {n_categories} numbers of training cells, one per category, are expected",
    )
    return tuple(int(n) for n in values)


def _strings(names: Sequence[str]) -> np.ndarray:
    # an empty array of objects does not survive every file
    return np.array(list(names), dtype=object) if names else np.array([], dtype=float)


def _require(holds: bool, otherwise: str) -> None:  # noqa: FBT001 - a condition
    if not holds:
        msg = f"The stored fit is damaged: in its covariates, {otherwise}."
        raise ValueError(msg)


def _field(stored: Mapping[str, Any], name: str) -> np.ndarray:
    _require(name in stored, f"{name!r} is missing")
    return np.asarray(stored[name])


def _stored_text(stored: Mapping[str, Any], name: str) -> str:
    value = _field(stored, name)
    _require(value.ndim == 0 and isinstance(value[()], str), f"{name!r} is {stored[name]!r}, not a string")
    return str(value[()])


def _stored_names(stored: Mapping[str, Any], name: str, *, empty: bool = False) -> tuple[str, ...]:
    values = _field(stored, name)
    names = tuple(values.tolist()) if values.ndim == 1 else ()
    right = values.ndim == 1 and all(isinstance(part, str) and part for part in names)
    _require(
        right and len(set(names)) == len(names) and bool(names or empty),
        f"{name!r} is {stored[name]!r}; distinct names are expected",
    )
    return tuple(map(str, names))


def _stored_numbers(stored: Mapping[str, Any], name: str, n: int, *, finite: bool = True) -> list[float]:
    values = _field(stored, name)
    right = values.shape == (n,) and values.dtype.kind in "iuf"
    right = right and bool((np.isfinite(values) if finite else ~np.isnan(values)).all())
    _require(right, f"{name!r} is {stored[name]!r}; {n} finite number(s) are expected")
    return [float(value) for value in values]


def warn_far(key: str, scale: Scale, values: np.ndarray, what: str) -> None:
    """Warn about numbers far outside the range of the fit."""
    far = scale.far(values)
    if far.any():
        farthest = float(values[np.argmax(np.abs(values - scale.mean))])
        logg.warning(
            f"{what} {farthest:g}{f' (and {int(far.sum()) - 1} more such values)' if far.sum() > 1 else ''}, far outside the range "
            f"of {key!r} in the fit ({scale.range()}). Predictions for such a value are extrapolations."
        )


def category_codes(obs: pd.DataFrame, key: str, names: Sequence[str], hint: str = "") -> np.ndarray:
    """Return the positions of the values of a column among ``names``, int64 (n,)."""
    found = get_names(obs, key, hint=hint)
    at = found.among(names)
    if (at < 0).any():
        unseen = [name for name, i in zip(found.names, at, strict=True) if i < 0]
        msg = (
            f"obs[{key!r}] holds {unseen}, which the fit has not seen (it knows {list(names)}). Rename these categories, "
            "remove the cells, or extend the fit: vx.tl.encode(adata, model=...). After that adata holds the extended fit: "
            "omit model=."
        )
        raise ValueError(msg)
    return np.asarray(at[found.code_n])


def location_scale(obs: pd.DataFrame, key: str) -> Scale:
    """Compute the scale of a column of ``obs``; warn if it is constant."""
    scale = Scale.of(get_numbers(obs, key), get_column(obs, key).dtype)
    if scale.constant:
        logg.warning(
            f"obs[{key!r}] is constant ({scale.low:g} in all cells of the fit), so nothing can be learned from it. Remove it from "
            "continuous_covariate_keys=, or add cells with other values."
        )
    return scale
