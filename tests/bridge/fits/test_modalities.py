"""A MuData and the name of a modality: the same as the call for that modality alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest

import vxpress as vx

pytestmark = pytest.mark.filterwarnings("ignore:.*obs_names:UserWarning")


@pytest.fixture
def mdata(adata: ad.AnnData) -> mudata.MuData:
    """RNA of 160 cells, and proteins of half of them and of 10 other cells, in another order."""
    rng = np.random.default_rng(3)
    names = [*reversed(adata.obs_names[::2]), *(f"other{i}" for i in range(10))]
    counts = rng.poisson(5.0, (len(names), 4)).astype(np.float32)
    protein = ad.AnnData(counts, obs=pd.DataFrame(index=names), var=pd.DataFrame(index=[f"p{i}" for i in range(4)]))
    out = mudata.MuData({"rna": adata, "protein": protein})
    out.obs["half"] = np.where(np.arange(out.n_obs) % 2, "odd", "even")
    return out


def entries(adata: ad.AnnData) -> set[str]:
    slots = {name: getattr(adata, name) for name in ("obs", "var", "obsm", "obsp", "varm", "layers", "uns")}
    return {f"{slot}:{name}" for slot, found in slots.items() for name in found}


def test_a_fit_of_one_modality_is_that_of_its_anndata(mdata: mudata.MuData, adata: ad.AnnData, quick: dict) -> None:
    alone = adata.copy()
    vx.tl.fit_vae(alone, "batch", **quick)
    before, protein = set(mdata.obsm), entries(mdata.mod["protein"])
    vx.tl.fit_vae(mdata, "batch", modality="rna", **quick)
    found = mdata.mod["rna"]
    np.testing.assert_array_equal(found.obsm["X_vae"], alone.obsm["X_vae"])
    np.testing.assert_array_equal(found.layers["vae_normalized"], alone.layers["vae_normalized"])
    assert set(mdata.obsm) == before
    assert not mdata.uns
    assert entries(mdata.mod["protein"]) == protein


def test_calls_with_a_stored_fit(mdata: mudata.MuData, quick: dict, tmp_path: Path) -> None:
    vx.pp.library_size(mdata, modality="rna", overwrite=True)
    vx.tl.fit_vae(mdata, "batch", modality="rna", denoised=False, **quick)
    alone = mdata.mod["rna"].copy()
    calls: dict[str, Callable[..., Any]] = {
        "denoise": vx.tl.denoise,
        "log_likelihood": lambda data, **given: vx.tl.log_likelihood(data, n_samples=2, **given),
        "diagnose": lambda data, **given: vx.tl.diagnose(data, n_cells=5, **given),
        "neighbors": vx.pp.neighbors,
        "rank_genes_groups": lambda data, **given: vx.tl.rank_genes_groups(data, "batch", n_cells=20, **given),
        "sample": vx.tl.sample,
    }
    for call in calls.values():
        call(alone)
        call(mdata, modality="rna")
    assert entries(mdata.mod["rna"]) == entries(alone)
    np.testing.assert_array_equal(mdata.mod["rna"].layers["vae_normalized"], alone.layers["vae_normalized"])
    new = vx.tl.generate(mdata, 5, modality="rna")
    assert new.shape == (5, alone.n_vars)
    vx.save_model(mdata, tmp_path / "rna.safetensors", modality="rna")
    assert vx.load_model(tmp_path / "rna.safetensors").uns["vae"]["sha256"] == alone.uns["vae"]["sha256"]


def test_the_fit_may_be_in_another_mudata(mdata: mudata.MuData, quick: dict) -> None:
    query = mdata[:20].copy()
    vx.tl.fit_vae(mdata, "batch", modality="rna", denoised=False, **quick)
    vx.tl.encode(query, mdata, modality="rna")
    expected = mdata.mod["rna"][query.mod["rna"].obs_names].obsm["X_vae"]
    np.testing.assert_allclose(query.mod["rna"].obsm["X_vae"], expected, rtol=1e-5, atol=1e-6)


def test_a_copy_leaves_the_mudata_as_it_was(mdata: mudata.MuData, quick: dict) -> None:
    before = entries(mdata.mod["rna"])
    out = vx.tl.fit_vae(mdata, modality="rna", copy=True, **quick)
    assert isinstance(out, mudata.MuData)
    assert "X_vae" in out.mod["rna"].obsm
    assert entries(mdata.mod["rna"]) == before


# pytest.warns emits the other warnings again, of mudata with pandas 3.1
@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_a_view_becomes_actual(mdata: mudata.MuData, quick: dict) -> None:
    view = mdata[:40]
    with pytest.warns(UserWarning, match="Received a view of a MuData"):
        vx.tl.fit_vae(view, modality="rna", **quick)
    assert not view.is_view
    assert view.mod["rna"].obsm["X_vae"].shape == (40, 3)
    assert "X_vae" not in mdata.mod["rna"].obsm


def test_a_smaller_modality_is_noticed_by_the_mudata(mdata: mudata.MuData) -> None:
    vx.pp.highly_variable_genes(mdata, modality="rna", n_top_genes=10, subset=True)
    assert mdata.mod["rna"].n_vars == 10
    assert mdata.n_vars == 14


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, r"modality='rna' \(found: \['rna', 'protein'\]\)"),
        ({"modality": "rnaa"}, KeyError, r"'rnaa' is not a modality .* Similar names: 'rna'"),
        ({"modality": 0}, KeyError, r"modality=0 is not a modality"),
        ({"modality": "rna", "batch_key": "half"}, KeyError, r"mdata\.push_obs\(\['half'\], mods=\['rna'\]\)"),
    ],
)
def test_messages(mdata: mudata.MuData, given: dict, error: type[Exception], message: str) -> None:
    before = entries(mdata.mod["rna"])
    with pytest.raises(error, match=message):
        vx.tl.encode(mdata, **given) if not given else vx.tl.fit_vae(mdata, **given)
    assert entries(mdata.mod["rna"]) == before


def test_push_obs_is_the_call_that_mends_it(mdata: mudata.MuData, quick: dict) -> None:
    mdata.push_obs(["half"], mods=["rna"])
    vx.tl.fit_vae(mdata, "half", modality="rna", **quick)
    assert mdata.mod["rna"].uns["vae"]["params"]["batch_key"] == "half"


def test_an_anndata_has_no_modalities(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="an AnnData was given, which has none"):
        vx.tl.fit_vae(adata, modality="rna")


def test_modalities_have_to_share_cells(adata: ad.AnnData) -> None:
    shared_genes = mudata.MuData({"a": adata[:80].copy(), "b": adata[80:].copy()}, axis=1)
    with pytest.raises(ValueError, match=r"axis=1: its modalities share genes"):
        vx.tl.fit_vae(shared_genes, modality="a")
    nested = mudata.MuData({"all": mudata.MuData({"a": adata.copy()})})
    with pytest.raises(ValueError, match=r"mdata\.mod\['all'\] is a MuData itself"):
        vx.tl.fit_vae(nested, modality="all")
