"""Read perturbations and their doses from ``obs``: ``"A"``, ``"A+B"`` or the control, and ``0.5`` or ``"0.5+1"``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from scanpy import logging as logg

from vxpress._names import find_name, name_of
from vxpress._similar import similar_names
from vxpress.bridge.read.columns import find_column, get_names
from vxpress.bridge.read.learned import MIN_CELLS, few, with_cells

SEPARATOR = "+"
# a dose this much above or below those of the fit, as a factor, is outside their range
OUTSIDE = 1.001
# one condition: a name such as "A+B", or the dose of each perturbation
Condition: TypeAlias = Hashable | Mapping[str, float]


@dataclass(frozen=True)
class PerturbationTable:
    """The single perturbations of a fit, the name of its control, and the lowest and highest dose of each.

    The model receives doses in units of the highest dose of each perturbation; without ``dose_key`` all doses are 1.
    ``observed`` are the conditions of the cells as they are written in ``obs``. ``n_train`` holds the number of training cells
    with each perturbation, 0 before training.
    """

    key: str
    control: str
    names: tuple[str, ...]
    observed: tuple[str, ...]
    dose_key: str | None = None
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    n_train: tuple[int, ...] = ()

    @classmethod
    def learn(cls, obs: pd.DataFrame, key: str, control: Hashable, dose_key: str | None) -> PerturbationTable:
        """Read perturbations and doses from the cells of a fit."""
        found = get_names(obs, key, argument="perturbation_key")
        name = find_name(control, found.names) if control is not None else None
        if name is None:
            missing = (
                "control= was left out" if control is None else f"control={control!r} is not a category of obs[{key!r}]"
            )
            msg = (
                f"{missing}. Name the category of the unperturbed cells, for example control={_guess(found.names)!r}; obs[{key!r}] "
                f"holds {list(found.names[:8])}{' and more' if len(found.names) > 8 else ''}."
            )
            raise ValueError(msg)
        parts = {one: components(one, name, key) for one in found.names}
        single = tuple(sorted({part for of in parts.values() for part in of if part != name}))
        if not single:
            msg = f"obs[{key!r}] holds only the control {name!r}, so there is no perturbation to learn. Leave perturbation_key= out."
            raise ValueError(msg)
        ones, none_yet = (1.0,) * len(single), (0,) * len(single)
        table = cls(key, name, single, found.names, dose_key, ones, ones, none_yet)
        if dose_key is None:
            return table
        dose_np = table._doses(obs)
        none = [one for one, dose_n in zip(single, dose_np.T, strict=True) if not (dose_n > 0).any()]
        if none:
            msg = f"obs[{dose_key!r}] is 0 in every cell with the perturbation(s) {none[:5]}. Give these cells their dose, or call them {name!r}."
            raise ValueError(msg)
        low = tuple(float(dose_n[dose_n > 0].min()) for dose_n in dose_np.T)
        return replace(table, low=low, high=tuple(float(dose_n.max()) for dose_n in dose_np.T))

    @property
    def differ(self) -> bool:
        """Whether a perturbation was given in several doses."""
        return any(low < high for low, high in zip(self.low, self.high, strict=True))

    def trained_on(self, dose_np: np.ndarray) -> PerturbationTable:
        """Return the table after training on cells with these doses; warn about perturbations with few of them."""
        n_train = tuple(map(int, (dose_np > 0).sum(0)))
        small, n = few(self.names, n_train)
        if small:
            logg.warning(
                f"obs[{self.key!r}] has {len(small)} perturbation(s) with fewer than {MIN_CELLS} training cells: {with_cells(small, n)}. "
                "These are too few to learn their effects well."
            )
        return replace(self, n_train=n_train)

    def read(self, obs: pd.DataFrame) -> torch.Tensor:
        """Return the dose of every perturbation in every cell, in units of the highest of the fit, float32 (n, p)."""
        return torch.from_numpy(self.scaled(self._doses(obs)))

    def scaled(self, dose: np.ndarray) -> np.ndarray:
        """Return doses (..., p) in units of the highest of the fit, float32; warn if some are outside the range of the fit."""
        low, high = np.array(self.low), np.array(self.high)
        outside = ((dose > high * OUTSIDE) | ((dose > 0) & (dose < low / OUTSIDE))).reshape(-1, len(high))
        if outside.any():
            at = int(np.flatnonzero(outside.any(0))[0])
            farthest = dose.reshape(-1, len(high))[outside[:, at], at].max()
            logg.warning(
                f"A dose of {self.names[at]!r} is {farthest:g}, but the fit has seen {low[at]:g} to {high[at]:g}. The effect of such "
                "a dose is an extrapolation."
            )
        return np.asarray(dose / high, dtype=np.float32)

    def codes(self, obs: pd.DataFrame) -> np.ndarray:
        """Return the number of the condition of each cell, int64 (n,): cells of one condition have the same doses."""
        _, code_n = np.unique(self._doses(obs), axis=0, return_inverse=True)
        return code_n.reshape(-1).astype(np.int64)

    def condition(self, value: Condition, argument: str, dose: Any = None) -> np.ndarray:
        """Return the doses of a condition that an argument names, float64 (p,), in the units of ``obs``.

        It is a name, as in ``obs``, whose perturbations have the highest dose of the fit, or ``dose`` as in ``obs``; or it maps
        perturbations to doses.
        """
        dose_p = np.zeros(len(self.names))
        given: Mapping[Any, Any] = value if isinstance(value, Mapping) else {}
        if isinstance(value, Mapping):
            wanted = {}
            for name, number in given.items():
                real = isinstance(number, (int, float, np.integer, np.floating)) and not isinstance(number, bool)
                if not real or not np.isfinite(number) or number < 0:
                    msg = f"{argument}={value!r} should map perturbations to doses, numbers that are not negative."
                    raise ValueError(msg)
                wanted[str(name)] = float(number)
        else:
            try:
                text = find_name(value, self.observed) or name_of(value)
            except ValueError as error:
                msg = f"{argument}={value!r} is {error}, which does not name a perturbation."
                raise ValueError(msg) from error
            parts = components(text, self.control, self.key)
            wanted = dict.fromkeys(parts, np.nan)
            if dose is not None:
                wanted = dict(zip(parts, self._given(dose, text, parts), strict=True))
        for name, number in wanted.items():
            if name == self.control:
                continue
            at = self._position(name, f"{argument}={value!r}")
            dose_p[at] = self.high[at] if np.isnan(number) else number
        return dose_p

    def name_of(self, dose_p: np.ndarray) -> str:
        """Return the name of a condition, with its doses unless they are the highest of the fit."""
        parts = []
        for name, dose, high in zip(self.names, dose_p, self.high, strict=True):
            if dose > 0:
                parts.append(name if dose == high else f"{name} ({dose:g})")
        return SEPARATOR.join(parts) or self.control

    def doses_of(self, name: str) -> str:
        """Return the highest doses of the perturbations of a condition as they are written in ``obs``; 0 for the control."""
        parts = components(name, self.control, self.key)
        highest = dict(zip(self.names, self.high, strict=True))
        return SEPARATOR.join(f"{highest.get(part, 0.0):.17g}" for part in parts) or "0"

    def _given(self, dose: Any, condition: str, parts: Sequence[str]) -> list[float]:
        """Return the dose of each part of a condition, from an argument."""
        if self.dose_key is None:
            msg = f"A dose, {dose!r}, was given, but the fit has none. Fit with dose_key=, or leave it out."
            raise ValueError(msg)
        numbers = _numbers(dose, len(parts))
        if numbers is None:
            more = f", or text with {len(parts)} of them joined by {SEPARATOR!r}" if len(parts) > 1 else ""
            msg = f"The dose {dose!r} was given for {condition!r}; a number that is not negative{more} is expected."
            raise ValueError(msg)
        return numbers

    def _position(self, name: str, where: str) -> int:
        found = find_name(name, self.names)
        if found is None:
            msg = (
                f"{where} names the perturbation {name!r}, which the fit has not seen: it cannot be predicted. The fit knows "
                f"{list(self.names[:8])}{' and more' if len(self.names) > 8 else ''}, alone or joined by {SEPARATOR!r}, and the control "
                f"{self.control!r}.{similar_names([name], self.names)}"
            )
            raise ValueError(msg)
        return self.names.index(found)

    def _doses(self, obs: pd.DataFrame) -> np.ndarray:
        """Read the dose of every perturbation in every cell in the units of ``obs``, float64 (n, p)."""
        hint = f"The fit uses the perturbation of every cell: query.obs[{self.key!r}] = {self.control!r}, or its name."
        found = get_names(obs, self.key, hint=hint)
        parts = [components(name, self.control, self.key) for name in found.names]
        positions = [
            [self._position(name, f"obs[{self.key!r}]") for name in of if name != self.control] for of in parts
        ]
        dose_np = np.zeros((len(obs), len(self.names)))
        if self.dose_key is None:
            for code, at in enumerate(positions):
                dose_np[np.ix_(found.code_n == code, at)] = 1.0
            return dose_np
        hint = f"The fit uses the dose of every cell: query.obs[{self.dose_key!r}] = 1.0."
        column = find_column(obs, self.dose_key, argument="dose_key", hint=hint)
        values, code_n = _distinct(column)
        for code, (of, at) in enumerate(zip(parts, positions, strict=True)):
            rows = found.code_n == code
            if not at:
                continue
            for dose in np.unique(code_n[rows]):
                here = rows & (code_n == dose)
                number = self._numbers(None if dose < 0 else values[dose], found.names[code], of, int(here.sum()))
                for i, name in zip(at, (name for name in of if name != self.control), strict=True):
                    dose_np[here, i] = number[of.index(name)]
        return dose_np

    def _numbers(self, value: Any, condition: str, names: Sequence[str], n: int) -> list[float]:
        """Return the dose of every perturbation of a condition."""
        numbers = _numbers(value, len(names))
        if numbers is None:
            example = SEPARATOR.join(["0.5", "1", *["1"] * (len(names) - 2)][: len(names)])
            what = "is missing" if value is None else f"is {value!r}"
            msg = (
                f"obs[{self.dose_key!r}] {what} in {n} cell(s) with the condition {condition!r}; a number that is not negative is "
                f"expected{f', or {len(names)} joined by {SEPARATOR!r}, as in {example!r}' if len(names) > 1 else ''}. Give these "
                "cells their dose, or remove them."
            )
            raise ValueError(msg)
        return numbers

    def to_uns(self) -> dict[str, Any]:
        """Return the table as a mapping; names chosen by the user are values, never keys."""
        return {
            "key": self.key,
            "control": self.control,
            "names": np.array(self.names, dtype=object),
            "observed": np.array(self.observed, dtype=object),
            "dose_key": self.dose_key or "",
            "low": np.array(self.low),
            "high": np.array(self.high),
            "n_train": np.array(self.n_train, dtype=np.int64),
        }

    @classmethod
    def from_uns(cls, stored: Any) -> PerturbationTable:
        """Read the table that :meth:`to_uns` stored; raises ``ValueError`` if a field is missing or a value is impossible."""
        fields = {"key", "control", "names", "observed", "dose_key", "low", "high", "n_train"}
        if not isinstance(stored, Mapping) or set(stored) != fields:
            msg = f"its perturbations should have the fields {sorted(fields)}"
            raise ValueError(msg)
        texts = [np.asarray(stored[name])[()] for name in ("key", "control", "dose_key")]
        names, observed, low, high, n_train = (
            np.asarray(stored[name]) for name in ("names", "observed", "low", "high", "n_train")
        )
        strings = all(isinstance(text, str) for text in (*texts, *names.tolist(), *observed.tolist()))
        right = strings and names.ndim == observed.ndim == 1 and len(set(names.tolist())) == len(names) > 0
        right = right and low.shape == high.shape == n_train.shape == names.shape and n_train.dtype.kind in "iu"
        right = right and all(part.dtype.kind in "iuf" and bool(np.isfinite(part).all()) for part in (low, high))
        if not (right and texts[0] and bool(((low > 0) & (low <= high) & (n_train >= 0)).all())):
            msg = "its perturbations hold values that no fit has"
            raise ValueError(msg)
        key, control, dose_key = map(str, texts)
        return cls(
            key,
            control,
            tuple(map(str, names)),
            tuple(map(str, observed)),
            dose_key or None,
            tuple(map(float, low)),
            tuple(map(float, high)),
            tuple(map(int, n_train)),
        )


def _numbers(value: Any, n: int) -> list[float] | None:
    """Return ``n`` doses from a number, or from text that joins one for each; None if it is something else."""
    parts = value.split(SEPARATOR) if isinstance(value, str) else [value]
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        return None
    numbers = numbers * n if len(numbers) == 1 else numbers
    right = len(numbers) == n and all(np.isfinite(number) and number >= 0 for number in numbers)
    return numbers if right and not isinstance(value, bool) else None


def components(name: str, control: str, key: str) -> list[str]:
    """Return the perturbations that a condition joins by ``+``, the control among them if it is named in a combination.

    The control itself has none.
    """
    if name == control:
        return []
    parts = [part.strip() for part in name.split(SEPARATOR)]
    if "" in parts or len(set(parts)) < len(parts):
        wrong = "an empty name" if "" in parts else "a perturbation twice"
        msg = (
            f"obs[{key!r}] holds {name!r}, in which {SEPARATOR!r} joins perturbations: it has {wrong}. Rename this condition, for "
            f"example {name.replace(SEPARATOR, 'plus')!r}, or 'A{SEPARATOR}B' for a combination of A and B."
        )
        raise ValueError(msg)
    return parts


def _distinct(column: pd.Series) -> tuple[list[Any], np.ndarray]:
    """Return the different values of a column and the position of each cell's value, -1 if it is missing."""
    code_n, values = pd.factorize(column.astype(object), use_na_sentinel=True)
    return list(values), code_n


def _guess(names: Sequence[str]) -> str:
    """Return the category that is most likely the control."""
    likely = [name for name in names if name.lower() in _CONTROLS]
    likely += [
        name for name in names if any(part in name.lower() for part in ("control", "ctrl", "untreated", "vehicle"))
    ]
    return likely[0] if likely else names[0]


_CONTROLS = ("control", "ctrl", "non-targeting", "nt", "dmso", "vehicle", "untreated", "unperturbed", "none", "wt")
