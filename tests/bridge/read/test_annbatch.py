"""CSR matrices in zarr stores are read through annbatch, if it is installed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata.abc import CSRDataset
from scipy import sparse

import vxpress as vx
from vxpress.bridge.read.annbatch import SeveralPlaces, annbatch_reads
from vxpress.bridge.read.stored_rows import stored_rows

zarr = pytest.importorskip("zarr")

SPANS = ([(0, 3)], [(2, 40), (55, 61), (118, 150)], [(59, 61), (60, 62), (149, 150)], [(0, 150)])


def written(
    folder: Path, sizes: Sequence[int], types: Sequence[type] = (np.uint16,)
) -> tuple[list[CSRDataset], sparse.csr_matrix]:
    """Write matrices of these numbers of rows, with these types of indices in turn, and return them as one too."""
    rng = np.random.default_rng(0)
    stored, whole = [], []
    for i, size in enumerate(sizes):
        counts = sparse.random(size, 30, 0.3, format="csr", dtype=np.float32, rng=rng)
        counts.data = np.ceil(5 * counts.data)
        group = zarr.open_group(folder / f"part{i}.zarr", mode="w", zarr_format=3)
        ad.io.write_elem(group, "X", counts)
        indices = group["X"]["indices"][:].astype(types[i % len(types)])
        del group["X"]["indices"]
        group["X"].create_array("indices", data=indices, chunks=(16,), shards=(64,))
        stored.append(ad.io.sparse_dataset(zarr.open_group(folder / f"part{i}.zarr", mode="r")["X"]))
        whole.append(counts)
    return stored, sparse.vstack(whole, format="csr")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[CSRDataset], sparse.csr_matrix]:
    pytest.importorskip("annbatch", reason="annbatch needs Python 3.12")
    return written(tmp_path_factory.mktemp("parts"), (60, 1, 57, 32))


@pytest.mark.parametrize("spans", SPANS)
def test_spans_across_the_parts(
    parts: tuple[list[CSRDataset], sparse.csr_matrix], spans: list[tuple[int, int]]
) -> None:
    stored, whole = parts
    found = SeveralPlaces(stored).read(spans)
    expected = sparse.vstack([whole[start:stop] for start, stop in spans], format="csr")
    assert found.shape == expected.shape
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_several_threads(parts: tuple[list[CSRDataset], sparse.csr_matrix]) -> None:
    stored, whole = parts
    places, differ = SeveralPlaces(stored), []

    def read(seed: int) -> None:
        for start in np.random.default_rng(seed).integers(0, 140, 20):
            found = places.read([(int(start), int(start) + 10)])
            differ.append((found != whole[start : start + 10]).nnz)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differ == [0] * 80


def test_rows_that_do_not_exist(parts: tuple[list[CSRDataset], sparse.csr_matrix]) -> None:
    with pytest.raises(ValueError, match="150 rows"):
        SeveralPlaces(parts[0]).read([(140, 151)])


def test_the_reader_of_a_matrix_in_zarr(
    parts: tuple[list[CSRDataset], sparse.csr_matrix], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, whole = parts[0][0], parts[1]
    monkeypatch.setattr("vxpress.bridge.read.stored_rows.TOGETHER_BYTES", 400)
    rows = stored_rows(matrix, "adata.X")
    assert rows is not None
    spans = [(0, 1), (3, 30), (40, 60)]
    for (start, stop), (indptr, indices, data) in zip(spans, rows.arrays_each(spans), strict=True):
        found = sparse.csr_matrix((data, indices, indptr), shape=(stop - start, 30))
        assert (found != whole[start:stop]).nnz == 0


def test_a_matrix_of_parts_with_different_types(tmp_path: Path) -> None:
    stored, whole = written(tmp_path, (60, 40), (np.uint16, np.int32))
    assert not annbatch_reads(stored)
    for i, matrix in enumerate(stored):
        group = zarr.open_group(tmp_path / "collection.zarr", mode="a")
        obs = pd.DataFrame(index=[f"cell {i}.{k}" for k in range(matrix.shape[0])])
        ad.io.write_elem(group, f"dataset_{i}", ad.AnnData(matrix.to_memory(), obs=obs))
    rows = stored_rows(vx.io.open_store(tmp_path / "collection.zarr").X, "adata.X")
    assert rows is not None
    ((indptr, indices, data),) = rows.arrays_each([(50, 70)])
    assert (sparse.csr_matrix((data, indices, indptr), shape=(20, 30)) != whole[50:70]).nnz == 0


def test_what_annbatch_reads(tmp_path: Path) -> None:
    (stored,), _ = written(tmp_path, (4,))
    assert annbatch_reads([stored]) is (find_spec("annbatch") is not None)
    ad.AnnData(sparse.eye(4, format="csr", dtype=np.float32)).write_h5ad(tmp_path / "cells.h5ad")
    assert not annbatch_reads([ad.read_h5ad(tmp_path / "cells.h5ad", backed="r").X])
    assert not annbatch_reads([stored, np.ones((2, 2))])
