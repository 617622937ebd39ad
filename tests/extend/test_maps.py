"""A map from outside predicts as those of the package do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import vxpress as vx
from vxpress import extend

from ._outside import QUICK, MedianShift

WHO: dict[str, Any] = {"control": "none", "target": "drug", "groupby": "group", "groups": ["c"], "check": False}


@pytest.fixture(scope="module")
def cells(_simulated: ad.AnnData) -> ad.AnnData:
    """Cells of three groups; those of the last are controls only."""
    adata = _simulated.copy()
    n = adata.n_obs
    adata.obs["group"] = pd.Categorical(np.array(["a", "b", "c"])[np.arange(n) % 3])
    drug = (np.arange(n) % 2 == 0) & (adata.obs["group"] != "c").to_numpy()
    adata.obs["drug"] = pd.Categorical(np.where(drug, "drug", "none"))
    vx.tl.fit_vae(adata, **QUICK, denoised=False)
    return adata


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    extend.register_map("median_shift", MedianShift)
    yield
    extend.unregister("map", "median_shift")


def test_a_prediction_moves_cells_by_the_map_with_its_options(cells: ad.AnnData) -> None:
    moved = vx.tl.predict_perturbation(cells, "drug", **WHO, method="median_shift", method_options={"factor": 2.0})
    z, group, drug = cells.obsm["X_vae"].astype(np.float64), cells.obs["group"], cells.obs["drug"] == "drug"

    def median(chosen: pd.Series) -> np.ndarray:
        return torch.from_numpy(z[chosen.to_numpy()]).median(0).values.numpy()

    shifts = [median((group == name) & drug) - median((group == name) & ~drug) for name in ("a", "b")]
    expected = moved.obsm["X_vae_control"] + 2.0 * np.mean(shifts, axis=0)
    np.testing.assert_allclose(moved.obsm["X_vae"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("learn", "message"),
    [
        (lambda self, pairs, generator: None, r"median_shift.*learn returned None; a function that moves cells"),
        (lambda self, pairs, generator: lambda x: x[:, :1], r"learn: its function returned a tensor of shape \(3, 1\)"),
        (lambda self, pairs, generator: lambda x: x.float(), r"returned a tensor of torch\.float32"),
        (lambda self, pairs, generator: lambda x: x / 0.0, r"returned NaN or infinite values"),
        (lambda self, pairs, generator: pairs.nothing, r"learn raised AttributeError"),
    ],
)
def test_what_a_map_returns_is_tried_before_cells_move(cells: ad.AnnData, learn: Any, message: str) -> None:
    wrong = type("Wrong", (MedianShift,), {"learn": learn})
    extend.register_map("median_shift", wrong, replace=True)
    with pytest.raises(ValueError, match=message):
        vx.tl.predict_perturbation(cells, "drug", **WHO, method="median_shift")


def _one(self: object, a: int) -> None: ...


@dataclass(frozen=True)
class _Bare(extend.Options):
    factor: float


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (type("Mine", (extend.LatentMap,), {}), r"The latent map 'mine'.* does not define learn"),
        (
            type("Mine", (MedianShift,), {"learn": _one}),
            r"does not take the arguments .*learn\(self, pairs, generator\)",
        ),
        (type("Mine", (MedianShift,), {"__init__": lambda self: None}), r"cannot be called as Mine\(options\)"),
        (type("Mine", (MedianShift,), {"Options": _Bare}), r"Options has no default for factor"),
        (dict, r"a subclass is expected: class dict\(vx\.extend\.LatentMap\)"),
    ],
)
def test_an_incomplete_map_is_refused(cls: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        extend.register_map("mine", cls)


def test_a_map_of_the_package_keeps_its_name() -> None:
    with pytest.raises(ValueError, match="The latent map 'bures' belongs to the package"):
        extend.register_map("bures", MedianShift, replace=True)
