from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

import vxpress as vx
from vxpress.datasets._pbmc68k_reduced import _recover


@pytest.fixture(scope="module")
def source():
    return sc.datasets.pbmc68k_reduced()


@pytest.fixture(scope="module")
def adata():
    return vx.datasets.pbmc68k_reduced()


def test_every_value_is_near_a_whole_number(source) -> None:
    counts, distance = _recover(source)
    assert distance < 0.12
    assert counts.nnz == source.raw.X.nnz


def test_normalising_the_counts_returns_scanpys_values(source, adata) -> None:
    scale = 1e4 / adata.obs["library_size"].to_numpy()
    again = np.log1p(adata.X.toarray() * scale[:, None])
    assert np.abs(again - source.raw.X.toarray()).max() < 0.05


def test_shape_and_slots(source, adata) -> None:
    assert adata.shape == (700, 765)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert adata.X.has_canonical_format
    assert (adata.X.data >= 1).all()
    np.testing.assert_array_equal(adata.obs["library_size"], source.obs["n_counts"])
    assert (adata.obs["library_size"] % 1 == 0).all()
    assert adata.obs["bulk_labels"].cat.categories.size == len(adata.uns["bulk_labels_colors"]) == 10
    assert list(adata.var_names) == list(source.raw.var_names)
    assert adata.raw is None
    assert not adata.var.columns.size
    assert not list(adata.obsm)
    assert not list(adata.obsp)


def test_the_genes_have_a_part_of_the_molecules_of_each_cell(adata) -> None:
    share = adata.X.sum(axis=1).A1 / adata.obs["library_size"]
    assert share.min() > 0.10
    assert share.max() < 0.29


def test_two_calls_share_no_memory(adata) -> None:
    other = vx.datasets.pbmc68k_reduced()
    assert (other.X != adata.X).nnz == 0
    assert not np.shares_memory(other.X.data, adata.X.data)
