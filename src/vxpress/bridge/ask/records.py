"""The record that a question leaves in ``uns``: it shows that a later call of the same kind may replace its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anndata import AnnData

from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.results import check_replaceable


def check_own(adata: AnnData, record: str, **slots: list[str]) -> None:
    """Raise if a slot is taken, unless ``uns[record]`` shows that an earlier call of the same kind wrote it."""

    def ours(stored: Mapping[str, Any]) -> bool:
        # entries that params_of always writes; scanpy's own records have params too
        params = stored.get("params")
        return isinstance(params, Mapping) and {"key", "likelihood"} <= set(params) and "format" not in stored

    check_replaceable(adata, record, ours=ours, **slots)  # type: ignore[arg-type]  # of lists


def params_of(fit: Fit, key: str, **settings: Any) -> dict[str, Any]:
    """Return the record of a call for ``uns``, without entries that are None."""
    record = {"key": key, "likelihood": fit.params.model.likelihood, **settings}
    return {name: value for name, value in record.items() if value is not None}
