"""The demonstration."""

from __future__ import annotations

import re

import anndata as ad
import pytest

from vxpress._cli import main

from ._command import listing


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
