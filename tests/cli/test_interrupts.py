"""A command that is interrupted: exit status, and what is written."""

from __future__ import annotations

import itertools
import os
import re
import signal

import anndata as ad
import pytest

import vxpress as vx
from vxpress._cli import main
from vxpress.core.training import Training

from ._command import fit, listing


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


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_with_checkpoints_a_signal_to_stop_stores_one_and_the_same_command_goes_on(
    counts, tmp_path, monkeypatch, warned, capsys
):
    expected, out, folder = tmp_path / "expected.h5ad", tmp_path / "out.h5ad", tmp_path / "checkpoints"
    settings = ["--max-epochs", "4", "--n-latent", "3", "--checkpoint-dir", folder, "--resume"]
    assert fit(counts, "-o", expected, *settings[:4]) == 0
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        validate, n_calls = Training.validate, itertools.count(1)

        def cut_short(*args, **kwargs):
            if next(n_calls) == 3:
                signal.raise_signal(signal.SIGTERM)
            return validate(*args, **kwargs)

        patch.setattr(Training, "validate", cut_short)
        assert fit(counts, "-o", out, *settings) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert re.search(r"stopped by SIGTERM.*after 2 of 4 epochs.*--resume", warned[-1])
    assert not out.exists()
    assert listing(folder) == ["lock", "training_1.safetensors"]
    capsys.readouterr()
    assert fit(counts, "-o", out, *settings) == 0
    continues = rf"continuing from {re.escape(str(folder / 'training_1.safetensors'))}: step \d+, after 2 of 4 epochs\n"
    assert re.search(continues, capsys.readouterr().out)
    assert ad.read_h5ad(out).uns["vae"]["sha256"] == ad.read_h5ad(expected).uns["vae"]["sha256"]
    # the output is stored, so the checkpoints are not needed any more
    assert not folder.exists()


def test_checkpoints_stay_until_the_output_is_written(counts, tmp_path, monkeypatch, capsys):
    folder, out = tmp_path / "checkpoints", tmp_path / "out.h5ad"
    settings = ["--max-epochs", "1", "--n-latent", "3", "--checkpoint-dir", folder]
    with monkeypatch.context() as patch:

        def full(*_args, **_kwargs):
            msg = "no space left on device"
            raise OSError(msg)

        patch.setattr("vxpress._cli.write", full)
        assert fit(counts, "-o", out, *settings) == 1
    assert listing(folder) == ["lock", "training_1.safetensors"]
    assert fit(counts, "-o", out, *settings) == 1
    assert "Continue it with" in capsys.readouterr().err
    monkeypatch.delattr(Training, "step")
    assert fit(counts, "-o", out, *settings, "--resume") == 0
    assert not folder.exists()
