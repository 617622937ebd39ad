from __future__ import annotations

import math
import re
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

import vxpress as vx
from vxpress.bridge.health.diagnosis import Decoding, diagnose
from vxpress.bridge.health.verdict import is_sound, verdict_of
from vxpress.core.config import ModelConfig, PriorConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.inference.posterior import Encoded
from vxpress.core.model import build
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors import Prior, sampled_kl

TRAIN = TrainConfig(max_epochs=10)
FLAT = {"kl_weight": [0.5, 1.0], "objective_validation": [-10.0, -10.0], "lr": [0.1, 0.001]}


def _posterior(rng: np.random.Generator, n: int, used: int, dead: int, sd: float = 0.3) -> tuple:
    """Cells distributed as the prior along ``used`` dimensions, with posteriors of width ``sd``; the others are empty."""
    mean = np.hstack([rng.normal(0, np.sqrt(1 - sd**2), (n, used)), np.zeros((n, dead))])
    var = np.hstack([np.full((n, used), sd**2), np.ones((n, dead))])
    return mean, var


def _encoded(mean: np.ndarray, var: np.ndarray) -> Encoded:
    return Encoded({"z": mean}, {"z": var})


@pytest.mark.parametrize(
    ("used", "dead", "verdict"),
    [(5, 0, "healthy"), (4, 3, "healthy: 4 of 7 dimensions are active"), (0, 6, "collapsed")],
)
def test_verdict_of_a_known_posterior(used: int, dead: int, verdict: str) -> None:
    mean, var = _posterior(np.random.default_rng(0), 1500, used, dead)
    found = diagnose(_encoded(mean, var), np.arange(1500) % 10 == 0, TRAIN, FLAT)
    assert found["verdict"].startswith(verdict)
    assert found["active_units"] == used
    assert found["active"].sum() == used


def test_a_posterior_far_from_the_prior_is_a_prior_gap() -> None:
    mean, var = _posterior(np.random.default_rng(0), 1500, 3, 0)
    found = diagnose(_encoded(3 * mean, var), np.arange(1500) % 10 == 0, TRAIN, FLAT)
    assert found["verdict"].startswith("prior gap")
    assert found["prior_gap_per_dim"] > 1


def test_no_generalisation_gap_is_reported_without_held_out_cells() -> None:
    mean, var = _posterior(np.random.default_rng(0), 300, 10, 0)
    found = diagnose(_encoded(mean, var), np.zeros(300, dtype=bool), TRAIN, FLAT)
    assert found["verdict"].startswith("healthy")


@pytest.mark.parametrize(
    "change",
    [
        {"kl_weight": [0.1, 0.4]},
        {"objective_validation": [-100.0, -90.0], "lr": [0.1, 0.1]},
    ],
)
def test_unfinished_training_is_under_trained(change: dict) -> None:
    mean, var = _posterior(np.random.default_rng(0), 300, 5, 0)
    found = diagnose(_encoded(mean, var), np.zeros(300, dtype=bool), TRAIN, FLAT | change)
    assert found["verdict"].startswith("under-trained")


def test_a_collapsed_fit_is_called_collapsed(adata: ad.AnnData, warned: list[str]) -> None:
    vx.tl.fit_vae(adata, n_latent=4, n_hidden=16, max_epochs=60, batch_size=64, beta=100.0)
    diagnostics = adata.uns["vae"]["diagnostics"]
    assert diagnostics["verdict"].startswith("collapsed")
    assert "collapsed" in " ".join(warned)
    assert diagnostics["kl_per_dim"].sum() < 0.5


def test_diagnose_repeats_the_diagnostics_of_the_fit(fitted: ad.AnnData) -> None:
    before = fitted.uns["vae"]["diagnostics"]
    vx.tl.diagnose(fitted)
    after = fitted.uns["vae"]["diagnostics"]
    np.testing.assert_allclose(after["kl_per_dim"], before["kl_per_dim"])
    assert after["verdict"] == before["verdict"]


WARM = {"kl_weight": [1.0], "objective_validation": [-10.0, -10.0], "lr": [0.1, 0.001]}
SOUND = {
    "active": np.ones(5, dtype=bool),
    "active_units": 5,
    "mutual_information": 5.0,
    "mutual_information_cap": 7.0,
    "prior_gap_per_dim_low": 0.1,
    "kl_encoder": 8.0,
    "kl_refined": 8.5,
    "generalisation_gap": 10.0,
    "generalisation_gap_share": 0.03,
    "generalisation_gap_low": 0.02,
}


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ({}, "healthy"),
        (
            {"active": np.arange(5) < 3, "active_units": 3},
            r"healthy: 3 of 5 dimensions are active .*\(5.0 nats\); .* no harm",
        ),
        ({"active": np.arange(20) < 2, "active_units": 2}, "healthy: 2 of 20 "),
        ({"prior_gap_per_dim_low": 0.6}, "prior gap"),
        ({"generalisation_gap_share": 0.11, "generalisation_gap_low": 0.07}, "overfitted: .* 11 % worse"),
        # with so few held-out cells a gap is not significant
        ({"generalisation_gap_share": 0.12, "generalisation_gap_low": -0.01}, "healthy"),
        (
            {"kl_encoder": 2.0, "kl_refined": 5.0},
            r"collapsed: the latent space keeps less information per cell \(2.0 nats\) .* could use \(5.0\)",
        ),
        (
            {"kl_encoder": 20.0, "kl_refined": 12.0},
            r"overfitted: the latent space keeps more information per cell \(20.0 nats\) .* \(12.0\)",
        ),
        ({"mutual_information": 0.3}, "collapsed: the latent space distinguishes cells by 0.30 nats"),
        ({"active": np.arange(20) < 1, "active_units": 1}, "collapsed: .* 1 of 20"),
        # the first verdict that applies
        ({"mutual_information": 0.3, "generalisation_gap_share": 0.2, "generalisation_gap_low": 0.1}, "collapsed"),
        ({"prior_gap_per_dim_low": 0.6, "generalisation_gap_share": 0.2, "generalisation_gap_low": 0.1}, "overfitted"),
    ],
)
def test_each_verdict_from_its_numbers(numbers: dict, verdict: str) -> None:
    found = verdict_of(SOUND | numbers, TRAIN, WARM, n=1000, n_steps=500)
    assert re.match(verdict, found)
    assert is_sound(found) == verdict.startswith("healthy")


def test_the_verdict_of_an_earlier_release_on_empty_dimensions_is_sound() -> None:
    assert is_sound("unused dimensions: 2 of 5 carry no information. This does no harm; n_latent=3 would be enough.")


def test_a_held_out_objective_that_falls_after_its_peak() -> None:
    peaked = WARM | {"kl_weight": [0.5, 1.0, 1.0, 1.0], "objective_validation": [-9.0, -10.0, -9.9, -10.2]}
    found = verdict_of(SOUND, TRAIN, peaked, n=1000, n_steps=500)
    assert re.match("overfitted: .* 3.0 % worse at the end", found)
    # before the end of the warm-up the objective is another one
    level = peaked | {"objective_validation": [-5.0, -10.0, -9.9, -10.0]}
    assert verdict_of(SOUND, TRAIN, level, n=1000, n_steps=500).startswith("healthy")


def test_the_overfitting_threshold_is_lower_with_few_cells() -> None:
    numbers = SOUND | {"generalisation_gap_share": 0.07, "generalisation_gap_low": 0.04}
    assert verdict_of(numbers, TRAIN, WARM, n=500, n_steps=500).startswith("overfitted")
    assert verdict_of(numbers, TRAIN, WARM, n=2000, n_steps=500).startswith("healthy")


def test_a_verdict_names_the_beta_that_caused_it() -> None:
    found = verdict_of(
        SOUND | {"mutual_information": 0.1},
        TrainConfig(10, beta=20.0),
        WARM | {"kl_weight": [20.0]},
        n=1000,
        n_steps=500,
    )
    assert "beta=1 instead of 20" in found
    assert verdict_of(SOUND, TRAIN, WARM, n=1000, n_steps=50).startswith("under-trained: 50 training steps")


def test_a_high_beta_is_detected_from_the_posteriors_of_single_cells() -> None:
    """With a moderate beta the latent space is informative; only posteriors of single cells show what is missing."""
    adata = vx.datasets.pbmc68k_reduced()
    vx.tl.fit_vae(adata, n_latent=5, n_hidden=32, max_epochs=40, beta=12.0, denoised=False)
    found = adata.uns["vae"]["diagnostics"]
    assert found["mutual_information"] > 0.5
    assert found["active_units"] >= 1
    assert found["kl_refined"] > 1.6 * found["kl_encoder"]
    assert found["verdict"].startswith("collapsed: the latent space keeps less")


def test_without_counts_numbers_that_need_them_come_from_the_fit(adata: ad.AnnData) -> None:
    vx.tl.fit_vae(adata, n_latent=3, n_hidden=8, max_epochs=30, batch_size=64, denoised=False, validation_fraction=0.3)
    before = adata.uns["vae"]["diagnostics"]
    assert "generalisation_gap" in before
    adata.X = np.log1p(adata.X.toarray() / 7.0)
    vx.tl.diagnose(adata)
    after = adata.uns["vae"]["diagnostics"]
    assert after["generalisation_gap"] == before["generalisation_gap"]
    assert after["verdict"] == before["verdict"]
    np.testing.assert_allclose(after["decoder_response"], before["decoder_response"], rtol=1e-5)
    with pytest.raises(ValueError, match="counts"):
        vx.tl.diagnose(adata, gaps=True)


def _diagnosed(adata: ad.AnnData, **settings: Any) -> dict[str, Any]:
    found: Any = vx.tl.diagnose(adata, copy=True, **settings)
    return dict(found.uns["vae"]["diagnostics"])


def test_gaps_are_computed_for_the_requested_number_of_cells(fitted):
    found = _diagnosed(fitted, n_cells=7)
    assert found["n_probed"] == 7
    assert found["inference_gap"] > 0
    again = _diagnosed(fitted, n_cells=7)
    assert found["amortisation_gap"] == again["amortisation_gap"]
    other = _diagnosed(fitted, n_cells=7, rng=1)
    assert found["amortisation_gap"] != other["amortisation_gap"]
    without = _diagnosed(fitted, gaps=False)
    assert without.get("amortisation_gap") == fitted.uns["vae"]["diagnostics"].get("amortisation_gap")
    for bad in ({"n_cells": 0}, {"gaps": "yes"}):
        with pytest.raises(ValueError, match="was given"):
            vx.tl.diagnose(fitted, **bad)


def test_diagnosis_of_a_few_cells_and_after_a_file(fitted: ad.AnnData, tmp_path) -> None:
    fitted.write_h5ad(tmp_path / "fit.h5ad")
    part = ad.read_h5ad(tmp_path / "fit.h5ad")[:30].copy()
    vx.tl.diagnose(part, n_cells=5)
    assert part.uns["vae"]["diagnostics"]["decoder_response"].shape == (4,)


class _Mixture(Prior):
    """A prior of two normal distributions on a line through the origin, with known moments but no divergence per dimension."""

    def log_prob(self, z, condition_n=None):
        ends = torch.stack([-0.5 * ((z - c).square() / 0.2 + math.log(2 * math.pi * 0.2)).sum(-1) for c in (-1.0, 1.0)])
        return ends.logsumexp(0) - math.log(2)

    def sample(self, n, generator, condition_n=None):
        side = torch.randint(0, 2, (n, 1), generator=generator) * 2.0 - 1.0
        return side + 0.2**0.5 * torch.randn(n, self.n_latent, generator=generator)


def test_a_learned_prior_that_fits_leaves_no_gap_and_kl_per_dim_is_from_the_aggregate() -> None:
    rng = np.random.default_rng(0)
    mean = (rng.integers(0, 2, (2000, 1)) * 2.0 - 1.0) + rng.normal(0, np.sqrt(0.1), (2000, 2))
    var = np.full((2000, 2), 0.1)
    model = build(ModelConfig(n_genes=5, n_latent=2, n_hidden=4), 0)
    model.state.prior = _Mixture(PriorConfig(), 2)
    covariates = Covariates(torch.zeros(2000, 0, dtype=torch.int64), torch.zeros(2000, 0))
    mean, var = mean.astype(np.float32), var.astype(np.float32)
    found = diagnose(_encoded(mean, var), np.arange(2000) % 4 == 0, TRAIN, FLAT, decoding=Decoding(model, covariates))
    assert abs(found["prior_gap_per_dim"]) < 0.05
    # rate = information + gap; N(0, I) would give a gap
    np.testing.assert_allclose(found["kl"], found["mutual_information"] + 2 * found["prior_gap_per_dim"], atol=0.1)
    plain = diagnose(_encoded(mean, var), np.arange(2000) % 4 == 0, TRAIN, FLAT)
    assert plain["prior_gap_per_dim_low"] > 0.2
    s2 = mean.var(0) + 0.1
    np.testing.assert_allclose(found["kl_per_dim"], 0.5 * np.log(s2 / 0.1), rtol=0.05)


def test_divergence_from_a_costly_prior_is_that_of_its_density() -> None:
    # the training objective of a diffusion prior is a bound, and loose for an untrained network
    mean, var = (x.astype(np.float32) for x in _posterior(np.random.default_rng(0), 400, 2, 0))
    model = build(ModelConfig(n_genes=5, n_latent=2, prior=PriorConfig("diffusion")), 0).eval()
    torch.nn.init.normal_(model.get_submodule("prior.velocity.out").weight, generator=torch.Generator().manual_seed(0))
    nothing = Covariates(torch.zeros(400, 0, dtype=torch.int64), torch.zeros(400, 0))
    held_out = np.arange(400) % 2 == 0
    found = diagnose(_encoded(mean, var), held_out, TRAIN, FLAT, decoding=Decoding(model, nothing))
    q = DiagonalNormal(torch.from_numpy(mean[held_out]), torch.from_numpy(var[held_out]).sqrt())
    by_density = sampled_kl(model.prior, q, 20, seed=1)
    np.testing.assert_allclose(found["kl"], by_density.mean, atol=0.5)
    with torch.no_grad():
        assert abs(float(model.prior.kl(q, q.loc).mean()) - by_density.mean) > 2.0
