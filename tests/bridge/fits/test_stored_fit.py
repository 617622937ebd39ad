"""A stored fit is read as it was written, from any container, or is reported as damaged."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import vxpress as vx
from vxpress.bridge.fits.find_fit import find_fit
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.model_file import read_fit
from vxpress.bridge.fits.seal import NAME, digest, sealed
from vxpress.core.config import PriorName

QUICK: dict[str, Any] = {
    "n_latent": 2,
    "n_hidden": 4,
    "max_epochs": 1,
    "batch_size": 32,
    "denoised": False,
    "options": vx.tl.FitOptions(norm="batch"),
}
FITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch, age, latent library": {
        "batch_key": "batch",
        "continuous_covariate_keys": ["age"],
        "categorical_covariate_keys": ["donor"],
        "library": "latent",
    },
    "labels, nothing held out": {
        "dispersion": "gene-label",
        "labels_key": "group",
        "validation_fraction": 0.0,
        "likelihood": "zinb",
    },
    **{name: {"prior": name} for name in ("mixture", "vamp", "flow", "diffusion", "flow_matching")},
}
FIRST = Path(__file__).parent / "data" / "fit-1.safetensors"


@pytest.fixture(scope="module")
def made(_simulated: ad.AnnData) -> dict[str, ad.AnnData]:
    out = {}
    for name, settings in FITS.items():
        adata = _simulated[:60, :20].copy()
        vx.tl.fit_vae(adata, **QUICK, **settings)
        out[name] = adata
    return out


@pytest.fixture(params=FITS)
def stored(request: pytest.FixtureRequest, made: dict[str, ad.AnnData]) -> dict[str, Any]:
    """A copy of what ``uns`` stores of one of the fits."""
    return copy.deepcopy(dict(made[request.param].uns["vae"]))


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name)


def changed(tree: Mapping[str, Any], path: tuple[str, ...], change: Any) -> dict[str, Any]:
    """Return the tree with one entry changed, or removed if ``change`` is None; the rest is shared."""
    name, *rest = path
    out = dict(tree)
    if rest:
        out[name] = changed(tree[name], tuple(rest), change)
    elif change is None:
        del out[name]
    else:
        out[name] = change(tree.get(name))
    return out


def other(value: Any) -> Any:
    """Return a value of the same type and shape with the smallest possible difference."""
    array = np.array(value)
    if array.ndim and not array.size:
        return np.array(["x"], dtype=object)
    if array.dtype.kind == "b":
        array.flat[-1] = not array.flat[-1]
    elif array.dtype.kind == "f":
        array.flat[-1] = np.nextafter(array.flat[-1], np.inf) if np.isfinite(array.flat[-1]) else 0.5
    elif array.dtype.kind in "iu":
        array.flat[-1] += 1
    else:
        array = array.astype(object)
        array.flat[-1] = f"{array.flat[-1]}x"
    return array if array.ndim else array.item()


def test_every_missing_or_changed_entry_is_detected(stored: dict[str, Any], request: Any) -> None:
    of_a_prior = request.node.callspec.params["stored"] in get_args(PriorName)
    for path in leaves(stored):
        if of_a_prior and not any(part.startswith("prior") for part in path):
            continue  # as in the other fits
        for change in (None, other):
            record = changed(stored, path, change)
            if path[0] == "diagnostics":
                same = Fit.from_uns(record)
                assert same.to_uns()[NAME] == stored[NAME]
                continue
            with pytest.raises((ValueError, KeyError), match=r"damaged|of format|holds no fit"):
                find_fit(_carrier(record), None, "vae")


def test_every_missing_or_extended_part_is_detected(stored: dict[str, Any]) -> None:
    parts = {path[:depth] for path in leaves(stored) for depth in range(1, len(path))}
    for path in parts - {("diagnostics",)}:
        changes = [(path, None), ((*path, "surprise"), lambda _: 1.0)]
        for at, change in changes:
            if at[0] == "diagnostics":
                continue
            with pytest.raises(ValueError, match="damaged"):
                Fit.from_uns(changed(stored, at, change))
    with pytest.raises(ValueError, match=r"note.*Delete"):
        Fit.from_uns(stored | {"note": "mine"})


def test_diagnostics_may_change_and_if_missing_the_error_names_the_call_that_writes_them(
    stored: dict[str, Any],
) -> None:
    with_note = changed(stored, ("diagnostics", "note"), lambda _: "mine")
    assert Fit.from_uns(with_note).diagnostics["note"] == "mine"
    without = Fit.from_uns(changed(stored, ("diagnostics",), None))
    with pytest.raises(KeyError, match=r"vx\.tl\.diagnose"):
        _ = without.diagnostics["active"]


@pytest.mark.parametrize("carrier", ["h5ad", "zarr", "safetensors"])
@pytest.mark.filterwarnings("ignore::UserWarning:zarr", "ignore::FutureWarning:anndata")
def test_a_fit_survives_files(made: dict[str, ad.AnnData], tmp_path: Path, carrier: str) -> None:
    adata = ad.AnnData(np.zeros((1, 1), dtype=np.float32))
    adata.uns = {
        name.replace(",", ""): made[name].uns["vae"] for name in list(made)[: 2 if carrier == "zarr" else None]
    }
    path = tmp_path / f"all.{carrier}"
    if carrier == "h5ad":
        adata.write_h5ad(path)
        back = ad.read_h5ad(path).uns
    elif carrier == "zarr":
        adata.write_zarr(path)
        back = ad.read_zarr(path).uns
    else:
        back = {}
        for name in adata.uns:
            vx.save_model(adata, path, key=name)
            back[name] = read_fit(path)[0]
    for name, record in adata.uns.items():
        assert back[name][NAME] == record[NAME] == digest(back[name])
        one, two = Fit.from_uns(record), Fit.from_uns(back[name])
        assert one.params == two.params
        assert one.covariates == two.covariates
        for key, value in one.model.state_dict().items():
            assert torch.equal(value, two.model.state_dict()[key])


def test_the_checksum_depends_on_values_and_not_on_containers(stored: dict[str, Any]) -> None:
    def held_otherwise(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: held_otherwise(value[name]) for name in sorted(value, reverse=True)}
        array = np.asarray(value)
        if array.dtype.kind == "O":
            return pd.array(array.astype(str), dtype="string")
        if array.dtype.kind == "U":
            return np.str_(value)
        return array.astype(array.dtype.newbyteorder(">")) if array.ndim else array[()]

    twisted = held_otherwise(stored)
    assert digest(twisted) == stored[NAME]
    one, two = (Fit.from_uns(record).model.state_dict() for record in (stored, twisted))
    assert all(torch.equal(one[name], two[name]) for name in one)
    strings = held_otherwise(stored)
    strings["genes"]["names"] = np.array(stored["genes"]["names"], dtype=str)
    assert digest(strings) == stored[NAME]


def test_different_records_have_different_checksums() -> None:
    records = [
        {"a": "xy", "b": "z"},
        {"a": "x", "b": "yz"},
        {"a": {"b": 1}},
        {"a": {"b": 1.0}},
        {"a": {"b": True}},
        {"a": {"b": "1"}},
        {"a": np.zeros(2, np.float32)},
        {"a": np.zeros(1, np.float64)},
        {"a": np.zeros((1, 2), np.float32)},
        {"a": np.zeros((2, 1), np.float32)},
        {"a": np.array(["xy", "z"], dtype=object)},
        {"a": np.array(["x", "yz"], dtype=object)},
        {"a": np.array([], dtype=object)},
        {"a": np.array([], dtype=float)},
        {"a": 0.0},
        {"a": -0.0},
        {"a": float("nan")},
    ]
    assert len({digest(record) for record in records}) == len(records)


@pytest.mark.parametrize("name", ["plain", "labels, nothing held out", "batch, age, latent library"])
def test_a_fit_survives_concat_subsets_and_another_name(made: dict[str, ad.AnnData], name: str) -> None:
    adata = made[name].copy()
    rest = adata[30:].copy()
    rest.uns["vae"]["diagnostics"]["verdict"] = "another"
    joined = ad.concat([adata[:30].copy(), rest], uns_merge="same")
    joined.uns["mine"] = joined.uns.pop("vae")
    record = Fit.from_uns(joined.uns["mine"])
    assert record.to_uns()[NAME] == adata.uns["vae"][NAME]


VALUES = {
    "a gene twice": (
        ("genes", "names"),
        lambda names: np.array([names[1], *names[1:]], dtype=object),
        "repeated names",
    ),
    "a mask of numbers": (("genes", "modelled"), lambda mask: np.asarray(mask).astype(float), "boolean"),
    "half precision": (("weights", "decoder.location.bias"), lambda value: value.astype(np.float16), "float16"),
    "whole numbers": (("weights", "decoder.location.bias"), lambda value: value.astype(np.int64), "int64"),
    "an infinite weight": (("weights", "decoder.location.bias"), lambda value: value + np.inf, "finite"),
    "a negative variance": (("weights", "encoder.body.norms.0.running_var"), lambda value: -value, "below 0"),
    "no target": (("params", "target_sum"), lambda _: -1.0, "target_sum"),
    "an infinite factor": (("params", "library_factor"), lambda _: np.inf, "library_factor"),
    "a negative number of steps": (("params", "n_steps"), lambda _: -1, "n_steps"),
    "an unknown end": (("params", "stopped"), lambda _: "tired", "stopped"),
    "another scale": (("params", "scale"), lambda _: "degrees", "scale"),
    "another batch": (("params", "batch_key"), lambda _: "donor", "covariates"),
    "an epoch beyond the last": (("params", "best_epoch"), lambda _: 99, "history"),
    "an epoch too few": (("history", "lr"), lambda values: values[:-1], "history"),
    "words for numbers": (("history", "lr"), lambda values: np.array(["x"] * len(values), dtype=object), "history"),
}


@pytest.mark.parametrize("what", VALUES)
def test_values_are_checked_even_with_a_valid_checksum(
    fitted: ad.AnnData, made: dict[str, ad.AnnData], what: str
) -> None:
    path, change, match = VALUES[what]
    # only batch norm stores variances
    record = changed((made["plain"] if "running_var" in path[-1] else fitted).uns["vae"], path, change)
    with pytest.raises(ValueError, match=rf"damaged: .*{match}"):
        Fit.from_uns(sealed(record))


# of release 0.1.0


def test_a_fit_of_the_first_format_is_read_and_saved_in_the_present_one(tmp_path: Path) -> None:
    model = vx.load_model(FIRST)
    assert model.uns["vae"]["format"] == "vxpress-fit-1"
    cells = vx.datasets.simulate(60, 20, n_batches=2, rng=0)
    cells.obs["age"] = np.arange(60.0)
    vx.tl.encode(cells, FIRST)
    # what release 0.1.0 wrote for these cells
    np.testing.assert_allclose(
        cells.obsm["X_vae"][:2], [[0.28625578, 0.5440253], [0.16853262, 0.71913767]], rtol=1e-4, atol=1e-5
    )
    assert cells.uns["vae"]["format"] == "vxpress-fit-2"
    vx.save_model(model, tmp_path / "again.safetensors")
    again = read_fit(tmp_path / "again.safetensors")[0]
    assert again["format"] == "vxpress-fit-2"
    assert again[NAME] == cells.uns["vae"][NAME]


def test_a_fit_of_the_first_format_with_a_missing_entry_is_refused() -> None:
    record = read_fit(FIRST)[0]
    for path in leaves(record):
        if path[0] == "diagnostics" or path[-1] in ("rng", "split_rng", "mask_var", "kl_per_dim") or path[0] == "prior":
            continue  # these may be absent
        with pytest.raises((ValueError, KeyError), match=r"damaged|holds no fit"):
            find_fit(_carrier(changed(record, path, None)), None, "vae")
    with pytest.raises(ValueError, match="damaged"):
        Fit.from_uns(sealed(record))


def test_an_incompletely_recorded_epoch_of_the_first_format_is_dropped() -> None:
    record = read_fit(FIRST)[0]
    record["history"]["elbo_train"] = np.append(record["history"]["elbo_train"], 1.0)
    assert {len(values) for values in Fit.from_uns(record).history.values()} == {2}


def _carrier(record: Mapping[str, Any]) -> ad.AnnData:
    return ad.AnnData(np.zeros((1, 1), dtype=np.float32), uns={"vae": record})
