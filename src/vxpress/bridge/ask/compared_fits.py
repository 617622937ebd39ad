"""Find the fits to compare: where they are stored, their names, and which of the cells in adata they were trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from os.path import commonprefix
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem

from vxpress._keys import Keys
from vxpress._mudata import MuData, is_mudata
from vxpress.bridge.fits.find_fit import find_fit
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.open_files import SUFFIX, fits_of_file, read_store
from vxpress.bridge.fits.results import is_fit
from vxpress.bridge.fits.stored_cells import stored_split

Place: TypeAlias = AnnData | MuData | str | Path
Entry: TypeAlias = Place | tuple[Place, str]
Models: TypeAlias = Sequence[Entry] | Mapping[str, Entry] | None

# fields of the record of a fit that are not settings: seeds, and results
SEEDS = ("rng", "split_rng")
# cells are treated as renamed if more than this share of the unknown names are known ones with a prefix or suffix
RENAMED = 0.1
OUTCOMES = ("version", "device", "stopped", "best_epoch", "n_steps", "n_voided", "dispersion_gain")


@dataclass(frozen=True)
class Candidate:
    """A fit, its name, and two boolean arrays (n,): the cells it was trained on, and those it was not. Neither if unknown."""

    name: str
    fit: Fit
    trained_n: np.ndarray
    held_out_n: np.ndarray

    @property
    def silent(self) -> bool:
        """Whether it is unknown which cells the fit was trained on."""
        return not (self.trained_n.any() or self.held_out_n.any())


def find_candidates(adata: AnnData, models: Models) -> list[Candidate]:
    """Return the fits that ``models`` names; all fits in ``adata`` if it is None."""
    if models is None:
        models = [str(name) for name, stored in adata.uns.items() if is_fit(stored)]
    if isinstance(models, (str, Path, AnnData)) or not isinstance(models, (Mapping, Iterable)):
        msg = f"models= takes a list of fits, or a mapping from names to fits; found {type(models).__name__}. Put the fits into a list."
        raise TypeError(msg)
    named = isinstance(models, Mapping)
    entries = list(models.items()) if isinstance(models, Mapping) else [(None, entry) for entry in models]
    if len(entries) < 2:
        msg = (
            f"{len(entries)} fit(s) found; a comparison needs two or more. Add another fit, for example "
            "vx.tl.fit_vae(adata, n_latent=20, key_added='vae20'), or name fits stored elsewhere with models=."
        )
        raise ValueError(msg)
    found = [_candidate(adata, name, entry) for name, entry in entries]
    names = [candidate.name for candidate in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice and not named:
        msg = f"Several fits are called {twice}. Name them: models={{'a': ..., 'b': ...}}."
        raise ValueError(msg)
    return found


def _candidate(adata: AnnData, name: object, entry: object) -> Candidate:
    place, key = _resolve(adata, entry)
    if not isinstance(place, Path):
        fit, default = find_fit(adata, None if place is adata else place, key), key
    else:
        fit, default = find_fit(adata, place, key), f"{place.stem} {key}" if isinstance(entry, tuple) else place.stem
    return Candidate(default if name is None else str(name), fit, *_seen(adata, place, fit, Keys.of(key)))


def _resolve(adata: AnnData, entry: object) -> tuple[AnnData | MuData | Path, str]:
    """Return the place of a fit and its name."""
    key = None
    if isinstance(entry, tuple):
        if len(entry) != 2 or not isinstance(entry[1], str):
            msg = f"models= holds the tuple {entry!r}; a pair (AnnData or file, name of the fit) is expected."
            raise TypeError(msg)
        entry, key = entry
    if (
        isinstance(entry, str)
        and key is None
        and is_fit(adata.uns.get(Keys.of(entry).uns if "/" not in entry else entry))
    ):
        return adata, entry
    if isinstance(entry, (str, Path)):
        path = Path(entry)
        if not path.exists():
            known = [str(name) for name, stored in adata.uns.items() if is_fit(stored)]
            msg = f"{str(entry)!r} is neither a fit in adata.uns (fits found: {known or 'none'}) nor an existing file."
            raise KeyError(msg)
        return path, _only(fits_of_file(path), str(path)) if key is None else key
    if isinstance(entry, AnnData) or is_mudata(entry):
        fits = [str(name) for name, stored in entry.uns.items() if is_fit(stored)]
        return entry, _only(fits, "An AnnData of models=") if key is None else key
    msg = f"models= takes names of fits in adata, AnnDatas, MuDatas, files, and pairs (AnnData or file, name of the fit); found {type(entry).__name__}."
    raise TypeError(msg)


def _only(fits: list[str], where: str) -> str:
    if len(fits) == 1:
        return fits[0]
    msg = f"{where} holds {len(fits)} fits ({fits}); one is expected." + (
        f" Choose one with a pair (AnnData or file, name of the fit): (..., {fits[0]!r})."
        if fits
        else " Run vx.tl.fit_vae first."
    )
    raise ValueError(msg) if fits else KeyError(msg)


def _seen(adata: AnnData, place: AnnData | MuData | Path, fit: Fit, keys: Keys) -> tuple[np.ndarray, np.ndarray]:
    """Return which cells of ``adata`` the fit was trained on and which it was not, each boolean (n,); False if unknown."""
    nothing = np.zeros(adata.n_obs, dtype=bool)
    if not isinstance(place, Path) and place is adata:
        split_n = stored_split(adata, keys)
        if split_n is None:
            return nothing, nothing
        return split_n == "train", np.isin(split_n.astype(str), ("validation", "query"))
    split = _split_of(place, keys)
    if split is None:
        return nothing, nothing
    for index, where in ((adata.obs_names, "adata.obs_names"), (split.index, "obs_names of a fit in models=")):
        if not index.is_unique:
            msg = f"{where} are not unique, so a name does not identify one cell. Before fitting, run adata.obs_names_make_unique()."
            raise ValueError(msg)
    # if all training cells are listed, a cell with another name is not one of them, unless cells were renamed
    complete = 0 < fit.params.n_train == int((split == "train").sum()) and not _renamed(adata.obs_names, split.index)
    split_n = split.reindex(adata.obs_names).to_numpy(dtype=object)
    known_n = adata.obs_names.isin(split.index)
    held_out_n = np.isin(split_n.astype(str), ("validation", "query"))
    return split_n == "train", np.where(known_n, held_out_n, complete)


def _renamed(names: pd.Index, known: pd.Index) -> bool:
    """Return whether names look like known ones with a prefix or suffix, as concatenation adds them.

    More than a tenth of the unknown names must do so, because cells of other samples occasionally share barcodes.
    """
    bare = names[~names.isin(known)].astype(str)
    if not len(bare):
        return False
    alike = np.zeros(len(bare), dtype=bool)
    for mark in ("-", "_", ":", "#"):
        alike |= bare.str.rsplit(mark, n=1).str[0].isin(known) & bare.str.contains(mark, regex=False)
        alike |= bare.str.split(mark, n=1).str[-1].isin(known)
    return bool(alike.mean() > RENAMED)


def _split_of(place: AnnData | MuData | Path, keys: Keys) -> pd.Series | None:
    """Read the split (train, validation or query) by name of the cell; None if the place does not hold it."""
    if not isinstance(place, Path):
        split_n = stored_split(place, keys)
        return None if split_n is None else pd.Series(split_n, index=place.obs_names)
    if place.suffix == SUFFIX:
        return None

    def read(group: Any) -> pd.Series | None:
        obs = group["obs"]
        if keys.split not in obs:
            return None
        names = np.asarray(read_elem(obs[obs.attrs["_index"]]), dtype=object).astype(str)
        return pd.Series(np.asarray(read_elem(obs[keys.split]), dtype=object), index=names)

    return read_store(place, read)


def groups(candidates: Sequence[Candidate]) -> dict[str, list[int]]:
    """Group fits that differ only in their seeds.

    Returns the positions of the fits of each group, by the shared part of their names.
    """
    models: dict[str, list[int]] = {}
    seeds: dict[str, set[tuple[int | None, int | None]]] = {}
    for i, candidate in enumerate(candidates):
        params = candidate.fit.params
        settings, seed = _settings(candidate.fit), (params.rng, params.split_rng)
        # a repeated seed is not another sample of seeds: the cells differ, or it is the same fit
        if params.rng is None or seed in seeds.get(settings, set()):
            settings += f" {i}"
        models.setdefault(settings, []).append(i)
        seeds.setdefault(settings, set()).add(seed)
    named: dict[str, list[int]] = {}
    for members in models.values():
        first = candidates[members[0]].name
        shared = commonprefix([candidates[i].name for i in members])  # noqa: RUF071 - of names, not of paths
        common = shared.rstrip("0123456789").rstrip("_-. ") if len(members) > 1 else first
        taken = common in named or common in {c.name for i, c in enumerate(candidates) if i not in members}
        named[first if taken or not common else common] = members
    return named


def _settings(fit: Fit) -> str:
    """Return all settings of a fit as text, without seeds and results."""
    settings = {f.name: getattr(fit.params, f.name) for f in fields(fit.params) if f.name not in SEEDS + OUTCOMES}
    # a prior learned after the fit, or with a condition, differs from the same kind of prior learned during the fit
    prior = fit.prior
    how = sorted(set(prior) - {"refused"}), prior.get("condition_key")
    return repr((settings, how))
