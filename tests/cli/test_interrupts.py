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
