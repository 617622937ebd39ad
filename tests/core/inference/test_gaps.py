"""Gaps of single cells, compared with their known values in the linear Gaussian model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from vxpress.core.config import ModelConfig, PriorConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts
from vxpress.core.inference.gaps import gaps
from vxpress.core.model import VAE, build


@pytest.fixture(scope="module")
def known() -> Any:
    """Return the linear Gaussian model of ``test_importance.py`` with its cells and known values."""
    spec = importlib.util.spec_from_file_location("of_importance", Path(__file__).with_name("test_importance.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LinearGaussian()


def test_the_true_posterior_has_no_gap(known: Any) -> None:
    found = gaps(known.model(), known.cells, seed=0)
    # with the true posterior every sample of the bound is log p(x)
    np.testing.assert_allclose(found.iwae_n, known.exact_n, atol=1e-6)
    # the divergence is exact but the reconstruction is sampled, so the ELBO has noise
    np.testing.assert_allclose(found.elbo_n.mean(), known.exact_n.mean(), atol=0.05)
    assert abs(found.inference) < 0.05
    # noisy steps end slightly away from the optimum
    assert -0.08 < found.amortisation < 0.02


@pytest.mark.parametrize(("shift", "widen"), [(0.7, 1.0), (0.0, 3.0)])
def test_the_error_of_the_encoder_is_the_amortisation_gap(known: Any, shift: float, widen: float) -> None:
    found = gaps(known.model(shift, widen), known.cells, seed=0)
    # KL(q || p(z | x)) of a posterior that is shifted by some standard deviations, or widened, in two dimensions
    kl = 2 * 0.5 * (shift**2 + widen - 1.0 - np.log(widen))
    np.testing.assert_allclose(found.amortisation, kl, atol=0.1)
    np.testing.assert_allclose(found.inference, kl, atol=0.1)
    np.testing.assert_allclose(found.refined_elbo_n.mean(), known.exact_n.mean(), atol=0.1)


def test_divergence_of_the_refined_posterior_is_that_of_the_true_one(known: Any) -> None:
    found = gaps(known.model(0.0, 6.0), known.cells, seed=0)
    exact = 0.5 * (known.mean_nd**2 + known.var_d - 1.0 - np.log(known.var_d)).sum(1)
    np.testing.assert_allclose(found.refined_kl_n.mean(), exact.mean(), rtol=0.07)
    assert found.kl_n.mean() < 0.9 * exact.mean()


def test_the_model_is_unchanged_and_results_repeat_with_the_seed(known: Any) -> None:
    model = known.model(0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, two = (gaps(model, known.cells, seed=3) for _ in range(2))
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert (one.refined_elbo_n == two.refined_elbo_n).all()


def _of_twenty_cells(prior: str, *, latent_library: bool) -> tuple[VAE, Cells]:
    """Return an initialised model, whose learned priors are N(0, I), and counts."""
    rng = np.random.default_rng(0)
    x_ng = sparse.csr_matrix(rng.poisson(2.0, (20, 15)).astype(np.float32))
    log_library_n1 = torch.from_numpy(np.log(x_ng.sum(1))).float()
    nothing = Covariates(torch.zeros(20, 0, dtype=torch.int64), torch.zeros(20, 0))
    config = ModelConfig(
        n_genes=15, n_latent=2, n_hidden=8, norm="none", latent_library=latent_library, prior=PriorConfig(prior)
    )
    return build(config, 0).eval(), Cells(Counts.from_scipy(x_ng), log_library_n1, nothing)


@pytest.mark.parametrize(
    ("prior", "latent_library"), [("mixture", True), ("flow", True), ("diffusion", False), ("diffusion", True)]
)
def test_a_learned_prior_that_is_normal_has_the_gaps_of_one(prior: str, *, latent_library: bool) -> None:
    # initially they are N(0, I); all components of a mixture are set to 0
    found, expected = (
        gaps(*_of_twenty_cells(name, latent_library=latent_library), seed=0) for name in (prior, "normal")
    )
    for name in ("elbo_n", "kl_n", "refined_elbo_n", "refined_kl_n"):
        np.testing.assert_allclose(getattr(found, name).mean(), getattr(expected, name).mean(), atol=0.15)
