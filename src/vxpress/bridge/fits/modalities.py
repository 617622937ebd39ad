"""Let a public function take a MuData: it then works on one modality, or on a joint fit of several."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar, cast

import numpy as np
from anndata import AnnData

from vxpress._keys import LIBRARY_SIZE, Keys
from vxpress._mudata import MuData, is_mudata
from vxpress.bridge.fits.find_fit import Model, find_fit
from vxpress.bridge.fits.results import is_fit, level_of_caller
from vxpress.bridge.read.joint import as_anndata
from vxpress.bridge.read.modalities import check_mudata, modality_of, requested_modalities

P = ParamSpec("P")
R = TypeVar("R")

# what a function does with a joint fit: makes one, uses the cells with their RNA, uses any modality, or the cells to impute any
Joint = Literal["makes", "cells", "features", "imputes"]


def takes_mudata(joint: Joint | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function of an AnnData also take a MuData and the name of a modality; it has both arguments in its signature.

    The function itself only ever receives an AnnData, and ``modality=None``. With ``joint`` it also works on fits of several
    modalities, for whose cells it receives an AnnData of :func:`as_anndata`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def with_modalities(*args: P.args, **kwargs: P.kwargs) -> R:
            data: object = args[0] if args else kwargs.get("adata")
            if is_mudata(data):
                arguments = _bound(function, *args, **kwargs)
                return cast("R", _Call.of(function, joint, data, arguments).run())
            for name in ("modality", "modalities"):
                if joint != "imputes" and isinstance(data, AnnData) and kwargs.get(name) is not None:
                    msg = f"{name}={kwargs[name]!r} names modalities of a MuData, but an AnnData was given, which has none. Leave it out."
                    raise ValueError(msg)
            return function(*args, **kwargs)

        return with_modalities

    return decorate


def _bound(function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return arguments by name, those that a function takes as ``**kwargs`` too."""
    signature = inspect.signature(function)
    try:
        found = dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        msg = f"{function.__name__}() {error}"
        raise TypeError(msg) from error
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
    return found


@dataclass(frozen=True)
class _Call:
    """A call of a function for a MuData; ``given`` are its arguments except the MuData, ``modality`` and ``copy``."""

    function: Callable[..., Any]
    joint: Joint | None
    mdata: MuData
    modality: str | None
    copy: bool
    given: dict[str, Any]

    @classmethod
    def of(
        cls, function: Callable[..., Any], joint: Joint | None, mdata: MuData, arguments: Mapping[str, Any]
    ) -> _Call:
        """Check the MuData and the name of the modality."""
        check_mudata(mdata)
        given = {name: value for name, value in arguments.items() if name not in ("adata", "modality", "copy")}
        modality = arguments.get("modality")
        if modality is not None and joint != "imputes":
            modality_of(mdata, modality)
        return cls(function, joint, mdata, modality, bool(arguments.get("copy")), given)

    def run(self) -> Any:
        """Call the function for one modality, or for all of a joint fit."""
        if self.joint == "makes" and self.modality is None:
            return self._fit()
        fit = self._joint_fit()
        if fit is not None:
            return self._use(*fit)
        if self.joint == "imputes":
            msg = (
                "The MuData holds no fit of several modalities, from which one could be imputed. Fit them together, "
                "vx.tl.fit_vae(mdata), or name what holds the fit with model= and key=."
            )
            raise KeyError(msg)
        modality = self._only_holder() if self.modality is None else self.modality
        if modality is None:
            example = next(iter(self.mdata.mod))
            msg = f"Name the modality of the MuData to use: modality={example!r} (found: {list(self.mdata.mod)})."
            raise ValueError(msg)
        if self.given.get("modalities") is not None:
            msg = f"modality={self.modality!r} fits one modality, and modalities= fits several together. Leave one of the two out."
            raise ValueError(msg)
        self._check_no_joint_fit()
        target = self._target()
        found = _of_one(self.function, target, modality, self.given)
        return target if self.copy else found

    def _only_holder(self) -> str | None:
        """Return the only modality that holds what ``key`` names; None if there is none, or more than one."""
        parameters = inspect.signature(self.function).parameters
        if "key" not in parameters or self.given.get("model") is not None:
            return None
        name = Keys.of(self.given.get("key", parameters["key"].default)).uns
        found = [modality for modality, part in self.mdata.mod.items() if name in part.uns]
        return found[0] if len(found) == 1 else None

    def _check_no_joint_fit(self) -> None:
        """Raise if a fit of one modality has the name of a joint fit, whose layer it would replace."""
        if self.joint != "makes":
            return
        name = Keys.of(self.given.get("key_added"), "key_added").uns
        stored: Any = self.mdata.uns.get(name)
        if is_fit(stored) and "features" in stored:
            msg = (
                f"mdata.uns[{name!r}] holds a fit of several modalities, whose layers a fit of one modality of this name would "
                "replace. Choose another name with key_added=."
            )
            raise ValueError(msg)

    def _check_no_fit_of_one(self, name: str, chosen: tuple[str, ...]) -> None:
        """Raise if a joint fit has the name of a fit of one modality, whose layer it would replace."""
        taken = [modality for modality in chosen if is_fit(modality_of(self.mdata, modality).uns.get(name))]
        if taken:
            msg = (
                f"mdata.mod[{taken[0]!r}].uns[{name!r}] holds a fit of this modality alone, whose layer a joint fit of this name would "
                f"replace. Choose another name with key_added=, or delete the fit: del mdata.mod[{taken[0]!r}].uns[{name!r}]."
            )
            raise ValueError(msg)

    def _target(self) -> MuData:
        """Return the MuData to write to."""
        writes = "copy" in inspect.signature(self.function).parameters
        return own_mudata(self.mdata, copy=self.copy) if writes else self.mdata

    def _fit(self) -> Any:
        """Fit several modalities together."""
        chosen = requested_modalities(self.mdata, self.given.get("modalities"))
        first = next(iter(chosen))
        given = self.given | {"modalities": chosen}
        if given.get("likelihood") is None:
            given["likelihood"] = chosen[first]
        elif given["likelihood"] != chosen[first] and isinstance(self.given.get("modalities"), Mapping):
            msg = f"likelihood={given['likelihood']!r} and modalities={{{first!r}: {chosen[first]!r}}} contradict each other. Leave likelihood= out."
            raise ValueError(msg)
        name = given.get("key_added")
        if isinstance(name, str) and name in self.mdata.mod:
            msg = f"key_added={name!r} is the name of a modality, whose mask is mdata.obsm[{name!r}]. Choose another."
            raise ValueError(msg)
        self._check_no_fit_of_one(Keys.of(name, "key_added").uns, tuple(chosen))
        target = self._target()
        found = self.function(
            as_anndata(target, tuple(chosen), first, library=str(given.get("library", LIBRARY_SIZE))), **given
        )
        return target if self.copy else found

    def _joint_fit(self) -> tuple[tuple[str, ...], np.ndarray, str] | None:
        """Return the modalities of the joint fit that the call is about, the genes of its RNA and their size factor.

        None if it is not joint.
        """
        parameters = inspect.signature(self.function).parameters
        if "key" not in parameters:
            return None if self.joint is None or self.modality is not None else self._any_joint_fit()
        key, model = self.given.get("key", parameters["key"].default), self.given.get("model")
        where: Any = self.mdata if model is None else model
        if hasattr(where, "uns"):
            stored = where.uns.get(Keys.of(key).uns)
            if not is_fit(stored) or "features" not in stored:
                return None
            names, genes, library = _described(stored)
        else:
            fit = find_fit(cast("AnnData", self.mdata), cast("Model", model), key)
            if not fit.features:
                return None
            names, genes, library = fit.params.modalities, fit.genes, fit.params.library
        own = (
            None
            if self.modality not in self.mdata.mod
            else modality_of(self.mdata, self.modality).uns.get(Keys.of(key).uns)
        )
        if model is None and is_fit(own):
            msg = (
                f"Both mdata.uns[{Keys.of(key).uns!r}] and mdata.mod[{self.modality!r}].uns[{Keys.of(key).uns!r}] hold a fit. Pass "
                f"mdata.mod[{self.modality!r}] for the latter, or delete one of them."
            )
            raise ValueError(msg)
        return tuple(str(name) for name in names), np.asarray(genes), str(library)

    def _any_joint_fit(self) -> tuple[tuple[str, ...], np.ndarray, str] | None:
        """Return the same of the first joint fit of the MuData, for functions of several fits or of none."""
        models = self.given.get("models")
        entries = models.values() if isinstance(models, Mapping) else models
        wanted = self.mdata.uns if entries is None else [name for name in entries if isinstance(name, str)]
        found: list[Any] = [self.mdata.uns.get(name) for name in wanted]
        return next((_described(stored) for stored in found if is_fit(stored) and "features" in stored), None)

    def _use(self, names: tuple[str, ...], genes: np.ndarray, library: str) -> Any:
        """Call the function for the cells of a joint fit."""
        name = self.function.__name__
        if self.joint is None:
            msg = f"The fit is one of several modalities ({list(names)}), and {name} works on fits of one. Fit one: vx.tl.fit_vae(mdata, modality={names[0]!r}, key_added='alone')."
            raise ValueError(msg)
        given, shown = self.given, names[0] if self.modality is None else self.modality
        if self.joint == "imputes":
            given, shown = given | {"modality": self.modality}, names[0]
        if shown not in names or (self.joint == "cells" and shown != names[0]):
            known = list(names) if self.joint == "features" else [names[0]]
            msg = f"modality={shown!r} was given; for this fit of {list(names)}, {name} takes one of {known}."
            raise ValueError(msg)
        if given.get("model") is self.mdata:
            # as for an AnnData that is passed twice
            given = given | {"model": None}
        target = self._target()
        cells = as_anndata(target, names, shown, genes, library)
        other = given.get("calibration")
        if is_mudata(other):
            same = other is self.mdata
            given = given | {"calibration": cells if same else as_anndata(other, names, shown, genes, library)}
        found = self.function(cells, **given)
        # those that a figure chose
        colours = {entry: value for entry, value in cells.uns.items() if entry.endswith("_colors")}
        target.uns.update({entry: value for entry, value in colours.items() if entry not in target.uns})
        return target if self.copy else found


def _described(stored: Mapping[str, Any]) -> tuple[tuple[str, ...], np.ndarray, str]:
    """Return the modalities of a stored joint fit, the genes of its RNA and their size factor."""
    params = stored["params"]
    return tuple(map(str, params["modalities"])), np.asarray(stored["genes"]["names"]), str(params["library"])


def own_mudata(mdata: MuData, *, copy: bool) -> MuData:
    """Return the object to write to: a copy, or ``mdata`` itself; a view is turned into an actual MuData."""
    if copy:
        return mdata.copy()
    if mdata.is_view:
        warnings.warn("Received a view of a MuData. Making a copy.", UserWarning, stacklevel=level_of_caller())
        cast("Any", mdata)._init_as_actual(mdata.copy())
    return mdata


def _of_one(function: Callable[..., Any], mdata: MuData, modality: str, given: dict[str, Any]) -> Any:
    """Call a function for one modality, as if it was passed alone."""
    part = modality_of(mdata, modality)
    given = {name: modality_of(value, modality) if is_mudata(value) else value for name, value in given.items()}
    n_vars = part.n_vars
    try:
        found = function(part, **given)
    except KeyError as error:
        elsewhere = [name for name in _strings(given.values()) if name in mdata.obs and name not in part.obs]
        if elsewhere and any(repr(name) in str(error) for name in elsewhere):
            msg = (
                f"{error.args[0]} mdata.obs holds {elsewhere[0]!r}: mdata.push_obs([{elsewhere[0]!r}], mods=[{modality!r}]) copies it "
                "to the modality."
            )
            raise KeyError(msg) from error
        raise
    if part.n_vars != n_vars:
        cast("Any", mdata).update()
    return found


def _strings(values: Iterable[Any]) -> list[str]:
    """Return the strings among values, and in lists of them."""
    found: list[str] = []
    for value in values:
        found += [value] if isinstance(value, str) else []
        found += [item for item in value if isinstance(item, str)] if isinstance(value, (list, tuple)) else []
    return found
