from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

import vxpress as vx
from vxpress.bridge.read.matrix import check_counts
from vxpress.pp import _highly_variable_genes as module
from vxpress.pp import _residuals
from vxpress.pp._residuals import residual_moments

# warnings from scanpy and anndata themselves, with pandas 3.1
pytestmark = [
    pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment' option is deprecated:DeprecationWarning"),
]

DATA = Path(os.environ.get("VXPRESS_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def data(n_obs: int = 240, n_vars: int = 150, n_batches: int = 3, seed: int = 0) -> AnnData:
    return vx.datasets.simulate(n_obs, n_vars, n_batches=n_batches, library_mean=250, rng=seed)


def oracle(adata: AnnData, n_top: int, batch_key: str | None = None, theta: float = 100.0) -> pd.DataFrame:
    return sc.experimental.pp.highly_variable_genes(
        adata, n_top_genes=n_top, batch_key=batch_key, theta=theta, flavor="pearson_residuals", inplace=False
    )


def by_definition(x: np.ndarray, theta: float, codes: np.ndarray | None = None, min_cells: int = 1) -> np.ndarray:
    codes = np.zeros(len(x), dtype=int) if codes is None else codes
    residual = np.zeros_like(x)
    for b in np.unique(codes):
        part = x[codes == b]
        mu = np.outer(part.sum(axis=1), part.sum(axis=0)) / part.sum()
        with np.errstate(invalid="ignore"):
            r = (part - mu) / np.sqrt(mu + mu**2 / theta)
        r[mu == 0] = 0
        limit = np.sqrt(len(part))
        residual[codes == b] = np.clip(r, -limit, limit)
    if min_cells > 1:
        residual = np.minimum(residual, np.maximum(np.sort(residual, axis=0)[-min_cells], 0))
    return np.array([residual[codes == b].var(axis=0) for b in np.unique(codes)])


def moments(x: object, codes: np.ndarray | None = None, theta: float = 100.0, min_cells: int = 1):
    codes = np.zeros(x.shape[0], dtype=int) if codes is None else codes  # type: ignore[attr-defined]
    return residual_moments(
        x, codes, codes.max() + 1, theta=theta, min_cells=min_cells, check=lambda block: check_counts(block, "adata.X")
    )


@pytest.mark.parametrize("batch_key", [None, "batch"])
@pytest.mark.parametrize("theta", [0.5, 100.0, 1e6])
@pytest.mark.parametrize("n_top", [1, 40, 120])
def test_agrees_with_scanpy(batch_key: str | None, theta: float, n_top: int) -> None:
    adata = data()
    expected = oracle(adata, n_top, batch_key, theta)
    vx.pp.highly_variable_genes(adata, n_top_genes=n_top, batch_key=batch_key, theta=theta, min_cells=1)
    for name in expected:
        if expected[name].dtype.kind == "f":
            np.testing.assert_allclose(adata.var[name], expected[name], rtol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(adata.var[name], expected[name], err_msg=name)
        assert adata.var[name].dtype == expected[name].dtype
    assert ("highly_variable_nbatches" in adata.var) == (batch_key is not None)
    assert adata.uns["hvg"] == {"flavor": "nb", "computed_on": "adata.X"}


@pytest.mark.parametrize("theta", [0.3, 100.0, 1e5, np.inf])
def test_residual_variance_by_definition_clipped_or_not(theta: float) -> None:
    x = np.random.default_rng(1).negative_binomial(0.05, 0.01, (30, 40)).astype(np.float64)
    x[3] = 0
    x[:, 5] = 0
    x[:, 6] = 0
    x[7, 6] = 900
    np.testing.assert_allclose(moments(x, theta=theta).residual_variances_bg, by_definition(x, theta), rtol=1e-9)


@pytest.mark.parametrize("min_cells", [2, 3, 8])
@pytest.mark.parametrize("read_entries", [300, 10**6])
def test_the_largest_residuals_count_no_more_than_the_next(min_cells: int, read_entries: int, monkeypatch) -> None:
    monkeypatch.setattr(_residuals, "READ_ENTRIES", read_entries)
    x = np.random.default_rng(1).negative_binomial(0.05, 0.01, (200, 40)).astype(np.float64)
    x[:, :3] = 0
    x[7, 0] = 900
    x[[8, 9], 1] = 40, 50
    x[[8, 9], 2] = 6  # ties
    codes = np.random.default_rng(2).permutation(np.repeat([0, 1, 2], [100, 85, 15]))
    expected = by_definition(x, 100.0, codes, min_cells)
    found = moments(x, codes, min_cells=min_cells).residual_variances_bg
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_with_few_cells_at_most_a_tenth_is_clipped() -> None:
    x = np.random.default_rng(1).negative_binomial(0.05, 0.01, (25, 40)).astype(np.float64)
    expected = by_definition(x, 100.0, min_cells=2)
    np.testing.assert_allclose(moments(x, min_cells=5).residual_variances_bg, expected, rtol=1e-9, atol=1e-12)


def test_cells_of_a_rare_type_count_together_across_batches() -> None:
    x = np.random.default_rng(0).poisson(0.3, (800, 150))
    x[::100, :10] = 25  # ten markers of a type that has one cell in each of eight batches
    adata = AnnData(sparse.csr_matrix(x), obs={"batch": np.repeat(list("abcdefgh"), 100)})
    vx.pp.highly_variable_genes(adata, n_top_genes=10, batch_key="batch")
    assert adata.var["highly_variable"].to_numpy()[:10].all()


def test_a_warning_is_raised_if_no_gene_varies() -> None:
    adata = data(n_obs=5, n_batches=1)
    adata.obs["batch"] = list("abcde")
    with pytest.warns(UserWarning, match="No batch has two cells"):
        vx.pp.highly_variable_genes(adata, n_top_genes=10, batch_key="batch")


def test_a_gene_of_one_cell_is_not_selected_and_one_of_a_rare_type_is() -> None:
    x = np.random.default_rng(0).poisson(0.3, (400, 150))
    x[np.arange(10), np.arange(10)] = 60  # ten genes with one cell each
    x[390:, 10:20] = 25  # ten genes of the same ten cells
    adata = AnnData(sparse.csr_matrix(x))
    chosen = {}
    for min_cells in (1, 3):
        vx.pp.highly_variable_genes(adata, n_top_genes=20, min_cells=min_cells)
        chosen[min_cells] = adata.var["highly_variable"].to_numpy()
    assert chosen[1][:20].all()
    assert not chosen[3][:10].any()
    assert chosen[3][10:20].all()


def test_each_batch_is_measured_and_clipped_by_itself() -> None:
    x = np.random.default_rng(2).negative_binomial(0.1, 0.02, (90, 25)).astype(np.float64)
    codes = np.repeat([0, 1, 2], [60, 25, 5])
    order = np.random.default_rng(3).permutation(90)
    found = moments(x[order], codes[order]).residual_variances_bg
    np.testing.assert_allclose(found, by_definition(x, 100.0, codes), rtol=1e-9, atol=1e-12)


def test_renaming_batches_changes_nothing() -> None:
    adata = data(n_obs=200)
    adata.obs["batch"] = np.repeat(["a", "b", "c"], [150, 30, 20])
    other = adata.copy()
    other.obs["batch"] = other.obs["batch"].map({"a": "z", "b": "y", "c": "x"}).astype(str)
    for each in (adata, other):
        vx.pp.highly_variable_genes(each, n_top_genes=30, batch_key="batch")
    pd.testing.assert_frame_equal(adata.var, other.var)


def test_blocks_do_not_change_the_result(monkeypatch) -> None:
    adata = data(n_obs=120)
    whole = vx.pp.highly_variable_genes(adata, n_top_genes=30, batch_key="batch", copy=True)
    monkeypatch.setattr(_residuals, "READ_ENTRIES", 7 * adata.n_vars)
    monkeypatch.setattr(_residuals, "ZERO_ENTRIES", 3 * adata.n_vars)
    vx.pp.highly_variable_genes(adata, n_top_genes=30, batch_key="batch")
    assert whole is not None
    pd.testing.assert_frame_equal(adata.var, whole.var, rtol=1e-10)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csc_matrix, sparse.csr_array, sparse.csc_array])
def test_every_matrix_gives_the_same_genes(kind) -> None:
    adata = data()
    other = adata.copy()
    other.X = kind(adata.X.toarray())
    for each in (adata, other):
        vx.pp.highly_variable_genes(each, n_top_genes=30)
    pd.testing.assert_frame_equal(adata.var, other.var)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_backed(kind, tmp_path) -> None:
    adata = data()
    adata.X = kind(adata.X.toarray())
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    for each in (adata, backed):
        vx.pp.highly_variable_genes(each, n_top_genes=30, batch_key="batch")
    np.testing.assert_array_equal(adata.var["highly_variable"], backed.var["highly_variable"])
    for options in ({"subset": True}, {"flavor": "pearson_residuals"}, {"copy": True}):
        with pytest.raises(ValueError, match=r"to_memory\(\)"):
            vx.pp.highly_variable_genes(backed, n_top_genes=30, **options)
    backed.file.close()


def test_the_matrix_is_never_changed() -> None:
    x = data().X.copy()
    x.data[:50] = 0  # explicit zeros
    x.indices[: x.indptr[1]] = x.indices[: x.indptr[1]][::-1]  # unsorted
    x = sparse.csr_matrix((x.data, x.indices, x.indptr), shape=x.shape)
    data_before, indices_before = x.data.copy(), x.indices.copy()
    vx.pp.highly_variable_genes(AnnData(x), n_top_genes=5)
    np.testing.assert_array_equal(x.data, data_before)
    np.testing.assert_array_equal(x.indices, indices_before)


def test_genes_without_counts_are_ranked_last() -> None:
    adata = data(n_vars=60)
    x = adata.X.toarray()
    x[:, ::2] = 0
    x[adata.obs["batch"] == "batch_0", 1:40:2] = 0  # so few genes in this batch that scanpy would rank unexpressed ones
    adata.X = x
    vx.pp.highly_variable_genes(adata, n_top_genes=25, batch_key="batch")
    assert adata.var["highly_variable"].sum() == 25
    assert not adata.var["highly_variable"].to_numpy()[::2].any()
    vx.pp.highly_variable_genes(adata, n_top_genes=40, batch_key="batch")
    assert adata.var["highly_variable"].sum() == 40
    assert adata.var["highly_variable"].to_numpy()[1::2].all()


def test_a_batch_of_one_cell_has_no_effect() -> None:
    adata = data(n_obs=100, n_batches=1)
    adata.obs["batch"] = ["single"] + ["many"] * 99
    vx.pp.highly_variable_genes(adata, n_top_genes=20, batch_key="batch", min_cells=1)
    expected = oracle(adata[1:].copy(), 20)
    np.testing.assert_array_equal(adata.var["highly_variable"], expected["highly_variable"])
    assert adata.var["highly_variable_nbatches"].max() == 1


def test_more_genes_than_there_are_selects_all_with_a_warning() -> None:
    adata = data(n_vars=40)
    with pytest.warns(UserWarning, match="n_top_genes=2000 is more than the 40 genes"):
        vx.pp.highly_variable_genes(adata)
    assert adata.var["highly_variable"].all()


def test_differing_genes_are_selected() -> None:
    adata = vx.datasets.simulate(1500, 400, de_fraction=0.2, de_log_fold_change=2.5, library_mean=2000, dispersion=100)
    vx.pp.highly_variable_genes(adata, n_top_genes=50)
    varies = adata.var["de_true"] | (adata.var["state_log_fold_change_true"].abs() > 0)
    assert varies[adata.var["highly_variable"]].mean() > 0.9


def test_layer_subset_copy_and_view() -> None:
    adata = data()
    adata.layers["counts"] = adata.X.copy()
    sc.pp.log1p(adata)
    out = vx.pp.highly_variable_genes(adata, n_top_genes=20, layer="counts", subset=True, copy=True)
    assert out is not None
    assert out.n_vars == 20
    assert out.uns["hvg"]["computed_on"] == "counts"
    assert adata.n_vars == 150
    assert "highly_variable" not in adata.var
    view = adata[:, :100]
    with pytest.warns(UserWarning, match="view"):
        vx.pp.highly_variable_genes(view, n_top_genes=20, layer="counts")
    assert view.var["highly_variable"].sum() == 20
    assert "highly_variable" not in adata.var


def test_a_view_without_counts_stays_a_view() -> None:
    adata = data()
    adata.X = adata.X * 0.5
    view = adata[:, :100]
    # no warning about a copy
    with pytest.raises(ValueError, match="not whole numbers"):
        vx.pp.highly_variable_genes(view, n_top_genes=20)
    assert view.is_view


def test_a_view_is_subset_to_the_selected_genes() -> None:
    adata = data()
    view = adata[10:, :100]
    expected = vx.pp.highly_variable_genes(adata[10:, :100].copy(), n_top_genes=20, subset=True, copy=True)
    with pytest.warns(UserWarning, match="view"):
        vx.pp.highly_variable_genes(view, n_top_genes=20, subset=True)
    assert expected is not None
    assert list(view.var_names) == list(expected.var_names)
    assert adata.n_vars == 150


def test_delegates_to_scanpy() -> None:
    adata = data()
    direct = oracle(adata, 30, "batch", theta=10)
    vx.pp.highly_variable_genes(adata, n_top_genes=30, batch_key="batch", flavor="pearson_residuals", theta=10)
    np.testing.assert_array_equal(adata.var["highly_variable"], direct["highly_variable"])
    assert adata.uns["hvg"]["flavor"] == "pearson_residuals"

    with pytest.warns(UserWarning, match="expects log-normalised"):
        vx.pp.highly_variable_genes(adata, n_top_genes=30, flavor="cell_ranger")
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    vx.pp.highly_variable_genes(adata, n_top_genes=30, flavor="seurat")
    direct = sc.pp.highly_variable_genes(adata, n_top_genes=30, flavor="seurat", inplace=False)
    np.testing.assert_array_equal(adata.var["highly_variable"], direct["highly_variable"])


def test_a_missing_dependency_is_named(monkeypatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install scikit-misc.*flavor='nb'"):
        vx.pp.highly_variable_genes(data(), n_top_genes=30, flavor="seurat_v3")


@pytest.mark.skipif(find_spec("skmisc") is None, reason="scikit-misc is not installed")
def test_seurat_v3() -> None:
    adata = data()
    vx.pp.highly_variable_genes(adata, n_top_genes=30, flavor="seurat_v3", batch_key="batch")
    assert adata.var["highly_variable"].sum() == 30


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": "raw"}, KeyError, "found: .*logged"),
        ({"layer": "logged"}, ValueError, "raw counts"),
        ({"batch_key": "donor"}, KeyError, "found: .*batch"),
        ({"batch_key": "partly"}, ValueError, "NaN"),
        ({"flavor": "loess"}, ValueError, "'nb'"),
        ({"theta": 0}, ValueError, "above 0"),
        ({"theta": np.nan}, ValueError, "above 0"),
        ({"theta": 10, "flavor": "seurat"}, ValueError, "no effect with"),
        ({"n_top_genes": 0}, ValueError, "at least 1"),
        ({"n_top_genes": 10.5}, ValueError, "at least 1"),
        ({"min_cells": 0}, ValueError, "min_cells=0 .*at least 1"),
        ({"min_cells": 3, "flavor": "seurat"}, ValueError, "no effect with"),
        ({"theta": "a"}, ValueError, "above 0"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(options, error, message) -> None:
    adata = data()
    adata.layers["logged"] = adata.X.log1p()
    adata.obs["partly"] = adata.obs["batch"].where(np.arange(adata.n_obs) > 5)
    before = adata.var.copy()
    with pytest.raises(error, match=message):
        vx.pp.highly_variable_genes(adata, **{"n_top_genes": 20} | options)
    pd.testing.assert_frame_equal(adata.var, before)
    assert "hvg" not in adata.uns


@pytest.mark.parametrize("batch_key", [None, "batch"])
def test_agrees_with_scanpy_on_real_counts(batch_key: str | None) -> None:
    path = DATA / "kang_ctrl_8donors.h5ad"
    if not path.exists():
        pytest.skip(f"{path.name} is not in $VXPRESS_DATA")
    adata = ad.read_h5ad(path)
    # equal batches: scanpy clips every batch by the square root of the first one's size
    adata.obs["order"] = adata.obs.groupby("batch", observed=True).cumcount()
    adata = adata[adata.obs["order"] < adata.obs["batch"].value_counts().min()].copy()
    expected = oracle(adata, 300, batch_key)
    vx.pp.highly_variable_genes(adata, n_top_genes=300, batch_key=batch_key, min_cells=1)
    np.testing.assert_array_equal(adata.var["highly_variable"], expected["highly_variable"])
    np.testing.assert_allclose(adata.var["residual_variances"], expected["residual_variances"], rtol=1e-4)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("min_cells", [1, 3, 20])
def test_dask_arrays_give_the_same_numbers(kind, min_cells) -> None:
    da = pytest.importorskip("dask.array")
    adata = data()
    other = adata.copy()
    other.X = da.from_array(adata.X.toarray(), chunks=(23, 11)).map_blocks(kind)
    for each in (adata, other):
        vx.pp.highly_variable_genes(each, n_top_genes=30, batch_key="batch", min_cells=min_cells)
    exact = ["means", "variances", "highly_variable", "highly_variable_rank", "highly_variable_nbatches"]
    pd.testing.assert_frame_equal(adata.var[exact], other.var[exact])
    np.testing.assert_allclose(adata.var["residual_variances"], other.var["residual_variances"], rtol=1e-10)
