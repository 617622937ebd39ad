"""Groups of cells whose gene panels differ: a gene that was not measured says nothing about a difference."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import vxpress as vx

LACKING = [f"gene_{i}" for i in range(15)]


@pytest.fixture(scope="module")
def paneled() -> ad.AnnData:
    """Return cells of two batches alike, of which the first did not measure some genes."""
    adata = vx.datasets.simulate(600, 50, n_groups=2, de_fraction=0.3, rng=2)
    # cells of both groups in both batches, and nothing differs between batches
    adata.obs["batch"] = pd.Categorical(np.where(np.arange(600) % 2 == 0, "first", "second"))
    counts = adata.X.toarray()
    counts[::2, :15] = 0
    adata.X = sparse.csr_matrix(counts)
    # that of the simulation counts the genes that were not measured
    vx.pp.library_size(adata, overwrite=True)
    adata.varm["gene_panels"] = pd.DataFrame({"first": np.arange(50) >= 15, "second": True}, index=adata.var_names)
    vx.tl.fit_vae(adata, panel_key="batch", n_latent=3, n_hidden=16, max_epochs=25, denoised=False)
    return adata


@pytest.mark.parametrize("use_counts", [True, False])
def test_batches_that_measured_different_genes(
    paneled: ad.AnnData, use_counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("scanpy.logging.warning", said.append)
    vx.tl.rank_genes_groups(paneled, "batch", groups=["first"], use_counts=use_counts)
    found = sc.get.rank_genes_groups_df(paneled, group="first").set_index("names")
    assert np.isfinite(found["scores"]).all()
    # read as zeros, their fold changes are below 1/16
    assert found.loc[LACKING, "logfoldchanges"].abs().max() < 1.0
    assert (found.loc[LACKING, "pvals"] > 0.01).all()
    # the shares of the others are those among fewer genes, and are compared at the same level
    assert abs(found.drop(LACKING)["logfoldchanges"].median()) < 0.15
    assert (found["pvals"] < 0.01).mean() < 0.1
    assert any("Genes that one side did not measure" in one for one in said)


def test_cell_types_are_compared_where_a_gene_was_measured(paneled: ad.AnnData) -> None:
    vx.tl.rank_genes_groups(paneled, "group", groups=["group_0"])
    found = sc.get.rank_genes_groups_df(paneled, group="group_0").set_index("names")
    second = paneled[paneled.obs["batch"] == "second"].copy()
    vx.tl.rank_genes_groups(second, "group", groups=["group_0"])
    alone = sc.get.rank_genes_groups_df(second, group="group_0").set_index("names")
    np.testing.assert_allclose(found.loc[LACKING, "logfoldchanges"], alone.loc[LACKING, "logfoldchanges"], atol=0.15)
