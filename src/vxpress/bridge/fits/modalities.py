"""Let a public function take a MuData: it then works on one modality, or on a joint fit of several."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

from anndata import AnnData

from vxpress._mudata import MuData, is_mudata
from vxpress.bridge.fits.results import level_of_caller
from vxpress.bridge.read.modalities import check_mudata, modality_of

P = ParamSpec("P")
R = TypeVar("R")


def takes_mudata(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function of an AnnData also take a MuData and the name of a modality; it has both arguments in its signature.

    The function itself only ever receives an AnnData, and ``modality=None``.
    """

    @functools.wraps(function)
    def with_modalities(*args: P.args, **kwargs: P.kwargs) -> R:
        data: object = args[0] if args else kwargs.get("adata")
        if is_mudata(data):
            arguments = inspect.signature(function).bind(*args, **kwargs).arguments
            return cast("R", _call(function, data, arguments))
        if isinstance(data, AnnData) and kwargs.get("modality") is not None:
            msg = f"modality={kwargs['modality']!r} names a modality of a MuData, but an AnnData was given, which has none. Leave it out."
            raise ValueError(msg)
        return function(*args, **kwargs)

    return with_modalities


def _call(function: Callable[..., Any], mdata: MuData, arguments: Mapping[str, Any]) -> Any:
    """Call a function for a MuData."""
    check_mudata(mdata)
    given = {name: value for name, value in arguments.items() if name not in ("adata", "modality", "copy")}
    modality = arguments.get("modality")
    if modality is None:
        example = next(iter(mdata.mod))
        msg = f"Name the modality of the MuData to use: modality={example!r} (found: {list(mdata.mod)})."
        raise ValueError(msg)
    modality_of(mdata, modality)
    target = own_mudata(mdata, copy=bool(arguments.get("copy"))) if _writes(function) else mdata
    found = _of_one(function, target, modality, given)
    return target if arguments.get("copy") else found


def _writes(function: Callable[..., Any]) -> bool:
    return "copy" in inspect.signature(function).parameters


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
