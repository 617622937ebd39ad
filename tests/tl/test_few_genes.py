"""The defaults on a panel of few genes: the latent space describes the cells."""

import anndata as ad
import numpy as np
import pytest

import vxpress as vx


@pytest.fixture(scope="module")
def panel() -> ad.AnnData:
    """800 cells x 60 genes with the molecules of a targeted panel."""
    return vx.datasets.simulate(800, 60, n_groups=5, library_mean=300, de_fraction=0.5, de_log_fold_change=1.5, rng=3)


def test_a_panel_of_few_genes_keeps_its_groups(panel: ad.AnnData) -> None:
    adata = panel.copy()
    vx.tl.fit_vae(adata, rng=0, denoised=False)
    model = adata.uns["vae"]["params"]["model"]
    assert (float(model["dropout"]), float(model["thinning"])) == pytest.approx((0.018, 0.054))
    group, z = adata.obs["group"].to_numpy(), adata.obsm["X_vae"].astype(np.float64)
    within = sum(((z[group == g] - z[group == g].mean(0)) ** 2).sum() for g in np.unique(group))
    assert within < 0.7 * ((z - z.mean(0)) ** 2).sum()

    hidden = panel.copy()
    much = vx.tl.FitOptions(dropout=0.3, thinning=0.9)
    vx.tl.fit_vae(hidden, rng=0, denoised=False, options=much)
    known, less = (float(a.uns["vae"]["diagnostics"]["mutual_information"]) for a in (adata, hidden))
    assert known > less
