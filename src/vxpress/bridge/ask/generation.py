"""Choose condition, covariates and size factor of generated cells, from arguments or from training cells."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg

from vxpress._keys import Keys
from vxpress._names import each_value, find_name, find_names
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import needs_labels
from vxpress.bridge.fits.stored_cells import stored_latent, stored_library
from vxpress.bridge.fits.training_cells import fitted_cells
from vxpress.bridge.read.columns import get_names
from vxpress.bridge.read.perturbations import PerturbationTable
from vxpress.core.inference.support import nearest_partners

Labels: TypeAlias = Hashable | Mapping[str, int] | pd.Series | np.ndarray | Sequence[str]
DEFAULT_CELLS = 1000
# represents a missing value among names
NO_NAME = "\N{SYMBOL FOR NULL}"


@dataclass(frozen=True)
class Columns:
    """The columns of ``obs`` that the decoder needs: categories by name, and numbers.

    Gene panels and the conditions of ``perturbations`` are among the categories; their doses, which may be text, are neither.
    """

    categories: dict[str, tuple[str, ...]]
    numbers: tuple[str, ...]
    perturbations: PerturbationTable | None = None

    @classmethod
    def of(cls, fit: Fit, *, labels: bool = True) -> Columns:
        """Return the columns of a fit; labels only if the dispersion depends on them and ``labels`` is True."""
        table = fit.covariates
        categories = dict(table.categorical)
        if labels and needs_labels(fit) and table.labels is not None:
            categories[table.labels[0]] = table.labels[1]
        if table.panels is not None:
            # of the decoder, because the size factor of a cell counts the genes of its panel
            categories.setdefault(table.panels.key, table.panels.names)
        if table.perturbations is not None:
            categories[table.perturbations.key] = table.perturbations.observed
        return cls(categories, tuple(name for name, _ in table.continuous), table.perturbations)

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, categories first."""
        return (*self.categories, *self.numbers, *self.doses)

    @property
    def doses(self) -> tuple[str, ...]:
        """The column of doses, if there is one."""
        key = None if self.perturbations is None else self.perturbations.dose_key
        return () if key is None else (key,)


def requested_labels(
    labels: Labels, n_obs: int | None, key: str | None, names: tuple[str, ...], hint: str
) -> tuple[int, np.ndarray | None]:
    """Return the number of cells and the code of the label of each cell, None if no labels are given.

    ``key`` and ``names`` are the condition of the prior; ``hint`` is the advice if it has none.
    """
    if labels is None:
        return DEFAULT_CELLS if n_obs is None else n_obs, None
    if key is None:
        msg = f"labels= was given, but the prior of this fit does not use labels. {hint}"
        raise ValueError(msg)
    wanted = _each_label(labels, n_obs, names)
    place = {name: i for i, name in enumerate(names)}
    code_n = np.array([place.get(name or "", -1) for name in find_names(wanted, names)], dtype=np.int64)
    if (code_n < 0).any():
        unknown = list(dict.fromkeys(wanted[int(i)] for i in np.flatnonzero(code_n < 0)))[:5]
        msg = f"labels= names {unknown}, which the prior has not seen in obs[{key!r}]; it knows {list(names)}."
        raise ValueError(msg)
    return len(code_n), code_n


def _each_label(labels: Labels, n_obs: int | None, names: tuple[str, ...]) -> list[Any]:
    """Return the label of every cell, as given."""
    if isinstance(labels, pd.Series) and pd.api.types.is_numeric_dtype(labels.dtype):
        # a numeric column may hold labels too; it holds numbers of cells if its index holds labels
        index = each_value(labels.index)
        if any(find_name(name, names) is not None for name in index):
            labels = dict(zip(index, labels, strict=True))
    if isinstance(labels, Mapping):
        counts = list(labels.values())
        if not all(_is_whole(n) for n in counts):
            msg = f"labels={dict(labels)!r} should give a whole number of cells for each label."
            raise ValueError(msg)
        wanted = [name for name, n in zip(labels, counts, strict=True) for _ in range(int(n))]
    elif isinstance(labels, (set, frozenset)):
        msg = f"labels={labels!r} has no order and no numbers of cells. Pass a list with one label per cell, or a mapping from labels to numbers of cells."
        raise TypeError(msg)
    elif isinstance(labels, (pd.Series, pd.Index, pd.api.extensions.ExtensionArray, np.ndarray, list, tuple)):
        wanted = each_value(labels)
        if np.ndim(labels) == 0:
            return wanted * (DEFAULT_CELLS if n_obs is None else n_obs)
    else:
        return [labels] * (DEFAULT_CELLS if n_obs is None else n_obs)
    if n_obs is not None and len(wanted) != n_obs:
        msg = f"labels= is for {len(wanted)} cells, but n_obs={n_obs}. Omit n_obs=, or pass one label per cell."
        raise ValueError(msg)
    if not len(wanted):
        msg = "labels= requests no cells; at least one is expected."
        raise ValueError(msg)
    return wanted


def _is_whole(n: object) -> bool:
    if isinstance(n, bool) or not isinstance(n, (int, float, np.integer, np.floating)):
        return False
    return bool(n >= 0 and n % 1 == 0)


def requested_covariates(covariates: Mapping[str, Any] | None, columns: Columns, n: int) -> dict[str, np.ndarray]:
    """Check the given columns; each is returned with length ``n``."""
    if covariates is not None and not isinstance(covariates, Mapping):
        msg = f"covariates={covariates!r} should map columns to values, for example {{'batch': 'a'}}."
        raise TypeError(msg)
    given: dict[str, np.ndarray] = {}
    for key, value in (covariates or {}).items():
        if key not in columns.names:
            msg = (
                f"covariates= names {key!r}, which is not a covariate of the fit (it has {list(columns.names) or 'none'}). "
                "Fit with batch_key=, categorical_covariate_keys= or continuous_covariate_keys=."
            )
            raise KeyError(msg)
        if np.ndim(value) > 1 or (np.ndim(value) == 1 and len(value) != n):
            msg = f"covariates[{key!r}] has shape {np.shape(value)}; one value, or {n}, one per new cell, is expected."
            raise ValueError(msg)
        if columns.perturbations is not None and key in (columns.perturbations.key, *columns.doses):
            values = each_value(value)
            given[key] = np.array(values * (n // len(values)), dtype=object)
            continue
        given[key] = (
            _numbers(key, value, n) if key in columns.numbers else _known(key, value, n, columns.categories[key])
        )
    if columns.perturbations is not None:
        _check_conditions(given, columns.perturbations)
    return given


def _check_conditions(given: dict[str, np.ndarray], table: PerturbationTable) -> None:
    """Check given conditions, which may be combinations that were never observed; without doses they have the highest ones."""
    if table.key not in given:
        return
    found = {value: str(value) for value in dict.fromkeys(given[table.key].tolist())}
    for value in found:
        table.condition(value, f"covariates[{table.key!r}]")
    given[table.key] = np.array([found[value] for value in given[table.key].tolist()], dtype=object)
    if table.dose_key is not None and table.dose_key not in given:
        given[table.dose_key] = np.array([table.doses_of(name) for name in given[table.key]], dtype=object)


def _numbers(key: str, value: Any, n: int) -> np.ndarray:
    values = np.asarray(value)
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        msg = f"covariates[{key!r}] should be finite numbers in the units of the column; found {values.reshape(-1)[:3].tolist()}."
        raise ValueError(msg)
    return np.broadcast_to(values.astype(np.float64), n)


def _known(key: str, value: Any, n: int, names: tuple[str, ...]) -> np.ndarray:
    # not through an array, which would turn numbers among text into text
    values = each_value(value)
    if len(values) not in (1, n):
        msg = f"covariates[{key!r}]={value!r} holds {len(values)} values; one value, or {n}, one per new cell, is expected."
        raise ValueError(msg)
    found = find_names(values, names)
    unknown = list(dict.fromkeys(str(one) for one, name in zip(values, found, strict=True) if name is None))
    if unknown:
        msg = f"covariates[{key!r}] holds {unknown[:5]}, which the fit has not seen; it knows {list(names)}."
        raise ValueError(msg)
    return np.array(found * (n // len(found)), dtype=object)


def requested_library(library: Any, n: int) -> np.ndarray | None:
    """Check the given size factors; float64 (n,), or None."""
    if library is None:
        return None
    values = np.asarray(library)
    if values.dtype.kind not in "iuf" or values.ndim > 1 or (values.ndim == 1 and len(values) != n):
        msg = f"library= should be a number, or {n} of them, one per new cell; found {library!r}."
        raise ValueError(msg)
    if not (np.isfinite(values).all() and (values > 0).all()):
        msg = "library= holds values that are not size factors; numbers above 0 are expected."
        raise ValueError(msg)
    return np.broadcast_to(values.astype(np.float64), n)


@dataclass(frozen=True)
class TrainingCells:
    """The cells from which new cells take their size factor and covariates."""

    obs: pd.DataFrame
    library_n: np.ndarray
    mean_nd: np.ndarray

    @classmethod
    def find(cls, adata: AnnData, fit: Fit, keys: Keys, needed: list[str]) -> TrainingCells:
        """Return the cells of ``adata`` that the fit was trained on, or all if that is unknown.

        ``needed`` names in messages what they are used for.
        """
        if adata.n_obs == 0:
            msg = (
                f"adata has no cells to take {' and '.join(needed)} from. Pass values: vx.tl.generate(model, "
                f"{', '.join(_CURES[name] for name in needed)}), or pass the AnnData that was fitted."
            )
            raise ValueError(msg)
        rows = fitted_cells(adata, fit, keys)
        rows = rows if rows.any() else np.ones(adata.n_obs, dtype=bool)
        mean_nd, _ = stored_latent(adata, fit, keys)
        return cls(adata.obs[rows], stored_library(adata, keys)[rows], mean_nd[rows])

    def partners(
        self,
        z_nd: np.ndarray,
        match: dict[str, np.ndarray],
        known: Mapping[str, tuple[str, ...]],
        n_neighbors: int | None,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Choose a cell for every new cell: one of the ``n_neighbors`` nearest to its z with the same values of ``match``."""
        names = {key: pd.Index(get_column_names(self.obs, key, known[key])) for key in match}
        wanted = pd.DataFrame(match, index=np.arange(len(z_nd)))
        out = np.empty(len(z_nd), dtype=np.int64)
        groups = wanted.groupby(list(match), sort=True).indices.items() if match else [((), np.arange(len(z_nd)))]
        for group, rows in groups:
            values = group if isinstance(group, tuple) else (group,)
            candidates = np.ones(len(self.obs), dtype=bool)
            for key, value in zip(match, values, strict=True):
                candidates &= np.asarray(names[key] == value)
            if not candidates.any():
                what = ", ".join(f"{key} = {value}" for key, value in zip(match, values, strict=True))
                logg.warning(
                    f"No cell of adata has {what}: the {len(rows)} new cell(s) with these values take the size factor and the "
                    "covariates that were not given from any nearby cell."
                )
                candidates[:] = True
            at = np.flatnonzero(candidates)
            out[rows] = at[nearest_partners(z_nd[rows], self.mean_nd[at], n_neighbors, rng)]
        return out


_CURES = {"library": "library=2000", "covariates": "covariates={...}"}


def get_column_names(obs: pd.DataFrame, key: str, known: tuple[str, ...] = ()) -> np.ndarray:
    """Return a column of ``obs`` as names of categories, as spelled in ``known`` if equal; missing values are ``NO_NAME``."""
    found = get_names(obs, key, gaps=True)
    names = [known[i] if i >= 0 else name for name, i in zip(found.names, found.among(known), strict=True)]
    return np.array([*names, NO_NAME], dtype=object)[found.code_n]
