"""Fits that earlier releases stored, as the present one stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vxpress.bridge.seal import NAME

FORMAT = "vxpress-fit-2"
# of release 0.1.0, without a checksum
FIRST = "vxpress-fit-1"
FORMATS = (FIRST, FORMAT)
# settings that came after a format, as part/name, with the value that a fit from before them has
LATER: dict[str, Any] = {}


def upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a fit of any format that is read, with what the present one has and it has not."""
    record = dict(record)
    for path, value in LATER.items():
        *parts, name = path.split("/")
        _set_default(record, parts, name, value)
    if str(record.get("format")) != FIRST:
        return record
    if NAME in record:
        msg = f"The stored fit is damaged: it is marked as {FIRST}, which has no checksum, and has one."
        raise ValueError(msg)
    covariates, params = record.get("covariates"), record.get("params")
    if isinstance(covariates, Mapping) and isinstance(params, Mapping):
        record["covariates"] = _with_cell_numbers(covariates, params)
    if isinstance(record.get("history"), Mapping) and record["history"]:
        # an interrupt could leave the last epoch half recorded
        columns = {name: np.asarray(values) for name, values in record["history"].items()}
        n = min((len(values) for values in columns.values() if values.ndim), default=0)
        record["history"] = {name: values[:n] if values.ndim else values for name, values in columns.items()}
    return record


def _with_cell_numbers(covariates: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """With the numbers of training cells of the categories, which are not on record: each counts as well learned."""
    numbers = {}
    for i in range(len(covariates.get("categorical_keys", ()))):
        names = covariates.get(f"categories_{i}", ())
        numbers[f"n_train_{i}"] = np.full(len(names), int(params.get("n_train", 0)), dtype=np.int64)
    return numbers | dict(covariates)


def _set_default(record: dict[str, Any], parts: list[str], name: str, value: Any) -> None:
    """Set a leaf that is missing, in copies of the mappings on the way to it."""
    at = record
    for part in parts:
        if not isinstance(at.get(part), Mapping):
            return  # what is wrong there is said where the part is read
        at[part] = dict(at[part])
        at = at[part]
    at.setdefault(name, value)
