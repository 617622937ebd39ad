from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import vxpress as vx
from vxpress.bridge.diagnosis import diagnose
from vxpress.core.config import TrainConfig

TRAIN = TrainConfig(max_epochs=10)
FLAT = {"kl_weight": [0.5, 1.0], "objective_validation": [-10.0, -10.0], "lr": [0.1, 0.001]}


def _posterior(rng: np.random.Generator, n: int, used: int, dead: int, sd: float = 0.3) -> tuple:
    """Cells spread as the prior along ``used`` dimensions, with posteriors of width ``sd``; the others carry nothing."""
    mean = np.hstack([rng.normal(0, np.sqrt(1 - sd**2), (n, used)), np.zeros((n, dead))])
    var = np.hstack([np.full((n, used), sd**2), np.ones((n, dead))])
    return mean, var


@pytest.mark.parametrize(
    ("used", "dead", "verdict"),
    [(5, 0, "healthy"), (4, 3, "unused dimensions: 3 of 7"), (0, 6, "collapsed")],
)
def test_verdict_of_a_known_posterior(used: int, dead: int, verdict: str) -> None:
    mean, var = _posterior(np.random.default_rng(0), 1500, used, dead)
    found = diagnose(mean, var, np.arange(1500) % 10 == 0, TRAIN, FLAT)
    assert found["verdict"].startswith(verdict)
    assert found["active_units"] == used
    assert found["active"].sum() == used


def test_a_posterior_far_from_the_prior_is_a_prior_gap() -> None:
    mean, var = _posterior(np.random.default_rng(0), 1500, 3, 0)
    found = diagnose(3 * mean, var, np.arange(1500) % 10 == 0, TRAIN, FLAT)
    assert found["verdict"].startswith("prior gap")
    assert found["prior_gap_per_dim"] > 1


def test_no_gap_is_invented_without_held_out_cells() -> None:
    mean, var = _posterior(np.random.default_rng(0), 300, 10, 0)
    found = diagnose(mean, var, np.zeros(300, dtype=bool), TRAIN, FLAT)
    assert found["verdict"].startswith("healthy")


@pytest.mark.parametrize(
    "change",
    [
        {"kl_weight": [0.1, 0.4]},
        {"objective_validation": [-100.0, -90.0], "lr": [0.1, 0.1]},
    ],
)
def test_training_that_was_not_over(change: dict) -> None:
    mean, var = _posterior(np.random.default_rng(0), 300, 5, 0)
    found = diagnose(mean, var, np.zeros(300, dtype=bool), TRAIN, FLAT | change)
    assert found["verdict"].startswith("under-trained")


def test_a_collapsed_fit_is_called_collapsed(adata: ad.AnnData, warned: list[str]) -> None:
    vx.tl.fit_vae(adata, n_latent=4, n_hidden=16, max_epochs=60, batch_size=64, beta=100.0)
    diagnostics = adata.uns["vae"]["diagnostics"]
    assert diagnostics["verdict"].startswith("collapsed")
    assert "collapsed" in " ".join(warned)
    assert diagnostics["kl_per_dim"].sum() < 0.5


def test_diagnose_repeats_the_fit(fitted: ad.AnnData) -> None:
    before = fitted.uns["vae"]["diagnostics"]
    vx.tl.diagnose(fitted)
    after = fitted.uns["vae"]["diagnostics"]
    np.testing.assert_allclose(after["kl_per_dim"], before["kl_per_dim"])
    assert after["verdict"] == before["verdict"]
