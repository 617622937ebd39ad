"""What is remembered of stores that were opened."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from vxpress.bridge.read import opened


def test_deleting_what_was_opened_runs_no_code_in_which_an_interrupt_would_be_lost() -> None:
    matrix = type("Matrix", (), {"name": "vxpress-test", "dask": None})()
    parts, adata = opened.Parts([]), ad.AnnData(np.ones((2, 2), dtype=np.float32))
    store = opened.Store(Path("cells.zarr"), "r", "zarr")
    opened.register(matrix.name, parts)
    opened.remember(adata, store)
    assert opened.store_of(matrix) is parts
    assert opened.opened_from(adata) is store
    gc.collect()
    called: list[str] = []

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        del parts, adata
    finally:
        sys.setprofile(before)
    assert called == []
    assert opened.store_of(matrix) is None


def test_entries_of_what_was_deleted_are_removed_by_the_next() -> None:
    for i in range(3):
        opened.register(f"vxpress-{i}", opened.Parts([]))
        adata = ad.AnnData(np.ones((2, 2), dtype=np.float32))
        opened.remember(adata, opened.Store(Path("cells.zarr"), "r", "zarr"))
        del adata
        gc.collect()
    assert [name for name in opened._PARTS if name in {"vxpress-0", "vxpress-1"}] == []
    assert sum(found() is None for found, _ in opened._STORES.values()) <= 1
