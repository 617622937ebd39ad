"""Files appear whole or not at all."""

from __future__ import annotations

import os
import stat

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from vxpress import _cli
from vxpress._command_output import write

from ._command import QUICK, fit, listing


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
    read = _cli.read_input

    def meanwhile(path, **options):
        out.write_bytes(b"somebody's")
        return read(path, **options)

    monkeypatch.setattr(_cli, "read_input", meanwhile)
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
