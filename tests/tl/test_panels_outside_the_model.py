"""Two panels measured different genes of one population, in the model and outside it: expression is that of the cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import vxpress as vx

N, TYPES = 900, 3
# genes in blocks: modelled or not, and measured by both panels, by "a" only, by "b" only
BLOCKS = {
    ("model", "ab"): 24,
    ("model", "a"): 6,
    ("model", "b"): 6,
    ("out", "ab"): 20,
    ("out", "a"): 40,
    ("out", "b"): 10,
}
MODELLED = np.repeat([where == "model" for where, _ in BLOCKS], list(BLOCKS.values()))
BY = {name: np.repeat([name in panels for _, panels in BLOCKS], list(BLOCKS.values())) for name in "ab"}
G = len(MODELLED)


def simulate(*, common: bool) -> tuple[ad.AnnData, np.ndarray]:
    """Return cells with the counts that their panels measured, and the true share of every gene in the molecules of every cell.

    Without ``common``, no gene outside the model was measured by both panels.
    """
    rng = np.random.default_rng(4)
    kind, panel = np.arange(N) % TYPES, np.array(list("ab"))[np.arange(N) // TYPES % 2]
    share = rng.gamma(2.0, size=G) * np.exp(0.7 * rng.normal(size=(TYPES, G)))
    # the types differ in their molecules outside the model, too
    share[:, ~MODELLED] *= np.array([1.0, 1.6, 2.5])[:, None]
    share = (share / share.sum(1, keepdims=True))[kind]
    counts = rng.poisson(share * 1500 * rng.gamma(20, 1 / 20, size=(N, 1))).astype("f4")
    by = {name: BY[name].copy() for name in "ab"}
    if not common:
        by["b"][~MODELLED & BY["a"]] = False
    for name in "ab":
        counts[np.ix_(panel == name, ~by[name])] = 0
    adata = ad.AnnData(
        sparse.csr_matrix(counts),
        obs=pd.DataFrame(
            {"type": pd.Categorical([f"t{k}" for k in kind]), "panel": pd.Categorical(panel)},
            index=[f"cell_{i}" for i in range(N)],
        ),
        var=pd.DataFrame({"modelled": MODELLED}, index=[f"gene_{i}" for i in range(G)]),
        varm={"gene_panels": pd.DataFrame(by, index=[f"gene_{i}" for i in range(G)])},
    )
    vx.pp.library_size(adata)
    return adata, share


def fitted(adata: ad.AnnData, batch_key: str | None) -> ad.AnnData:
    options: dict[str, Any] = {"n_latent": 3, "n_hidden": 32, "max_epochs": 25, "batch_size": 64}
    vx.tl.fit_vae(
        adata,
        batch_key,
        panel_key="panel",
        mask_var="modelled",
        options=vx.tl.FitOptions(learning_rate=0.01, screen_covariates=False),
        **options,
    )
    return adata


@pytest.fixture(scope="module", params=[(True, None), (True, "panel"), (False, None)], ids=["common", "batch", "apart"])
def cells(request: pytest.FixtureRequest) -> tuple[ad.AnnData, np.ndarray]:
    common, batch_key = request.param
    adata, share = simulate(common=common)
    return fitted(adata, batch_key), share


def log_ratio(adata: ad.AnnData, found: np.ndarray, share: np.ndarray, panel: str) -> np.ndarray:
    """Return log(denoised / true share) of each type and gene in the cells of a panel."""
    rows = [
        ((adata.obs["type"] == kind) & (adata.obs["panel"] == panel)).to_numpy() for kind in adata.obs["type"].unique()
    ]
    return np.log(np.stack([found[mine].mean(0) / 1e4 / share[mine].mean(0) for mine in rows]))


def blocks() -> Iterator[np.ndarray]:
    """Yield which genes belong to each block."""
    ends = np.cumsum(list(BLOCKS.values()))
    for end, n in zip(ends, BLOCKS.values(), strict=True):
        yield (np.arange(G) < end) & (np.arange(G) >= end - n)


def test_denoised_expression_is_that_of_the_cells(cells: tuple[ad.AnnData, np.ndarray]) -> None:
    adata, share = cells
    a, b = (log_ratio(adata, adata.layers["vae_normalized"], share, name) for name in "ab")
    for chosen in blocks():
        for error in (a, b):
            assert abs(error[:, chosen].mean()) < 0.1
            assert np.sqrt((error[:, chosen] ** 2).mean()) < 0.25
        # cells of either panel are of one population
        assert abs((a - b)[:, chosen].mean()) < 0.03
        assert np.abs((a - b)[:, chosen]).max() < 0.2


def test_the_size_factor_counts_the_same_genes_outside_the_model(cells: tuple[ad.AnnData, np.ndarray]) -> None:
    adata, _ = cells
    common = adata.varm["gene_panels"].to_numpy().all(1)
    expected = adata.X[:, MODELLED | common].sum(1).A1
    np.testing.assert_allclose(adata.obs["vae_library"], expected)
    again = adata.copy()
    vx.tl.encode(again, key_added="again")
    np.testing.assert_allclose(again.obs["again_library"], expected)


def test_panels_of_one_population_do_not_differ(cells: tuple[ad.AnnData, np.ndarray]) -> None:
    adata, _ = cells
    vx.tl.rank_genes_groups(adata, "panel", groups=["a"], batch_key=None, key_added="between")
    found = sc.get.rank_genes_groups_df(adata, group="a", key="between").set_index("names").loc[adata.var_names]
    for chosen in blocks():
        assert abs(found["logfoldchanges"].to_numpy()[chosen].mean()) < 0.1
    assert (found["pvals_adj"] > 0.01).all()


def test_types_differ_by_what_the_cells_that_measured_a_gene_show(cells: tuple[ad.AnnData, np.ndarray]) -> None:
    adata, share = cells
    vx.tl.rank_genes_groups(adata, "type", groups=["t0"], batch_key=None, key_added="types")
    found = sc.get.rank_genes_groups_df(adata, group="t0", key="types").set_index("names").loc[adata.var_names]
    mine = (adata.obs["type"] == "t0").to_numpy()
    error = found["logfoldchanges"].to_numpy() - np.log2(share[mine].mean(0) / share[~mine].mean(0))
    # without common genes outside the model, only the model knows how much of the molecules of a type its size factors count
    common = adata.varm["gene_panels"].to_numpy()[~MODELLED].all(1).any()
    for chosen in blocks():
        assert abs(error[chosen].mean()) < (0.15 if common else 0.3)
        assert (error[chosen] - error[chosen].mean()).std() < 0.3


def test_counts_of_a_cell_say_nothing_about_genes_that_it_did_not_measure(
    cells: tuple[ad.AnnData, np.ndarray],
) -> None:
    adata, share = cells
    vx.tl.denoise(adata, own_counts=True, key_added="updated")
    plain, updated = adata.layers["vae_normalized"], adata.layers["updated"]
    lacks = (adata.obs["panel"] == "a").to_numpy()
    np.testing.assert_allclose(updated[lacks][:, ~BY["a"]], plain[lacks][:, ~BY["a"]], rtol=1e-5)
    for name in "ab":
        error = log_ratio(adata, updated, share, name)[:, MODELLED & BY[name]]
        assert abs(error.mean()) < 0.1


def test_a_new_panel_gets_a_size_factor_that_compares(cells: tuple[ad.AnnData, np.ndarray]) -> None:
    adata, _ = cells
    chosen = (adata.obs["panel"] == "b").to_numpy()
    common = ~MODELLED & adata.varm["gene_panels"].to_numpy().all(1)
    # half of the genes outside the model that both panels measured; none of them
    for keep in (np.arange(G) % 2 == 0, np.zeros(G, dtype=bool)):
        query = ad.AnnData(adata.X, obs=adata.obs[["panel"]], var=adata.var[["modelled"]])[
            chosen, (MODELLED & BY["b"]) | (common & keep)
        ].copy()
        query.obs["panel"] = "new"
        vx.tl.encode(query, model=adata)
        ratio = query.obs["vae_library"].to_numpy() / adata.obs["vae_library"].to_numpy()[chosen]
        assert abs(np.log(ratio).mean()) < 0.08
