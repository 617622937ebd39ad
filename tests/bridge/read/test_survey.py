"""Counts on disk are checked in one pass and read again in parts, with the values of counts in memory."""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

import vxpress as vx
from vxpress.bridge.read import survey
from vxpress.bridge.read.counts import CountData, read_counts
from vxpress.bridge.read.stored_rows import stored_rows
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Source, Stored

N, G = 300, 17
X = np.random.default_rng(0).poisson(0.6, (N, G)).astype(np.float32)
ALL = np.ones(G, dtype=bool)


def _h5ad(x: object, path: Path) -> ad.AnnData:
    ad.AnnData(x).write_h5ad(path / "x.h5ad", compression="gzip")
    return ad.read_h5ad(path / "x.h5ad", backed="r")


def _zarr(x: object, path: Path, version: int, **sharded: bool) -> ad.AnnData:
    with warnings.catch_warnings(), ad.settings.override(zarr_write_format=version, **sharded):
        # of anndata 0.13, about version 2
        warnings.simplefilter("ignore", DeprecationWarning)
        ad.AnnData(x).write_zarr(path / "x.zarr")
    return vx.io.open_store(path / "x.zarr")


def _dask(x: object, path: Path) -> ad.AnnData:
    import dask.array as da

    return ad.AnnData(da.from_array(x, chunks=(70, G)))


def _lazy(x: object, path: Path) -> ad.AnnData:
    import dask.array as da

    csr = sparse.csr_matrix(x)
    parts = [da.from_array(csr[a : a + 70], chunks=-1, asarray=False) for a in range(0, N, 70)]
    return ad.AnnData(da.concatenate(parts))


KINDS: dict[str, Callable[[np.ndarray, Path], ad.AnnData]] = {
    "h5ad": lambda x, path: _h5ad(sparse.csr_matrix(x), path),
    "h5ad of integers": lambda x, path: _h5ad(sparse.csr_matrix(x.astype(np.int64)), path),
    "dense h5ad": _h5ad,
    "zarr 2": lambda x, path: _zarr(sparse.csr_matrix(x), path, 2),
    "zarr 3": lambda x, path: _zarr(sparse.csr_matrix(x), path, 3),
    "shards": lambda x, path: _zarr(sparse.csr_matrix(x), path, 3, auto_shard_zarr_v3=True),
    "dense zarr": lambda x, path: _zarr(x, path, 3),
    "dask": _dask,
    "sparse dask": _lazy,
}


@pytest.fixture(autouse=True)
def _stay_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "MEMORY_BYTES", 0)


def _cells(counts: CountData) -> tuple[Source, Source | None]:
    n = len(counts.inside_n)
    covariates = torch.zeros(n, 1), Covariates(torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0))
    return counts.cells(*covariates), counts.cells_outside(*covariates)


def _dense(source: Source | None) -> np.ndarray:
    assert isinstance(source, Stored)
    rows = torch.arange(len(source))
    return np.concatenate([b.counts.dense().numpy() for b in source.sparse_batches(list(rows.split(40)))])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_matrix_on_disk_is_read(kind: str, tmp_path: Path) -> None:
    adata = KINDS[kind](X, tmp_path)
    modelled = np.arange(G) % 3 > 0
    counts = read_counts(adata, None, modelled)
    inside, outside = _cells(counts)
    np.testing.assert_array_equal(_dense(inside), X[:, modelled])
    np.testing.assert_array_equal(_dense(outside), X[:, ~modelled])
    np.testing.assert_array_equal(counts.inside_n, X[:, modelled].sum(1))
    np.testing.assert_array_equal(counts.total_n, X.sum(1))
    np.testing.assert_array_equal(counts.inside_g, X[:, modelled].sum(0))
    rows = torch.tensor([299, 4, 4, 120])
    np.testing.assert_array_equal(inside.batch(rows).x_ng, X[rows][:, modelled])


@pytest.mark.parametrize("kind", ["h5ad", "dense zarr", "sparse dask"])
def test_views_read_only_what_they_show(kind: str, tmp_path: Path) -> None:
    adata, rng = KINDS[kind](X, tmp_path), np.random.default_rng(1)
    rows, columns = rng.permutation(N)[:120], np.sort(rng.permutation(G)[:9])
    for view, expected in (
        (adata[rows], X[rows]),
        (adata[:, columns], X[:, columns]),
        (adata[20:80, columns], X[20:80][:, columns]),
        (adata[np.arange(N) % 2 == 0], X[::2]),
    ):
        counts = read_counts(view, None, np.ones(view.n_vars, dtype=bool))
        np.testing.assert_array_equal(_dense(_cells(counts)[0]), expected)
        np.testing.assert_array_equal(counts.total_n, expected.sum(1))


def test_genes_are_read_in_the_requested_order_and_absent_ones_are_empty(tmp_path: Path) -> None:
    adata = KINDS["h5ad"](X, tmp_path)
    genes = np.array([5, -1, 0, 16])
    counts = read_counts(adata, None, np.array([True, True, True, False]), genes)
    inside, outside = _cells(counts)
    np.testing.assert_array_equal(_dense(inside), np.column_stack((X[:, 5], np.zeros(N), X[:, 0])))
    np.testing.assert_array_equal(_dense(outside), X[:, [16]])
    np.testing.assert_array_equal(counts.total_n, X[:, [5, 0, 16]].sum(1))


def test_repeated_and_unsorted_entries_and_stored_zeros_are_put_right_in_every_pass(tmp_path: Path) -> None:
    x = sparse.csr_matrix(X)
    order = np.concatenate([np.arange(a, b)[::-1] for a, b in zip(x.indptr[:-1], x.indptr[1:], strict=True)])
    x = sparse.csr_matrix((x.data[order], x.indices[order], x.indptr), shape=x.shape)
    x.data[:20] = 0.0
    expected = x.toarray()
    counts = read_counts(_h5ad(x, tmp_path), None, ALL)
    source = _cells(counts)[0]
    np.testing.assert_array_equal(_dense(source), expected)
    found = source.load(torch.arange(N))
    assert bool((found.data != 0).all())


def test_small_counts_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = KINDS["h5ad"](X, tmp_path)
    monkeypatch.setattr(survey, "MEMORY_BYTES", 10**6)
    for read in (read_counts(adata, None, ALL), read_counts(adata[::-1], None, ALL)):
        source = _cells(read)[0]
        assert isinstance(source, Cells)
    np.testing.assert_array_equal(source.load().dense(torch.arange(N)), X[::-1])
    monkeypatch.setattr(survey, "MEMORY_BYTES", 0)
    assert isinstance(_cells(read_counts(adata, None, ALL, in_memory=True))[0], Cells)


@pytest.mark.parametrize(("value", "match"), [(0.5, "not whole numbers"), (-1.0, "negative"), (np.nan, "NaN")])
def test_values_that_are_no_counts_are_refused(value: float, match: str, tmp_path: Path) -> None:
    x = X.copy()
    x[250, 3] = value
    with pytest.raises(ValueError, match=match):
        read_counts(KINDS["h5ad"](x, tmp_path), None, ALL)


def test_a_closed_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    adata = KINDS["h5ad"](X, tmp_path)
    source = _cells(read_counts(adata, None, ALL))[0]
    adata.file.close()
    with pytest.raises(RuntimeError, match=r"Rows 0 to .* of adata.X could not be read.*has to stay open"):
        source.load()


@pytest.mark.parametrize("kind", ["dask", "sparse dask"])
def test_chunks_that_several_threads_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = stored_rows(KINDS[kind](X, tmp_path).X, "adata.X")
    assert rows is not None
    barrier, here, missed = threading.Barrier(2), threading.local(), list[int]()

    # the threads meet between storing a chunk and using it
    def kept(self: object, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        if name == "_last" and not hasattr(here, "met"):
            here.met = True
            barrier.wait(10)

    monkeypatch.setattr(type(rows), "__setattr__", kept, raising=False)

    def read(start: int) -> None:
        indptr, indices, data = rows.arrays(start, start + 20)
        found = sparse.csr_matrix((data, indices, indptr), shape=(20, G)).toarray()
        missed.append(int((found != X[start : start + 20]).sum()))

    threads = [threading.Thread(target=read, args=(start,)) for start in (10, 150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missed == [0, 0]


@pytest.mark.parametrize(("kind", "chunk"), [("zarr 2", "0"), ("zarr 3", "c/0"), ("shards", "c/0")])
def test_a_zarr_store_without_a_chunk_is_an_error(kind: str, chunk: str, tmp_path: Path) -> None:
    adata = KINDS[kind](X, tmp_path)
    (tmp_path / "x.zarr/X/indices" / chunk).unlink()
    lazy = ad.experimental.read_lazy(tmp_path / "x.zarr")
    for each in (adata, lazy, lazy[:100, :30]):
        with pytest.raises(ValueError, match=r"adata.X is damaged: its array 'indices' has 0 of 1 chunks"):
            read_counts(each, None, ALL[: each.n_vars])
    for function in (vx.pp.library_size, partial(vx.pp.highly_variable_genes, n_top_genes=3)):
        for each in (adata, lazy):
            with pytest.raises(ValueError, match=r"adata.X is damaged: its array 'indices'"):
                function(each)


def test_a_large_matrix_by_genes_is_refused_with_the_call_that_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata = _h5ad(sparse.csc_matrix(X), tmp_path)
    np.testing.assert_array_equal(read_counts(adata, None, ALL).total_n, X.sum(1))
    monkeypatch.setattr("vxpress.bridge.read.stored_rows.CSC_BYTES", 0)
    with pytest.raises(ValueError, match=r"stored by genes \(CSC\).*tocsr"):
        read_counts(adata, None, ALL)


@pytest.mark.parametrize("dense", [False, True])
def test_a_zarr_store_that_was_removed_or_replaced_is_named(dense: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    adata = ad.AnnData(X if dense else sparse.csr_matrix(X))
    adata.write_zarr(path)
    opened = [vx.io.open_store(path), ad.experimental.read_lazy(path)]
    shutil.rmtree(path)
    for each in opened:
        with pytest.raises(FileNotFoundError, match=r"'X' in .*a.zarr, which does not exist any more"):
            read_counts(each, None, ALL)
    adata[:20].copy().write_zarr(path)
    for each in opened:
        with pytest.raises(ValueError, match=rf"was {adata.n_obs} x {G} when it was opened and is 20 x {G} now"):
            read_counts(each, None, ALL)
        with pytest.raises(ValueError, match=rf"was {adata.n_obs} x {G} when it was opened and is 20 x {G} now"):
            vx.pp.library_size(each)
