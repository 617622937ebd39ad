"""Whatever is passed in place of an AnnData, every call says the same, and how to get one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import mudata
import numpy as np
import pytest

import vxpress as vx

CALLS: dict[str, Callable[[Any], Any]] = {
    "fit_vae": vx.tl.fit_vae,
    "generate": lambda adata: vx.tl.generate(adata, 3),
    "neighbors": vx.pp.neighbors,
    "history": vx.pl.history,
    "volcano": vx.pl.volcano,
    "save_model": lambda adata: vx.save_model(adata, "fit.safetensors"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("cells.h5ad", r"found str\. Read a file with anndata\.read_h5ad"),
        (Path("cells.h5ad"), r"Read a file with anndata\.read_h5ad"),
        (np.ones((3, 2)), r"found ndarray\.$"),
        (None, r"found NoneType\.$"),
    ],
    ids=["name", "path", "array", "nothing"],
)
def test_a_call_without_an_anndata(call: Callable[[Any], Any], found: Any, message: str) -> None:
    with pytest.raises(TypeError, match=rf"An AnnData is expected as first argument; .*{message}"):
        call(found)


WITHOUT_MODALITY = {
    "history": vx.pl.history,
    "volcano": vx.pl.volcano,
    "compare": vx.tl.compare,
}


@pytest.mark.parametrize("call", WITHOUT_MODALITY.values(), ids=WITHOUT_MODALITY)
@pytest.mark.filterwarnings("ignore")
def test_several_modalities(call: Callable[[Any], Any]) -> None:
    cells = mudata.MuData({"rna": ad.AnnData(np.ones((3, 2), dtype=np.float32))})
    with pytest.raises(TypeError, match=r"found MuData\. Pass one modality, for example mdata\.mod\['rna'\]"):
        call(cells)
