"""The command line: exit status, messages, files that appear whole or not at all, and the fit of the Python call."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import vxpress as vx
from vxpress import _cli
from vxpress._cli import main
from vxpress._command_output import write
from vxpress._fit_options import fit_options, further_options, given
from vxpress.core.training import Training

QUICK = ["--max-epochs", "2", "--n-latent", "3"]


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    path = tmp_path / "in.h5ad"
    vx.datasets.simulate(120, 40, n_batches=2).write_h5ad(path)
    return path


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fit(*arguments: str | Path) -> int:
    return main(["fit", *map(str, arguments)])


# usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "command"),
        (["fly"], "invalid choice"),
        (["fit", "in.h5ad"], "-o/--output"),
        (["fit", "in.csv", "-o", "out.h5ad"], "'in.csv' should end in .h5ad or .zarr"),
        (["fit", "in.h5ad", "-o", "out.loom"], "'out.loom' should end in .h5ad or .zarr"),
        (["fit", "in.h5ad", "-o", "out.h5ad", "--n-top-genes", "0"], "'0' should be a whole number above 0"),
        (["fit", "in.h5ad", "-o", "out.h5ad", "--max-epochs", "1.5"], "--max-epochs: '1.5' should be a whole number"),
        (["fit", "in.h5ad", "-o", "out.h5ad", "--beta", "much"], "--beta: 'much' should be a number"),
        (["fit", "in.h5ad", "-o", "out.h5ad", "--speed", "9"], "unrecognized arguments: --speed 9"),
        (["fit", "in.h5ad", "-o", "out.h5ad", "--rng", "one"], "'one' should be a whole number"),
        (["fit", "in.h5ad", "-o", "out.h5ad", "--likelihood", "gamma"], "invalid choice"),
    ],
)
def test_wrong_usage_is_status_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_help_and_version_are_status_0(capsys):
    assert main(["fit", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "vxpress fit counts.h5ad -o fitted.h5ad" in said
    assert "Dimensions of the latent space; 20 by default" in said
    assert "--n-latent N" in said
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vxpress ")


def test_help_imports_neither_torch_nor_scanpy():
    code = "import sys, vxpress._cli as c; c.main(['--help']); sys.exit(bool({'torch', 'scanpy', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


# wrong data and settings


def test_wrong_data_are_status_1_with_one_line(counts, tmp_path, capsys):
    out = tmp_path / "out.h5ad"
    normalised = vx.datasets.simulate(20, 10)
    normalised.X = normalised.X * 0.5
    normalised.write_h5ad(tmp_path / "normalised.h5ad")
    (tmp_path / "broken.h5ad").write_bytes(b"no HDF5")
    before = listing(tmp_path)
    cases: list[tuple[list[str | Path], str]] = [
        ([tmp_path / "broken.h5ad", "-o", out], "cannot be read as an AnnData"),
        ([tmp_path / "normalised.h5ad", "-o", out], "not whole numbers"),
    ]
    for arguments, message in cases:
        assert fit(*arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("vxpress: ")
        assert message in error
        assert "Traceback" not in error
        assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-key", "nothing"], "--batch-key: 'nothing' is not a column of obs of .*in.h5ad .found: group, batch"),
        (["--labels-key", "nothing", "--dispersion", "gene-label"], "--labels-key: 'nothing' is not a column of obs"),
        (["--categorical-covariate-keys", "batch", "x"], "--categorical-covariate-keys: 'x' is not a column of obs"),
        (["--continuous-covariate-keys", "x"], "--continuous-covariate-keys: 'x' is not a column of obs"),
        (["--library", "x"], "--library: 'x' is not a column of obs"),
        (["--mask-var", "x"], "--mask-var: 'x' is not a column of var"),
        (["--layer", "nothing"], "--layer: 'nothing' is not a layer of .*found: none"),
        (["--device", "abacus"], "device='abacus'"),
        (["--n-latent", "5000"], "n_latent=5000"),
        (["--max-epochs", "0"], "max_epochs=0"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--beta", "-1"], "beta=-1"),
        (["--rng", "-1"], "rng=-1"),
        (["--learning-rate", "99"], "learning_rate=99"),
        (["--validation-fraction", "2"], "validation_fraction=2"),
        (["--cure", "--validation-fraction", "0"], "validation_fraction=0"),
        (["--objective", "iwae", "--prior", "diffusion"], "objective='iwae'"),
        (["--key-added", "a/b"], "'a/b'"),
        (["--target-sum", "0"], "target_sum=0"),
    ],
)
def test_what_the_file_lacks_and_settings_out_of_range_are_status_2_before_data_are_read(
    counts, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr(_cli, "_read", lambda _: pytest.fail("the data were read"))
    assert fit(counts, "-o", tmp_path / "out.h5ad", *arguments) == 2
    error = capsys.readouterr().err
    assert re.match(rf"vxpress: .*{message}", error)
    assert len(error.splitlines()) == 1
    assert listing(tmp_path) == ["in.h5ad"]


def test_paths_that_cannot_be_are_status_2(counts, tmp_path, capsys):
    out = tmp_path / "out.h5ad"
    cases: list[tuple[list[str | Path], str]] = [
        ([tmp_path / "absent.h5ad", "-o", out], "does not exist"),
        ([counts, "-o", tmp_path / "nowhere" / "out.h5ad"], "is not a folder"),
        ([counts, "-o", counts], "--overwrite"),
    ]
    for arguments, message in cases:
        assert fit(*arguments) == 2
        assert message in capsys.readouterr().err
        assert listing(tmp_path) == ["in.h5ad"]


def test_a_file_without_x_needs_a_layer(tmp_path, capsys):
    adata = vx.datasets.simulate(60, 20)
    adata.layers["counts"], adata.X = adata.X, None
    path = tmp_path / "in.h5ad"
    adata.write_h5ad(path)
    assert fit(path, "-o", tmp_path / "out.h5ad") == 2
    assert "has no X. Name the layer that holds the counts with --layer (found: counts)" in capsys.readouterr().err
    assert fit(path, "-o", tmp_path / "out.h5ad", "--layer", "counts", *QUICK) == 0


def test_interrupt_is_status_130_and_leaves_nothing(counts, tmp_path, monkeypatch, capsys):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(vx.tl, "fit_vae", interrupted)
    assert fit(counts, "-o", tmp_path / "out.h5ad") == 130
    assert capsys.readouterr().err == "vxpress: interrupted; the output was not written.\n"
    assert listing(tmp_path) == ["in.h5ad"]


def test_training_that_was_cut_short_is_written_with_status_130(counts, tmp_path, monkeypatch, capsys):
    validate, n_calls = Training.validate, itertools.count(1)

    def cut_short(*args, **kwargs):
        # once an epoch
        if next(n_calls) == 3:
            raise KeyboardInterrupt
        return validate(*args, **kwargs)

    monkeypatch.setattr(Training, "validate", cut_short)
    out = tmp_path / "out.h5ad"
    assert fit(counts, "-o", out, "--max-epochs", "9", "--n-latent", "3") == 130
    said = capsys.readouterr()
    assert re.search(
        r"vxpress: training was interrupted; .*out\.h5ad holds its best state so far, of epoch [12]\.", said.err
    )
    assert f"wrote {out}" in said.out
    assert listing(tmp_path) == ["in.h5ad", "out.h5ad"]
    found = ad.read_h5ad(out)
    assert str(found.uns["vae"]["params"]["stopped"]) == "interrupted"
    assert len(found.uns["vae"]["history"]["elbo_train"]) == 2
    vx.tl.encode(found)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_to_stop_keeps_what_was_trained_and_is_the_status(counts, tmp_path, monkeypatch, capsys, name, status):
    validate, n_calls, number = Training.validate, itertools.count(1), getattr(signal, name)
    before = signal.getsignal(number)

    def cut_short(*args, **kwargs):
        if next(n_calls) == 3:
            signal.raise_signal(number)
        return validate(*args, **kwargs)

    monkeypatch.setattr(Training, "validate", cut_short)
    out = tmp_path / "out.h5ad"
    assert fit(counts, "-o", out, "--max-epochs", "9", "--n-latent", "3") == status
    assert signal.getsignal(number) == before
    assert "holds its best state so far" in capsys.readouterr().err
    assert str(ad.read_h5ad(out).uns["vae"]["params"]["stopped"]) == "interrupted"
    # before there is a state nothing is written
    monkeypatch.setattr(vx.tl, "fit_vae", lambda *_, **__: signal.raise_signal(number))
    assert fit(counts, "-o", tmp_path / "none.h5ad") == status
    assert "the output was not written" in capsys.readouterr().err
    assert listing(tmp_path) == ["in.h5ad", "out.h5ad"]


def test_a_demo_that_was_cut_short_writes_nothing(tmp_path, monkeypatch, capsys):
    whole = vx.tl.fit_vae

    def cut_short(adata, *args, **kwargs):
        whole(adata, *args, max_epochs=1, denoised=False, **kwargs)
        adata.uns["vae"]["params"]["stopped"] = "interrupted"

    monkeypatch.setattr(vx.tl, "fit_vae", cut_short)
    assert main(["demo", "-o", str(tmp_path / "demo")]) == 130
    assert capsys.readouterr().err == "vxpress: interrupted; the output was not written.\n"
    assert listing(tmp_path / "demo") == []


# the fit


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
    assert set(by_name) == (set(arguments) - {"adata", "options", "copy"}) | fields
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


# the file


def test_the_input_may_be_replaced(counts, tmp_path):
    assert fit(counts, "-o", counts, "--overwrite", *QUICK) == 0
    assert "X_vae" in ad.read_h5ad(counts).obsm
    assert listing(tmp_path) == ["in.h5ad"]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.filterwarnings("ignore::UserWarning:zarr", "ignore::FutureWarning:anndata")
def test_a_failed_write_keeps_the_old_output_and_leaves_nothing(counts, tmp_path, monkeypatch, capsys, suffix):
    out = tmp_path / f"out{suffix}"
    old = AnnData(np.ones((2, 2), dtype=np.float32))
    write(old, out, overwrite=False)
    before = listing(tmp_path)

    def half(_self, path, *_args, **_kwargs):
        if suffix == ".zarr":
            path.mkdir()
            path /= "part"
        path.write_bytes(b"half a file")
        msg = "No space left on device"
        raise OSError(msg)

    monkeypatch.setattr("vxpress._h5ad.write_h5ad", half)
    monkeypatch.setattr(AnnData, "write_zarr", half)
    assert fit(counts, "-o", out, "--overwrite", *QUICK) == 1
    assert "No space left" in capsys.readouterr().err
    assert listing(tmp_path) == before
    read = ad.read_zarr if suffix == ".zarr" else ad.read_h5ad
    assert np.array_equal(read(out).X, old.X)


def test_an_output_that_came_into_being_meanwhile_is_kept(counts, tmp_path, monkeypatch):
    out = tmp_path / "out.h5ad"
    read = _cli._read

    def meanwhile(path):
        out.write_bytes(b"somebody's")
        return read(path)

    monkeypatch.setattr(_cli, "_read", meanwhile)
    assert fit(counts, "-o", out, *QUICK) == 1
    assert out.read_bytes() == b"somebody's"
    assert listing(tmp_path) == ["in.h5ad", "out.h5ad"]


def test_a_folder_is_no_h5ad(counts, tmp_path, capsys):
    (tmp_path / "out.h5ad").mkdir()
    assert fit(counts, "-o", tmp_path / "out.h5ad", "--overwrite") == 2
    assert "is a folder" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="modes and links of POSIX")
def test_links_and_modes_are_those_of_a_plain_write(counts, tmp_path):
    adata = ad.read_h5ad(counts)
    write(adata, tmp_path / "real.h5ad", overwrite=False)
    adata.write_h5ad(tmp_path / "plain.h5ad")
    assert stat.S_IMODE((tmp_path / "real.h5ad").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain.h5ad").stat().st_mode
    )
    link = tmp_path / "link.h5ad"
    link.symlink_to(tmp_path / "real.h5ad")
    write(adata[:5].copy(), link, overwrite=True)
    assert link.is_symlink()
    assert ad.read_h5ad(tmp_path / "real.h5ad").n_obs == 5


def test_strings_as_pandas_3_holds_them_are_written(counts, tmp_path):
    adata = ad.read_h5ad(counts)
    adata.obs["note"] = pd.array(["a", None] * (adata.n_obs // 2), dtype="string")
    write(adata, tmp_path / "out.h5ad", overwrite=False)
    assert list(ad.read_h5ad(tmp_path / "out.h5ad").obs["note"].isna()[:2]) == [False, True]


# the demo


@pytest.mark.slow
def test_demo_end_to_end(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "-o", str(out)]) == 0
    said = capsys.readouterr().out
    figures = ["history.png", "integration.png", "kl.png", "latent.png", "posterior.png"]
    assert listing(out) == [*figures, "vxpress_demo.h5ad"]
    adata = ad.read_h5ad(out / "vxpress_demo.h5ad")
    assert {"X_vae", "X_umap"} <= set(adata.obsm)
    assert {"leiden", "batch", "cell_type"} <= set(adata.obs)
    assert str(adata.uns["vae"]["diagnostics"]["verdict"]) in said
    rows = {
        line.split()[0]: [float(value) for value in line.split()[1:]]
        for line in said.splitlines()
        if re.match(r"X_\w+ +0", line)
    }
    assert list(rows) == ["X_pca", "X_combat", "X_vae"]
    mixing, purity, ari = ({name: row[i] for name, row in rows.items()} for i in range(3))
    assert mixing["X_vae"] > mixing["X_pca"] + 0.5
    assert purity["X_vae"] > max(purity["X_pca"], purity["X_combat"])
    assert ari["X_vae"] > ari["X_pca"] + 0.2
    assert "simulated" in said
    assert all((out / name).stat().st_size > 10_000 for name in listing(out))


def test_demo_does_not_write_over_a_file(tmp_path, capsys):
    (tmp_path / "demo").write_text("mine")
    assert main(["demo", "-o", str(tmp_path / "demo")]) == 1
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "demo").read_text() == "mine"


def test_prior_objective_and_cure_are_those_of_the_call(counts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5ad"
    assert fit(counts, "-o", out, *QUICK, "--prior", "mixture", "--objective", "iwae", "--cure") == 0
    fitted, adata = ad.read_h5ad(out), ad.read_h5ad(counts)
    vx.tl.fit_vae(adata, max_epochs=2, n_latent=3, prior="mixture", objective="iwae", cure=True)
    np.testing.assert_array_equal(fitted.obsm["X_vae"], adata.obsm["X_vae"])
    assert "cure" in fitted.uns["vae"]["diagnostics"]
