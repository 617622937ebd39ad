"""Whatever is passed in place of an AnnData, every call says the same, and how to get one."""

from __future__ import annotations

import inspect
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


WITHOUT_FIT = {"history": vx.pl.history, "volcano": vx.pl.volcano, "compare": vx.tl.compare}


@pytest.mark.parametrize("call", WITHOUT_FIT.values(), ids=WITHOUT_FIT)
@pytest.mark.filterwarnings("ignore")
def test_a_mudata_without_a_fit(call: Callable[[Any], Any]) -> None:
    cells = mudata.MuData({"rna": ad.AnnData(np.ones((3, 2), dtype=np.float32))})
    with pytest.raises(ValueError, match=r"Name the modality of the MuData to use: modality='rna'"):
        call(cells)


def test_every_function_of_the_cells_of_an_anndata_takes_a_mudata() -> None:
    functions = {
        f"{module.__name__}.{name}": getattr(module, name)
        for module in (vx.pp, vx.tl, vx.pl)
        for name in module.__all__
    }
    of_cells = {
        name: found
        for name, found in functions.items()
        if inspect.isfunction(found) and "adata" in inspect.signature(found).parameters
    }
    assert len(of_cells) > 25
    # what tl.interpolate returned is an AnnData
    without = [name for name, found in of_cells.items() if "modality" not in inspect.signature(found).parameters]
    assert without == ["vxpress.pl.trajectory"]
