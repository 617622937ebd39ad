"""The fit of the command is that of the Python call, and has all of its arguments."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import vxpress as vx
from vxpress import _cli
from vxpress._fit_options import fit_options, further_options, given

from ._command import QUICK, fit, listing


def test_fit_is_the_python_call_bit_for_bit(counts, tmp_path, capsys):
    out = tmp_path / "out.h5ad"
    arguments = [
        "--batch-key",
        "batch",
        "--continuous-covariate-keys",
        "library_size",
        "--rng",
        "3",
        "--likelihood",
        "zinb",
    ]
    assert fit(counts, "-o", out, "--n-top-genes", "30", *arguments, *QUICK) == 0
    expected = ad.read_h5ad(counts)
    vx.pp.highly_variable_genes(expected, n_top_genes=30, batch_key="batch")
    vx.tl.fit_vae(
        expected,
        "batch",
        continuous_covariate_keys=["library_size"],
        likelihood="zinb",
        rng=3,
        max_epochs=2,
        n_latent=3,
    )
    found = ad.read_h5ad(out)
    assert np.array_equal(found.obsm["X_vae"], expected.obsm["X_vae"])
    assert np.array_equal(found.obsm["X_vae_var"], expected.obsm["X_vae_var"])
    assert np.array_equal(found.layers["vae_normalized"], expected.layers["vae_normalized"])
    assert list(found.uns["vae"]["weights"]) == sorted(expected.uns["vae"]["weights"])
    for name, value in expected.uns["vae"]["weights"].items():
        assert np.array_equal(found.uns["vae"]["weights"][name], value)
    printed = capsys.readouterr().out
    assert "120 cells x 40 genes" in printed
    assert "held-out ELBO" in printed
    assert expected.uns["vae"]["diagnostics"]["verdict"] in printed
    assert f"wrote {out}" in printed


def test_fit_names_and_omits_as_told(counts, tmp_path):
    out = tmp_path / "out.h5ad"
    assert fit(counts, "-o", out, "--key-added", "mine", "--no-denoised", *QUICK) == 0
    found = ad.read_h5ad(out)
    assert found.obsm["mine"].shape == (120, 3)
    assert [name for name in found.layers if name is not None] == []
    assert "vae" not in found.uns


@pytest.mark.filterwarnings("ignore::UserWarning:zarr", "ignore::FutureWarning:anndata")
def test_fit_reads_and_writes_zarr(counts, tmp_path):
    out = tmp_path / "out.zarr"
    assert fit(counts, "-o", out, *QUICK, "--no-denoised") == 0
    assert fit(out, "-o", out, "--overwrite", "--key-added", "again", *QUICK, "--no-denoised") == 0
    found = ad.read_zarr(out)
    assert np.array_equal(found.obsm["X_vae"], found.obsm["again"])
    assert listing(tmp_path) == ["in.h5ad", "out.zarr"]


def test_every_argument_of_a_fit_is_an_option_and_reads_as_python_has_it():
    by_name = {option.name: option for option in (*fit_options(), *further_options())}
    arguments = inspect.signature(vx.tl.fit_vae).parameters
    fields = {field.name for field in dataclasses.fields(vx.tl.FitOptions)}
    # options of registered classes, which a command does not have
    fields -= {"prior_options", "decoder_options", "blocks"}
    assert set(by_name) == (set(arguments) - {"adata", "options", "copy", "modality", "modalities"}) | fields
    assert all(option.text and len(option.text) < 700 for option in by_name.values())
    parser = _cli._parser()

    def read(*words: str) -> dict:
        settings, further = given(parser.parse_args(["fit", "in.h5ad", "-o", "out.h5ad", *words]))
        return settings | further

    assert read() == {}
    examples: dict[str, tuple[list[str], object]] = {
        "batch_key": (["donor"], "donor"),
        "continuous_covariate_keys": (["age", "size"], ["age", "size"]),
        "n_latent": (["7"], 7),
        "beta": (["0.5"], 0.5),
        "likelihood": (["auto"], "auto"),
        "dispersion": (["gene-batch"], "gene-batch"),
        "mask_var": (["none"], None),
        "rng": (["none"], None),
        "layer": (["none"], "none"),
        "norm": (["none"], "none"),
        "learning_rate": (["1e-3"], 1e-3),
        "decoder": (["linear"], "linear"),
    }
    for name, (words, value) in examples.items():
        assert read(by_name[name].flag, *words) == {name: value}
    for name in ("cure", "denoised", "early_stopping", "progress", "keep_best"):
        assert read(f"--{name.replace('_', '-')}") == {name: True}
        assert read(f"--no-{name.replace('_', '-')}") == {name: False}


def test_options_of_fit_options_reach_the_fit(counts, tmp_path):
    out = tmp_path / "out.h5ad"
    assert fit(counts, "-o", out, *QUICK, "--dropout", "0.25", "--decoder", "linear", "--beta", "2") == 0
    params = ad.read_h5ad(out).uns["vae"]["params"]
    assert float(params["model"]["dropout"]) == 0.25
    assert str(params["model"]["decoder"]) == "linear"
    assert float(params["train"]["beta"]) == 2.0


def test_prior_objective_and_cure_are_those_of_the_call(counts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5ad"
    assert fit(counts, "-o", out, *QUICK, "--prior", "mixture", "--objective", "iwae", "--cure") == 0
    fitted, adata = ad.read_h5ad(out), ad.read_h5ad(counts)
    vx.tl.fit_vae(adata, max_epochs=2, n_latent=3, prior="mixture", objective="iwae", cure=True)
    np.testing.assert_array_equal(fitted.obsm["X_vae"], adata.obsm["X_vae"])
    assert "cure" in fitted.uns["vae"]["diagnostics"]
