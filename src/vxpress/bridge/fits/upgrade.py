"""Convert fits stored by earlier releases to the current format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vxpress.bridge.fits.seal import NAME

FORMAT = "vxpress-fit-2"
# format of release 0.1.0, without a checksum
FIRST = "vxpress-fit-1"
FORMATS = (FIRST, FORMAT)


def upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a fit of any supported format with the fields of the current format added.

    An option that was added since is declared so, and read by the codec.
    """
    record = dict(record)
    if str(record.get("format")) != FIRST:
        return record
    if NAME in record:
        msg = f"The stored fit is damaged: it is marked as {FIRST}, a format without checksum, but has one."
        raise ValueError(msg)
    # without covariates, the first format wrote no record, or one that a file lost
    covariates, params = record.get("covariates", {}), record.get("params")
    if isinstance(covariates, Mapping) and isinstance(params, Mapping):
        record["covariates"] = _with_all_fields(covariates, params)
    if isinstance(record.get("history"), Mapping) and record["history"]:
        # an interrupt could leave the last epoch partly recorded
        columns = {name: np.asarray(values) for name, values in record["history"].items()}
        n = min((len(values) for values in columns.values() if values.ndim), default=0)
        record["history"] = {name: values[:n] if values.ndim else values for name, values in columns.items()}
    return record


def _with_all_fields(covariates: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Add the fields of absent covariates, and those that the first format did not record.

    Each category counts as learned, and the range of continuous covariates is infinite.
    """
    none, n = np.array([], dtype=float), len(covariates.get("continuous_keys", ()))
    fields: dict[str, Any] = {"batch_key": "", "labels_key": ""}
    fields |= dict.fromkeys(("categorical_keys", "continuous_keys", "labels_categories"), none)
    fields |= dict.fromkeys(("continuous_mean", "continuous_sd") if n == 0 else (), none)
    fields |= {"continuous_min": np.full(n, -np.inf), "continuous_max": np.full(n, np.inf)}
    for i in range(len(covariates.get("categorical_keys", ()))):
        names = covariates.get(f"categories_{i}", ())
        fields[f"n_train_{i}"] = np.full(len(names), int(params.get("n_train", 0)), dtype=np.int64)
    return fields | dict(covariates)
