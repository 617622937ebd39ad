"""A joint fit of the modalities of a MuData: aligned cells, where results are written, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import vxpress as vx

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")

NB = {"protein": "nb", "rna": "nb"}
FIT: dict[str, Any] = {"n_latent": 3, "n_hidden": 8, "max_epochs": 2, "batch_size": 64, "denoised": False}


def make(adata: ad.AnnData) -> mudata.MuData:
    """RNA of 160 cells, and proteins of the last 100 of them and of 10 other cells, in another order."""
    rng = np.random.default_rng(3)
    names = [*reversed(adata.obs_names[60:]), *(f"other{i}" for i in range(10))]
    counts = rng.poisson(5.0, (len(names), 4)).astype(np.float32)
    obs = pd.DataFrame({"batch": "batch_0"}, index=names)
    obs.loc[adata.obs_names[60:], "batch"] = adata.obs["batch"].astype(str)
    protein = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"p{i}" for i in range(4)]))
    return mudata.MuData({"rna": adata.copy(), "protein": protein})


@pytest.fixture
def mdata(adata: ad.AnnData) -> mudata.MuData:
    return make(adata)


@pytest.fixture(scope="module")
def _fitted_mdata(_simulated: ad.AnnData) -> mudata.MuData:
    mdata = make(_simulated)
    vx.tl.fit_vae(mdata, "batch", modalities=NB, **FIT)
    return mdata


@pytest.fixture
def fitted(_fitted_mdata: mudata.MuData) -> mudata.MuData:
    return _fitted_mdata.copy()


def state(mdata: mudata.MuData) -> dict[str, Any]:
    found: dict[str, Any] = {f"obsm:{name}": np.array(value) for name, value in mdata.obsm.items()}
    found |= {f"obs:{name}": mdata.obs[name].to_numpy() for name in mdata.obs}
    found |= {f"uns:{name}": None for name in mdata.uns}
    for mod, part in mdata.mod.items():
        for slot in ("obs", "var", "obsm", "varm", "layers", "uns"):
            found |= {f"{mod}:{slot}:{name}": None for name in getattr(part, slot)}
    return found


def without_fit(mdata: mudata.MuData) -> mudata.MuData:
    out = mdata.copy()
    for slot, names in (
        (out.uns, ["vae"]),
        (out.obsm, ["X_vae", "X_vae_var"]),
        (out.obs, ["vae_split", "vae_library"]),
    ):
        for name in names:
            del slot[name]
    return out


def test_results_are_written_where_they_belong(mdata: mudata.MuData) -> None:
    before = state(mdata)
    vx.tl.fit_vae(mdata, "batch", modalities=NB, **FIT | {"denoised": True})
    new = {"obsm:X_vae", "obsm:X_vae_var", "obs:vae_split", "obs:vae_library", "uns:vae"}
    new |= {f"{name}:layers:vae_normalized" for name in ("rna", "protein")}
    assert set(state(mdata)) - set(before) == new
    assert mdata.mod["protein"].layers["vae_normalized"].shape == (110, 4)
    assert mdata.obsm["X_vae"].shape == (170, 3)
    assert mdata.mod["rna"].layers["vae_normalized"].shape == (160, 60)
    np.testing.assert_allclose(mdata.mod["rna"].layers["vae_normalized"].sum(1), 1e4, rtol=1e-3)
    # 10 cells lack RNA and have no size factor
    assert (mdata.obs["vae_library"][-10:] == 0).all()
    assert (mdata.obs["vae_library"][:160] > 0).all()
    assert set(mdata.obs["vae_split"]) == {"train", "validation"}


def test_a_repeated_fit_replaces_its_own_results_and_gives_the_same_bits(fitted: mudata.MuData) -> None:
    before = state(fitted)
    vx.tl.fit_vae(fitted, "batch", modalities=NB, **FIT)
    after = state(fitted)
    assert set(after) == set(before)
    np.testing.assert_array_equal(after["obsm:X_vae"], before["obsm:X_vae"])


def test_layers_of_an_earlier_fit_stay_in_no_modality(fitted: mudata.MuData) -> None:
    def layers(mdata: mudata.MuData) -> list[tuple[str, str]]:
        return [(mod, name) for mod, part in mdata.mod.items() for name in part.layers if str(name).startswith("vae_")]

    for modality in NB:
        vx.tl.denoise(fitted, modality=modality, interval=0.5)
    before = layers(fitted)
    assert len(before) == 6
    # cells that are encoded by their own fit keep them
    vx.tl.encode(fitted, fitted)
    assert layers(fitted) == before
    assert "vae_split" in fitted.obs
    query = fitted.copy()
    del query.obs["vae_split"]
    vx.tl.encode(query, fitted)
    assert layers(query) == []
    vx.tl.fit_vae(fitted, "batch", modalities=NB, **FIT | {"denoised": True})
    assert layers(fitted) == [(modality, "vae_normalized") for modality in fitted.mod]
    vx.tl.fit_vae(fitted, "batch", modalities=NB, **FIT)
    assert layers(fitted) == []


@pytest.mark.parametrize(
    ("slot", "name"), [("obsm", "X_vae"), ("uns", "vae"), ("obs", "vae_split"), ("layers", "vae_normalized")]
)
def test_the_data_of_others_are_not_replaced(mdata: mudata.MuData, slot: str, name: str) -> None:
    value: Any = {"uns": 1, "obs": "mine", "obsm": np.ones((170, 2)), "layers": np.ones((160, 60))}[slot]
    getattr(mdata.mod["rna"] if slot == "layers" else mdata, slot)[name] = value
    before = state(mdata)
    with pytest.raises(ValueError, match=rf"already holds {slot}\['{name}'\]"):
        vx.tl.fit_vae(mdata, "batch", modalities=NB, **FIT)
    assert state(mdata).keys() == before.keys()


def test_layers_of_other_modalities_are_not_replaced(mdata: mudata.MuData) -> None:
    mdata.mod["protein"].layers["vae_normalized"] = np.ones((110, 4))
    with pytest.raises(ValueError, match=r"mdata\.mod\['protein'\]\.layers\['vae_normalized'\]"):
        vx.tl.fit_vae(mdata, "batch", modalities=NB, **FIT)
    assert (mdata.mod["protein"].layers["vae_normalized"] == 1).all()


def test_cells_are_matched_by_name(fitted: mudata.MuData) -> None:
    order = np.random.default_rng(0).permutation(fitted.mod["protein"].n_obs)
    shuffled = mudata.MuData({"rna": fitted.mod["rna"].copy(), "protein": fitted.mod["protein"][order].copy()})
    vx.tl.encode(shuffled, fitted)
    found = pd.DataFrame(shuffled.obsm["X_vae"], index=shuffled.obs_names).loc[fitted.obs_names]
    np.testing.assert_allclose(found.to_numpy(), fitted.obsm["X_vae"], atol=1e-6)


def test_encoding_the_cells_of_the_fit_gives_their_posterior(fitted: mudata.MuData) -> None:
    query = without_fit(fitted)
    vx.tl.encode(query, fitted)
    np.testing.assert_allclose(query.obsm["X_vae"], fitted.obsm["X_vae"], atol=1e-6)
    vx.tl.encode(fitted, key_added="again")
    np.testing.assert_allclose(fitted.obsm["again"], fitted.obsm["X_vae"], atol=1e-6)


def test_cells_with_one_modality(fitted: mudata.MuData) -> None:
    rna, protein = fitted.mod["rna"].copy(), mudata.MuData({"protein": fitted.mod["protein"].copy()})
    vx.tl.encode(rna, fitted)
    vx.tl.encode(protein, fitted)
    names = pd.Index(fitted.obs_names)
    lacking = rna.obs_names[:60]
    # these have RNA alone in the fit as well
    at = names.get_indexer(lacking)
    np.testing.assert_allclose(rna[lacking].obsm["X_vae"], fitted.obsm["X_vae"][at], atol=1e-6)
    at = names.get_indexer(protein.obs_names[-10:])
    np.testing.assert_allclose(protein.obsm["X_vae"][-10:], fitted.obsm["X_vae"][at], atol=1e-6)
    both = rna.obs_names[60:]
    assert (rna[both].obsm["X_vae_var"] > fitted.obsm["X_vae_var"][names.get_indexer(both)]).all()


@pytest.mark.parametrize("encode_covariates", [False, True])
def test_new_batches(mdata: mudata.MuData, encode_covariates: bool) -> None:
    options = vx.tl.FitOptions(encode_covariates=encode_covariates, screen_covariates=False)
    vx.tl.fit_vae(mdata, "batch", modalities=NB, options=options, **FIT)
    query = without_fit(mdata)
    # the batch of a cell without RNA is that of its proteins
    for part in query.mod.values():
        part.obs["batch"] = part.obs["batch"].astype(str)
        part.obs.loc[part.obs_names[::2], "batch"] = "new"
    names = pd.Index(query.obs_names)
    query.mod["protein"].obs["batch"] = (
        query.mod["rna"].obs["batch"].reindex(query.mod["protein"].obs_names).fillna("batch_0")
    )
    vx.tl.encode(query, mdata)
    known = query.mod["rna"].obs_names[1::2]
    at = names.get_indexer(known)
    np.testing.assert_allclose(query.obsm["X_vae"][at], mdata.obsm["X_vae"][at], atol=1e-5)
    assert np.isfinite(query.obsm["X_vae"]).all()
    # the fit that the query holds knows the batch in all modalities
    vx.tl.denoise(query, modality="protein")
    vx.tl.impute(query, "protein", mdata)
    assert np.isfinite(query.obsm["vae_protein"].to_numpy()).all()
    vx.tl.encode(query, mdata, fine_tune=2, key_added="tuned")
    np.testing.assert_allclose(query.obsm["tuned"][at], mdata.obsm["X_vae"][at], atol=1e-5)


def test_rows_of_nan_and_of_zeros_stand_for_cells_without_the_modality(fitted: mudata.MuData) -> None:
    query = without_fit(fitted)
    for value in (np.nan, 0.0):
        query.mod["protein"].X[:5] = value
        vx.tl.encode(query, fitted, key_added=f"of_{value}")
    cells = query.mod["protein"].obs_names[:5]
    alone = fitted.mod["rna"][cells].copy()
    vx.tl.encode(alone, fitted)
    at = pd.Index(query.obs_names).get_indexer(cells)
    for value in (np.nan, 0.0):
        np.testing.assert_allclose(query.obsm[f"of_{value}"][at], alone.obsm["X_vae"], atol=1e-6)


def test_files(fitted: mudata.MuData, tmp_path: Path) -> None:
    fitted.write(tmp_path / "cells.h5mu")
    vx.save_model(fitted, tmp_path / "fit.safetensors")
    again = mudata.read(tmp_path / "cells.h5mu")
    models: dict[str, Any] = {
        "own": None,
        "file": tmp_path / "cells.h5mu",
        "saved": tmp_path / "fit.safetensors",
        "loaded": vx.load_model(tmp_path / "fit.safetensors"),
    }
    for name, model in models.items():
        query = again if model is None else without_fit(again)
        vx.tl.encode(query, model, key_added=None if model is not None else "own")
        found = query.obsm["X_vae" if model is not None else "own"]
        np.testing.assert_allclose(found, fitted.obsm["X_vae"], atol=1e-6, err_msg=name)


def test_calls_write_where_their_results_belong(fitted: mudata.MuData) -> None:
    before = set(state(fitted))
    vx.pp.neighbors(fitted)
    assert fitted.obsp["distances"].shape == (170, 170)
    vx.tl.log_likelihood(fitted, n_samples=2)
    vx.tl.diagnose(fitted, n_cells=5)
    vx.tl.denoise(fitted)
    new = set(state(fitted)) - before
    assert {"uns:neighbors", "uns:vae_log_likelihood", "obs:vae_elbo", "rna:layers:vae_normalized"} <= new
    assert {name for name in new if name.startswith("protein:")} == set()
    with pytest.raises(ValueError, match="generate works on fits of one"):
        vx.tl.generate(fitted)


def test_a_copy_and_a_view(mdata: mudata.MuData) -> None:
    before = state(mdata)
    out = vx.tl.fit_vae(mdata, modalities=NB, copy=True, **FIT)
    assert out is not None
    assert "X_vae" in out.obsm
    assert state(mdata).keys() == before.keys()
    view = mdata[:100]
    with pytest.warns(UserWarning, match="Received a view of a MuData"):
        vx.tl.fit_vae(view, modalities=NB, **FIT)
    assert view.obsm["X_vae"].shape == (100, 3)


def test_names_say_which_likelihood(mdata: mudata.MuData, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks, odd_part = mdata.mod["protein"].copy(), mdata.mod["protein"].copy()
    odd_part.var_names = [f"odd{i}" for i in range(4)]
    odd = mudata.MuData({"my-ATAC": peaks, "gex": mdata.mod["rna"].copy(), "odd": odd_part})
    said: list[str] = []
    monkeypatch.setattr("scanpy.logging.warning", said.append)
    vx.tl.fit_vae(odd, "batch", **FIT)
    params = odd.uns["vae"]["params"]
    assert list(params["modalities"]) == ["gex", "my-ATAC"]
    assert [part["likelihood"] for part in params["model"]["modalities"].values()] == ["bernoulli"]
    assert any("['odd'] are left out" in one for one in said)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"modalities": ["rna"]}, ValueError, r"needs two or more modalities.*modality='rna'"),
        ({"modalities": 2}, TypeError, r"modalities=2: names of modalities with their likelihoods are expected"),
        ({"modalities": {"rna": "nb", "prot": "nb"}}, KeyError, r"'prot' is not a modality.*'protein'"),
        ({"modalities": {"rna": "nb", "protein": "normal"}}, ValueError, r"'normal' is not"),
        ({"modalities": NB, "modality": "rna"}, ValueError, r"Leave one of the two out"),
        ({"modalities": NB, "likelihood": "zinb"}, ValueError, r"contradict"),
        ({"modalities": NB, "key_added": "rna"}, ValueError, r"is the name of a modality"),
        ({"modalities": NB, "library": "latent"}, ValueError, r"Use library='observed'"),
        ({"modalities": NB, "batch_key": "donor"}, ValueError, r"obs\['donor'\] is missing \(NaN\) in 10 of 170"),
    ],
)
def test_messages(mdata: mudata.MuData, given: dict[str, Any], error: type[Exception], message: str) -> None:
    before = state(mdata)
    with pytest.raises(error, match=message):
        vx.tl.fit_vae(mdata, **given)
    assert state(mdata).keys() == before.keys()


def test_other_features_and_values(fitted: mudata.MuData) -> None:
    query = without_fit(fitted)
    query.mod["protein"].X[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"mdata\.mod\['protein'\]\.X is NaN in some features of 1 cell"):
        vx.tl.encode(query, fitted)
    query.mod["protein"].X[0, 0] = 0.5
    with pytest.raises(ValueError, match=r"mdata\.mod\['protein'\]\.X holds 1 value\(s\) that are not whole"):
        vx.tl.encode(query, fitted)
    less = mudata.MuData({"rna": query.mod["rna"].copy(), "protein": query.mod["protein"][:, :3].copy()})
    with pytest.raises(ValueError, match=r"1 of the 4 features of the modality 'protein'.*\['p3'\]"):
        vx.tl.encode(less, fitted)


def test_two_fits_of_one_name_are_told_apart(fitted: mudata.MuData) -> None:
    with pytest.raises(ValueError, match=r"mdata\.uns\['vae'\] holds a fit of several modalities.*key_added="):
        vx.tl.fit_vae(fitted, "batch", modality="rna", **FIT)
    vx.tl.fit_vae(fitted, "batch", modality="rna", key_added="alone", **FIT)
    vx.tl.denoise(fitted, modality="rna", key="alone")
    vx.tl.fit_vae(fitted.mod["rna"], "batch", **FIT)
    with pytest.raises(ValueError, match=r"Both mdata\.uns\['vae'\] and mdata\.mod\['rna'\]\.uns\['vae'\] hold a fit"):
        vx.tl.denoise(fitted, modality="rna")


def test_a_joint_fit_does_not_replace_a_fit_of_one_modality(mdata: mudata.MuData) -> None:
    vx.tl.fit_vae(mdata, "batch", modality="rna", **FIT)
    before = state(mdata)
    with pytest.raises(
        ValueError, match=r"mdata\.mod\['rna'\]\.uns\['vae'\] holds a fit of this modality alone.*key_added="
    ):
        vx.tl.fit_vae(mdata, "batch", modalities=NB, **FIT)
    assert state(mdata).keys() == before.keys()


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_rna_of_nan_is_not_measured(fitted: mudata.MuData, kind: str) -> None:
    query = without_fit(fitted)
    rna, protein = query.mod["rna"].copy(), query.mod["protein"].copy()
    rna.X = rna.X.toarray()
    rna.X[100:] = np.nan
    protein.X[:5] = np.nan
    if kind == "sparse":
        rna.X, protein.X = sparse.csr_matrix(rna.X), sparse.csr_matrix(protein.X)
    vx.tl.encode(found := mudata.MuData({"rna": rna, "protein": protein}), fitted)
    parts = {"rna": query.mod["rna"][:100].copy(), "protein": query.mod["protein"][5:].copy()}
    vx.tl.encode(expected := mudata.MuData(parts), fitted)
    at = pd.Index(found.obs_names).get_indexer(expected.obs_names)
    np.testing.assert_allclose(found.obsm["X_vae"][at], expected.obsm["X_vae"], atol=1e-6)


def test_a_modality_that_stays_on_disk_and_lacks_cells(fitted: mudata.MuData, tmp_path: Path) -> None:
    query = without_fit(fitted)
    part = query.mod["rna"].copy()
    for name in [name for name in part.layers if name is not None]:
        del part.layers[name]
    part.write_h5ad(tmp_path / "rna.h5ad")
    opened = vx.io.open_store(tmp_path / "rna.h5ad")
    joint = mudata.MuData({"rna": opened, "protein": query.mod["protein"]})
    vx.tl.encode(joint, fitted)
    at = pd.Index(joint.obs_names).get_indexer(fitted.obs_names)
    np.testing.assert_allclose(joint.obsm["X_vae"][at], fitted.obsm["X_vae"], atol=1e-6)


def test_proteins_in_the_place_of_rna(fitted: mudata.MuData) -> None:
    with pytest.raises(ValueError, match=r"features of the modality 'protein'.*mudata\.MuData\(\{'protein': adata\}\)"):
        vx.tl.encode(fitted.mod["protein"].copy(), fitted)


def test_repeated_names_of_features(mdata: mudata.MuData) -> None:
    mdata.mod["protein"].var_names = ["p0", "p0", "p1", "p2"]
    with pytest.raises(ValueError, match=r"mdata\.mod\['protein'\]\.var_names are not unique"):
        vx.tl.fit_vae(mdata, "batch", modalities=NB, **FIT)


def test_modalities_are_those_of_a_mudata(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="an AnnData was given, which has none"):
        vx.tl.fit_vae(adata, modalities=NB)
