"""Write into an AnnData: all of a result or none of it, and never over other data.

A call replaces the results of an earlier call of the same kind, which a record in ``uns`` shows, so that a repeated call gives
the same result. Slots with scanpy's names may also be replaced by scanpy's function of that name.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from anndata import AnnData
from scanpy import logging as logg
from scipy import sparse

from vxpress._keys import Keys
from vxpress._signals import interrupts_held
from vxpress.bridge.fits.store_saving import store_large
from vxpress.bridge.fits.upgrade import FORMAT, FORMATS
from vxpress.bridge.read.columns import find_column
from vxpress.bridge.read.joint import joint_of

OF_GENES = "of_genes"
SLOTS = ("obs", "var", "obsm", "obsp", "varm", "layers", "uns")


# slot, name, whether there was a value, and the value
Before: TypeAlias = list[tuple[str, str, bool, Any]]


@dataclass
class Results:
    """Results to write, by slot and name."""

    obs: dict[str, Any] = field(default_factory=dict)
    var: dict[str, Any] = field(default_factory=dict)
    obsm: dict[str, np.ndarray] = field(default_factory=dict)
    obsp: dict[str, Any] = field(default_factory=dict)
    varm: dict[str, np.ndarray] = field(default_factory=dict)
    layers: dict[str, np.ndarray | sparse.csr_matrix] = field(default_factory=dict)
    uns: dict[str, Any] = field(default_factory=dict)
    of_genes: dict[str, Any] = field(default_factory=dict)
    """Entries of ``uns`` about genes; with a MuData they belong to the modality and not to the MuData."""
    of_modalities: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """Layers of the other modalities of a MuData, by modality and name, with a row for every cell of the MuData."""
    stale: list[tuple[str, str]] = field(default_factory=list)
    """Slots and names that an earlier fit under the same name wrote and that are no longer valid."""

    def drop_earlier(self, adata: AnnData, keys: Keys) -> None:
        """Mark the posteriors of an earlier fit of this name as stale, except those that are replaced."""
        self.stale += [("obsm", name) for name in earlier_posteriors(adata, keys) if name not in self.obsm]

    def drop_layers(self, adata: AnnData, keys: Keys, names: Sequence[str]) -> None:
        """Mark layers of an earlier fit of this name as stale, in all modalities of that fit and of this one, if not replaced."""
        self.stale += [("layers", name) for name in names if name not in self.layers]
        joint = joint_of(adata)
        if joint is None:
            return
        earlier = _mapping(adata.uns.get(keys.uns), "params").get("modalities", ())
        for modality in dict.fromkeys((*joint.names, *map(str, earlier))):
            replaced = self.of_modalities.get(modality, {})
            if modality != joint.shown and modality in joint.mdata.mod:
                self.stale += [(layers_of(modality), name) for name in names if name not in replaced]

    def write(self, adata: AnnData) -> None:
        """Assign everything and remove stale results; if an assignment fails, the AnnData is restored.

        If it holds the cells of a MuData, everything is assigned there. Ctrl-C takes effect after everything is assigned or
        restored. Results that are too large for memory are written to the store of the AnnData, if it was opened for writing.
        """
        joint = joint_of(adata)
        target: Any = adata if joint is None else joint
        # looked up anew every time: assigning may replace the object behind a slot
        places: dict[str, Callable[[], Any]] = {slot: partial(getattr, target, slot) for slot in SLOTS}
        places[OF_GENES] = (lambda: adata.uns) if joint is None else (lambda: joint.part.uns)
        values: dict[str, Mapping[str, Any]] = {slot: getattr(self, slot) for slot in places}
        if joint is not None:
            values["layers"] = {name: joint.cut(value) for name, value in self.layers.items()}
            for modality in joint.mdata.mod:
                place = layers_of(modality)
                places[place] = partial(getattr, joint.mdata.mod[modality], "layers")
                layers = self.of_modalities.get(modality, {})
                values[place] = {name: joint.cut(value, modality) for name, value in layers.items()}
        with interrupts_held():
            before = _assign(places, values, self.stale)
        if joint is not None:
            return
        try:
            store_large(adata, [(slot, name) for slot in ("obsm", "layers") for name in getattr(self, slot)])
        except BaseException:
            with interrupts_held():
                _restore(places, before)
            raise

    def describe(self) -> str:
        """Return the lines that scanpy logs at verbosity "hint"."""
        lines = [f"    adata.{slot}[{name!r}]" for slot in SLOTS for name in getattr(self, slot)]
        lines += [f"    adata.uns[{name!r}]" for name in self.of_genes]
        lines += [
            f"    mdata.mod[{one!r}].layers[{name!r}]" for one, found in self.of_modalities.items() for name in found
        ]
        return "added\n" + "\n".join(lines)


def layers_of(modality: str) -> str:
    """Return the slot of the layers of a modality, for stale results."""
    return f"layers of {modality}"


def _assign(
    places: Mapping[str, Callable[[], Any]], values: Mapping[str, Mapping[str, Any]], stale: Sequence[tuple[str, str]]
) -> Before:
    """Assign values to slots by name and remove stale ones, and return what was there; after an error everything is as before."""
    before: Before = []
    try:
        for slot, entries in values.items():
            for name, value in entries.items():
                target = places[slot]()
                had = name in target
                before.append((slot, name, had, target[name] if had else None))
                target[name] = value
        for slot, name in stale:
            target = places[slot]()
            if name in target:
                before.append((slot, name, True, target[name]))
                del target[name]
    except BaseException:
        _restore(places, before)
        raise
    return before


def _restore(slots: Mapping[str, Callable[[], Any]], before: Before) -> None:
    for slot, name, had, value in reversed(before):
        target = slots[slot]()
        if had:
            target[name] = value
        elif name in target:
            del target[name]


def own(adata: AnnData, *, copy: bool) -> AnnData:
    """Return the object to write to: a copy, or ``adata`` itself; a view is turned into an actual AnnData."""
    if copy:
        return adata.copy()
    if adata.is_view:
        warnings.warn("Received a view of an AnnData. Making a copy.", UserWarning, stacklevel=level_of_caller())
        adata._init_as_actual(adata.copy())
    if adata.isbacked:
        read_only = adata.file._filemode == "r"
        logg.warning(
            "The AnnData is backed: results are stored in memory only. Save them with vx.io.write_results(adata"
            f"{', path), because it was opened for reading only' if read_only else ')'}."
        )
    return adata


def level_of_caller() -> int:
    """Return the ``stacklevel`` that makes the warning of a function point to the first line outside this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).split(".")[0] == "vxpress":
        level, frame = level + 1, frame.f_back
    return level


def is_fit(stored: Any) -> bool:
    """Return whether an entry of ``uns`` is a fit."""
    return isinstance(stored, Mapping) and str(stored.get("format", "")).startswith("vxpress-fit-")


def _mapping(stored: Any, *path: str) -> Mapping[str, Any]:
    """Return a part of nested mappings, empty if there is none."""
    for part in path:
        stored = stored.get(part) if isinstance(stored, Mapping) else None
    return stored if isinstance(stored, Mapping) else {}


def check_format(stored: Mapping[str, Any], where: str) -> None:
    """Raise unless this version reads the format of the fit."""
    if str(stored.get("format")) not in FORMATS:
        msg = f"{where} is a fit of format {stored.get('format')!r}; this version reads {FORMAT!r}. Update vxpress, or fit again."
        raise ValueError(msg)


def posterior_names(
    keys: Keys, blocks: Sequence[str] = (), *, several: bool = False, kept: bool = False, perturbed: bool = False
) -> list[str]:
    """Return the entries of ``obsm`` for the posteriors of a fit: of z, of further latent blocks, and of ``several`` models.

    With ``kept`` there are two views of each; with ``perturbed`` z also has the effects of perturbations added.
    """
    found = [keys.perturbed] if perturbed else []
    for view in [keys, keys.kept()] if kept else [keys]:
        found += [view.latent, view.latent_var, *(name for block in blocks for name in view.of_block(block))]
        found += view.of_ensemble() if several else ()
    return found


def earlier_posteriors(adata: AnnData, keys: Keys) -> list[str]:
    """Return the entries of ``obsm`` that belong to the fit of this name in ``adata``; empty if there is none."""
    stored = adata.uns.get(keys.uns)
    if not is_fit(stored):
        return []
    config = _mapping(stored, "params", "model")
    blocks, optional = (np.asarray(config.get(name, ())).reshape(-1) for name in ("blocks", "optional"))
    return posterior_names(
        keys,
        list(map(str, blocks)),
        several=bool(_mapping(stored, "ensemble")),
        kept=optional.size > 0,
        perturbed=bool(config.get("n_perturbations", 0)),
    )


def check_free(
    adata: AnnData,
    keys: Keys,
    blocks: Sequence[str] = (),
    *,
    several: bool = False,
    kept: bool = False,
    perturbed: bool = False,
) -> None:
    """Raise if one of the slots of a fit is taken by something else.

    These include the slots of its further latent blocks, with ``several`` those of several fits side by side, and with
    ``kept`` those of the view that keeps the effects of optional covariates, and with ``perturbed`` those of z with the
    effects of perturbations.
    """
    check_single(adata, keys.split, keys.library)
    other = keys.kept().latent
    if kept and is_fit(adata.uns.get(other)):
        msg = f"adata holds a fit named {other!r}, whose slots those of the fit {keys.uns!r} would replace. Choose another name with key_added=."
        raise ValueError(msg)
    earlier = earlier_posteriors(adata, keys)
    wanted = posterior_names(keys, blocks, several=several, kept=kept, perturbed=perturbed)
    new = [name for name in wanted if name not in earlier]
    taken = [f"obsm[{name!r}]" for name in new if name in adata.obsm]
    if earlier:
        if taken:
            msg = (
                f"adata already holds {', '.join(taken)}, which the fit in uns[{keys.uns!r}] did not write. Delete it first, or choose "
                "another name with key_added=."
            )
            raise ValueError(msg)
        return
    taken = [*([f"uns[{keys.uns!r}]"] if keys.uns in adata.uns else []), *taken]
    taken += [f"layers[{keys.normalized!r}]"] if keys.normalized in adata.layers else []
    joint = joint_of(adata)
    if joint is not None:
        others = [name for name in joint.names if name != joint.shown]
        taken += [
            f"mdata.mod[{name!r}].layers[{keys.normalized!r}]"
            for name in others
            if name in joint.mdata.mod and keys.normalized in joint.mdata.mod[name].layers
        ]
    taken += [f"varm[{keys.loadings!r}]"] if keys.loadings in adata.varm else []
    taken += [f"obs[{name!r}]" for name in (keys.split, keys.library) if name in adata.obs]
    if taken:
        msg = (
            f"adata already holds {', '.join(taken)}, but no fit in uns[{keys.uns!r}] that they belong to. Choose another name "
            "with key_added=, or delete them first. If they remain from ad.concat, which drops uns, concatenate with "
            "ad.concat(..., uns_merge='same')."
        )
        raise ValueError(msg)


def announce_replaced(adata: AnnData, keys: Keys) -> None:
    """Warn that a fit replaces another one."""
    stored = adata.uns.get(keys.uns)
    if not is_fit(stored):
        return
    params = stored.get("params", {})
    batch_key, layer = params.get("batch_key"), params.get("layer")
    of = [f"{name}={value!r}" for name, value in (("batch_key", batch_key), ("layer", layer)) if value is not None]
    n_epochs = len(stored.get("history", {}).get("elbo_train", ()))
    logg.warning(
        f"The earlier fit in adata.uns[{keys.uns!r}] ({', '.join([*map(str, of), f'{n_epochs} epochs'])}) was replaced. Use "
        "key_added= to keep several fits."
    )


def has_params(stored: Mapping[str, Any], *names: str) -> bool:
    """Return whether an entry of ``uns`` is the record of a call with these parameters."""
    params = stored.get("params")
    return isinstance(params, Mapping) and set(names) <= set(params)


def check_single(adata: AnnData, *names: str) -> None:
    """Raise if ``obs`` has several columns with a name that is to be written."""
    for name in names:
        if name in adata.obs.columns:
            find_column(adata.obs, name)


def check_replaceable(
    adata: AnnData,
    record: str,
    *,
    ours: Callable[[Mapping[str, Any]], bool],
    cure: str = "Choose another key_added=, or delete it first.",
    **slots: list[str],
) -> None:
    """Raise if a slot is taken, unless ``uns[record]`` shows that an earlier call of the same kind wrote it."""
    check_single(adata, *slots.get("obs", ()))
    stored = adata.uns.get(record)
    if isinstance(stored, Mapping) and ours(stored):
        return
    taken = [f"{slot}[{name!r}]" for slot, names in slots.items() for name in names if name in getattr(adata, slot)]
    taken += [f"uns[{record!r}]"] if record in adata.uns else []
    if taken:
        msg = f"adata already holds {', '.join(taken)}, which no earlier call wrote. {cure}"
        raise ValueError(msg)
