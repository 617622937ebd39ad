"""Files are those of anndata, and a disk that is full at any moment is an error."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from vxpress._h5ad import write_h5ad


@pytest.fixture
def adata() -> ad.AnnData:
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(1.0, (60, 40)).astype(np.float32))
    obs = pd.DataFrame(
        {"type": rng.choice(["a", "b"], 60), "age": rng.normal(size=60)}, index=[f"c{i}" for i in range(60)]
    )
    adata = ad.AnnData(counts, obs=obs, uns={"fit": {"weights": rng.normal(size=(30, 20)), "name": "x"}})
    adata.layers["dense"] = rng.normal(size=(60, 40))
    adata.raw = adata.copy()
    return adata


@contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """Within this block no file may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def contents(file: h5py.File) -> dict[str, tuple[dict[str, str], bytes]]:
    """Attributes and bytes of everything in a file."""
    found = {}

    def visit(name: str, entry: h5py.Group | h5py.Dataset) -> None:
        data = np.asarray(entry[()]) if isinstance(entry, h5py.Dataset) else np.zeros(0)
        found[name] = {k: str(v) for k, v in entry.attrs.items()}, b"|".join(str(x).encode() for x in data.ravel())

    visit("/", file["/"])
    file.visititems(visit)
    return found


def test_the_file_is_that_of_anndata(adata: ad.AnnData, tmp_path: Path) -> None:
    write_h5ad(adata, tmp_path / "ours.h5ad")
    adata.write_h5ad(tmp_path / "theirs.h5ad")
    with h5py.File(tmp_path / "ours.h5ad") as ours, h5py.File(tmp_path / "theirs.h5ad") as theirs:
        assert contents(ours) == contents(theirs)
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "ours.h5ad").raw.X.toarray(), adata.raw.X.toarray())


def test_a_full_disk_is_an_error_wherever_it_ends(adata: ad.AnnData, tmp_path: Path) -> None:
    write_h5ad(adata, tmp_path / "whole.h5ad")
    size = (tmp_path / "whole.h5ad").stat().st_size
    for i, n_bytes in enumerate([0, 100, *np.linspace(1000, size - 1, 12).astype(int)]):
        with room_for(int(n_bytes)), pytest.raises(OSError, match="too large"):
            write_h5ad(adata, tmp_path / f"{i}.h5ad")
