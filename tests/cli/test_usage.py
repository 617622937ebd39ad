"""Wrong usage, data and settings: exit status and message."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import vxpress as vx
from vxpress import _cli
from vxpress._cli import main

from ._command import QUICK, fit, listing


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
        (["--n-threads", "0"], "n_threads=0"),
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
    monkeypatch.setattr(_cli, "read_input", lambda *_, **__: pytest.fail("the data were read"))
    assert fit(counts, "-o", tmp_path / "out.h5ad", *arguments) == 2
    error = capsys.readouterr().err
    assert re.match(rf"vxpress: .*{message}", error)
    assert len(error.splitlines()) == 1
    assert listing(tmp_path) == ["in.h5ad"]


def test_an_environment_that_cannot_be_is_status_2_before_data_are_read(counts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_cli, "read_input", lambda *_, **__: pytest.fail("the data were read"))
    monkeypatch.setenv("VXPRESS_NUM_THREADS", "all")
    assert fit(counts, "-o", tmp_path / "out.h5ad") == 2
    assert "VXPRESS_NUM_THREADS is 'all'" in capsys.readouterr().err


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
