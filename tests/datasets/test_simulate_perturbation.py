"""Simulated responses are as recorded."""

from __future__ import annotations

import numpy as np
import pytest

import vxpress as vx


def test_treated_cells_have_the_recorded_response() -> None:
    adata = vx.datasets.simulate_perturbation(6000, 40, n_groups=2, library_mean=4000, specific=0.5, rng=1)
    np.testing.assert_allclose(adata.layers["rho_true"].sum(1), 1, rtol=1e-5)
    for k, group in enumerate(adata.obs["group"].cat.categories):
        here = (adata.obs["group"] == group).to_numpy()
        treated = (adata.obs["condition"] == "treated").to_numpy()
        sums = [np.asarray(adata.X[here & which].sum(0)).reshape(-1) for which in (treated, ~treated)]
        found = np.log2(sums[0] / sums[1])
        response_g = adata.varm["response_true"][:, k]
        still = response_g == 0
        assert still.mean() == 0.8
        # up to one constant, which keeps the sum of shares
        np.testing.assert_allclose((found - np.median(found[still]))[~still], response_g[~still], atol=0.2)


@pytest.mark.parametrize(("specific", "lowest", "highest"), [(0.0, 0.999, 1.0), (1.0, -0.5, 0.5)])
def test_groups_share_their_response_as_far_as_it_is_not_specific(
    specific: float, lowest: float, highest: float
) -> None:
    response = vx.datasets.simulate_perturbation(40, 400, specific=specific, rng=0).varm["response_true"]
    moved = response[response.any(1)]
    assert lowest <= np.corrcoef(moved[:, 0], moved[:, 1])[0, 1] <= highest + 1e-9


def test_the_seed_decides_and_bad_arguments_are_named() -> None:
    first, again = (vx.datasets.simulate_perturbation(60, 20, rng=3) for _ in range(2))
    assert (first.X != again.X).nnz == 0
    assert first.obs["condition"].value_counts().tolist() == [30, 30]
    with pytest.raises(ValueError, match="specific=2"):
        vx.datasets.simulate_perturbation(60, 20, specific=2)
