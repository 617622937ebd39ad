"""Results depend on the values of a sparse matrix and not on how they are stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import vxpress as vx
from vxpress.bridge.read.matrix import canonical
from vxpress.core.data import Counts

# rows without counts, for which the messy matrices store zeros
EMPTY = (3, 70, 119)
QUICK: dict[str, Any] = {"n_latent": 3, "n_hidden": 8, "max_epochs": 1, "batch_size": 64, "denoised": False}


@pytest.fixture(scope="module")
def plain() -> ad.AnnData:
    adata = vx.datasets.simulate(380, 30, n_groups=2, n_batches=2, library_mean=80, rng=3)
    x = sparse.csr_matrix(adata.X).toarray().astype(np.float32)
    x[list(EMPTY)] = 0
    adata.X = sparse.csr_matrix(x)
    adata.obs["library_size"] = x.sum(1)
    return adata


def _messy_csr(x: np.ndarray) -> sparse.csr_matrix:
    """The same values: some stored in two parts, all zeros of some rows stored, in random order."""
    rng = np.random.default_rng(0)
    data, indices, indptr = [], [], [0]
    for i, row in enumerate(x):
        gene = np.flatnonzero((row > 0) | (i % 3 == 0))
        value = row[gene]
        part = np.minimum(1, value) * (rng.random(len(gene)) < 0.3)
        gene, value = np.concatenate((gene, gene)), np.concatenate((value - part, part))
        order = rng.permutation(len(gene))
        data.append(value[order])
        indices.append(gene[order])
        indptr.append(indptr[-1] + len(gene))
    return sparse.csr_matrix((np.concatenate(data), np.concatenate(indices), np.array(indptr)), shape=x.shape)


def _messy_csc(x: np.ndarray) -> sparse.csc_matrix:
    return _messy_csr(x.T).T


KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "csr": _messy_csr,
    "csc": _messy_csc,
    "csr_array": lambda x: sparse.csr_array(_messy_csr(x)),
    "dense": lambda x: x,
}


def _with(adata: ad.AnnData, x: Any) -> ad.AnnData:
    return ad.AnnData(x, obs=adata.obs.copy(), var=adata.var.copy())


def _run(adata: ad.AnnData) -> dict[str, Any]:
    """The results of every function that reads counts for these cells."""
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    found: dict[str, Any] = {}
    with pytest.warns(UserWarning, match="3 cell"):
        vx.pp.library_size(adata, overwrite=True)
    vx.pp.highly_variable_genes(adata, n_top_genes=20)
    vx.tl.fit_vae(adata, "batch", validation_fraction=0.6, **QUICK)
    vx.tl.fit_vae(adata, "batch", validation_fraction=0.6, rng=1, key_added="other", **QUICK)
    vx.tl.log_likelihood(adata, n_samples=2)
    vx.tl.predictive_check(adata, n_draws=2)
    vx.tl.denoise(adata, own_counts=True, key_added="have_counts")
    vx.tl.rank_genes_groups(adata, "group", n_cells=20, n_draws=1)
    vx.tl.compare(adata, ["vae", "other"], n_samples=10)
    found["fit"] = adata
    cells = ad.AnnData(adata.X, obs=adata.obs[["batch", "library_size"]].copy(), var=adata.var[[]].copy())
    query = cells.copy()
    query.obs["batch"] = np.where(np.arange(query.n_obs) % 4 == 0, "new", query.obs["batch"])
    vx.tl.encode(query, adata, fine_tune=1)
    found["query"] = query
    reference, held = cells[:200].copy(), cells[200:].copy()
    vx.tl.fit_vae(reference, "batch", **QUICK)
    held.obs["usual"] = np.arange(held.n_obs) % 2 == 1
    vx.tl.outliers(held, reference, calibration="usual", alpha=0.5)
    found["outliers"] = held
    return found


def _equal(a: Any, b: Any, where: str) -> None:
    """Check that two results of any type are bit-identical."""
    if isinstance(a, ad.AnnData):
        for name in ("obs", "var"):
            pd.testing.assert_frame_equal(getattr(a, name), getattr(b, name), obj=f"{where}.{name}", check_exact=True)
        for name in ("obsm", "layers", "uns"):
            _equal(dict(getattr(a, name)), dict(getattr(b, name)), f"{where}.{name}")
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _equal(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b, obj=where, check_exact=True)
    elif isinstance(a, np.ndarray) and a.dtype.names:
        for name in a.dtype.names:
            np.testing.assert_array_equal(a[name], b[name], err_msg=f"{where}[{name!r}]")
    else:
        # anndata 0.13 has X among the layers, as it is stored
        found, expected = (value.toarray() if sparse.issparse(value) else value for value in (a, b))
        np.testing.assert_array_equal(found, expected, err_msg=where)


@pytest.fixture(scope="module")
def expected(plain: ad.AnnData) -> dict[str, Any]:
    return _run(_with(plain, plain.X.copy()))


@pytest.mark.parametrize("kind", KINDS)
def test_every_function_gives_the_same_bits(plain: ad.AnnData, expected: dict[str, Any], kind: str) -> None:
    messy = KINDS[kind](plain.X.toarray())
    before = messy.copy()
    _equal(_run(_with(plain, messy)), expected, kind)
    if sparse.issparse(messy):
        # the matrix of the user is unchanged, including stored zeros and order
        assert all((getattr(messy, name) == getattr(before, name)).all() for name in ("data", "indices", "indptr"))


def test_backed_files_with_stored_zeros(plain: ad.AnnData, expected: dict[str, Any], tmp_path: Path) -> None:
    messy = _messy_csr(plain.X.toarray())
    messy.sum_duplicates()
    assert not messy.data.all()
    _with(plain, messy).write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    backed.obs["batch"] = backed.obs["batch"].astype(str)
    backed.var["highly_variable"] = expected["fit"].var["highly_variable"].to_numpy()
    vx.tl.fit_vae(backed, "batch", validation_fraction=0.6, **QUICK)
    _equal(backed.obsm["X_vae"], expected["fit"].obsm["X_vae"], "backed")
    backed.file.close()


def test_cells_are_empty_after_masking_their_genes(plain: ad.AnnData) -> None:
    """Cells whose only genes are set to 0 in place are cells without counts, although they store zeros."""
    masked = _with(plain, plain.X.copy())
    x = plain.X.toarray()
    most = np.flatnonzero(x[10])
    masked.X.data[np.isin(masked.X.indices, most)] = 0
    vx.tl.fit_vae(masked, **QUICK)
    assert masked.obs["vae_split"].iloc[10] == "query"
    counts = Counts.from_scipy(masked.X)
    np.testing.assert_array_equal(counts.lengths(torch.arange(len(counts))).numpy() > 0, masked.X.toarray().any(1))
    assert masked.X.nnz == plain.X.nnz


def test_negative_zeros_and_parts_that_cancel_are_zeros() -> None:
    data, indices, indptr = np.array([-0.0, 2.0, 3.0, -3.0]), np.array([0, 1, 2, 2]), np.array([0, 2, 4])
    out = canonical(sparse.csr_matrix((data, indices, indptr), shape=(2, 3)))
    np.testing.assert_array_equal(out.indptr, [0, 1, 1])
    np.testing.assert_array_equal(out.data, [2.0])
