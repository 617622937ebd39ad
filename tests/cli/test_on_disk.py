"""The command with counts that stay on disk: the results of counts in memory, written into any store."""

from __future__ import annotations

import signal
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from anndata.io import write_elem
from scipy import sparse

import vxpress as vx
from vxpress import _command_input
from vxpress.bridge.read import survey
from vxpress.core.training import Training

from ._command import QUICK, fit, listing

pytest.importorskip("dask")
zarr = pytest.importorskip("zarr")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same counts as a file, a zarr store and a collection."""
    folder = tmp_path_factory.mktemp("inputs")
    adata = vx.datasets.simulate(120, 40, n_batches=2)
    adata.X = sparse.csr_matrix(adata.X)
    adata.write_h5ad(folder / "in.h5ad")
    write_elem(zarr.open_group(str(folder / "in.zarr"), mode="w", zarr_format=3), "/", adata)
    group = zarr.open_group(str(folder / "parts.zarr"), mode="w", zarr_format=3)
    for i, cells in enumerate((slice(0, 70), slice(70, None))):
        write_elem(group, f"dataset_{i}", adata[cells].copy())
    return {"h5ad": folder / "in.h5ad", "zarr": folder / "in.zarr", "collection": folder / "parts.zarr"}


@pytest.mark.parametrize(
    ("kind", "output"), [("h5ad", "out.h5ad"), ("zarr", "out.zarr"), ("collection", "out.h5ad"), ("h5ad", "out.zarr")]
)
def test_results_equal_those_from_memory(inputs, tmp_path, capsys, kind, output):
    assert fit(inputs["h5ad"], "-o", tmp_path / "memory.h5ad", "--batch-key", "batch", "--no-on-disk", *QUICK) == 0
    arguments = ["--batch-key", "batch", *QUICK] + (["--on-disk"] if kind != "collection" else [])
    assert fit(inputs[kind], "-o", tmp_path / output, *arguments) == 0
    assert f"opened {inputs[kind]}: 120 cells x 40 genes" in capsys.readouterr().out
    expected = ad.read_h5ad(tmp_path / "memory.h5ad")
    found = (ad.read_h5ad if output.endswith("h5ad") else ad.read_zarr)(tmp_path / output)
    assert (found.X != expected.X).nnz == 0
    # small counts are read whole, so that even the order of the minibatches is the same
    np.testing.assert_array_equal(found.obsm["X_vae"], expected.obsm["X_vae"])
    np.testing.assert_array_equal(found.layers["vae_normalized"], expected.layers["vae_normalized"])
    assert listing(tmp_path) == sorted(["memory.h5ad", output])


def test_the_input_may_be_the_output(inputs, tmp_path):
    import shutil

    path = tmp_path / "own.zarr"
    shutil.copytree(inputs["zarr"], path)
    before = (path / "X" / "data" / "c" / "0").stat().st_ino
    assert fit(path, "-o", path, "--overwrite", "--on-disk", "--n-top-genes", "30", *QUICK) == 0
    assert (path / "X" / "data" / "c" / "0").stat().st_ino == before
    assert int(ad.read_zarr(path).var["highly_variable"].sum()) == 30
    assert listing(tmp_path) == ["own.zarr"]


def test_columns_of_a_collection_are_checked_first(inputs, tmp_path, capsys):
    assert fit(inputs["collection"], "-o", tmp_path / "out.h5ad", "--batch-key", "no") == 2
    assert "'no' is not a column of obs" in capsys.readouterr().err


def test_the_size_decides(inputs, monkeypatch):
    def decided(kind: str, free: int | None) -> bool:
        monkeypatch.setattr(_command_input, "free_memory", lambda: free)
        return _command_input.reads_from_disk(inputs[kind], on_disk=None)

    assert not decided("h5ad", 10**9)
    assert decided("h5ad", 1000)
    assert not decided("zarr", None)
    assert not _command_input.reads_from_disk(inputs["h5ad"], on_disk=False)
    enough = next(free for free in range(1000, 10**6, 1000) if not decided("h5ad", free))
    # every process of a machine has its own copy
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert decided("h5ad", enough)
    assert not decided("h5ad", 2 * enough)
    for on_disk in (True, False):
        assert _command_input.is_on_disk(_command_input.read_input(inputs["h5ad"], on_disk=on_disk)) is on_disk


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_fit_that_continues_reads_as_before(inputs, tmp_path, monkeypatch, capsys, on_disk):
    """The free memory may be another one when the same command is started again."""
    monkeypatch.setattr(survey, "MEMORY_BYTES", 0)
    folder, step = tmp_path / "checkpoints", Training.step

    def stopped(training, batch):
        step(training, batch)
        if training.outcome.n_steps == 1:
            signal.raise_signal(signal.SIGTERM)

    command = [inputs["h5ad"], "-o", tmp_path / "out.h5ad", "--checkpoint-dir", folder, "--resume", *QUICK]
    monkeypatch.setattr(_command_input, "free_memory", lambda: 0 if on_disk else 10**9)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", stopped)
        assert fit(*command) == 143
    monkeypatch.setattr(_command_input, "free_memory", lambda: 10**9 if on_disk else 0)
    assert fit(*command) == 0
    assert "continuing from" in capsys.readouterr().out


def test_free_memory_is_between_nothing_and_everything():
    free = _command_input.free_memory()
    assert free is None or 0 <= free < 2**50
