"""Bounds from several samples and replacements of the divergence, compared with closed forms and with each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from vxpress.core.blocks import NormalBlock
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Batch, Cells, Counts, Rows
from vxpress.core.model import VAE, build
from vxpress.core.networks import MIN_POSTERIOR_VARIANCE
from vxpress.core.noise import Noise
from vxpress.core.objectives import (
    MIN_SOFT_WEIGHT,
    OBJECTIVES,
    SOFT_BAND,
    SOFT_STEP,
    Elbo,
    ElboObjective,
    Means,
    Objective,
    elbo,
    importance_terms,
)
from vxpress.core.training import train
from vxpress.core.training.evaluation import evaluate

MakeCells = Callable[..., Cells]
CONFIG = ModelConfig(n_genes=20, n_latent=4, n_hidden=16, n_categories=(3,), has_batch=True)


def _objective(model: VAE, **settings: object) -> Objective:
    config = TrainConfig(max_epochs=1, **settings)  # type: ignore[arg-type]
    return OBJECTIVES[config.objective](config, model)


# gradients


def _toy(n: int, *, latent_library: bool = False) -> tuple[VAE, Batch]:
    """Return a small model in double precision, and the same cell ``n`` times."""
    config = ModelConfig(
        n_genes=4, n_latent=2, n_hidden=3, norm="none", dropout=0.0, likelihood="poisson", latent_library=latent_library
    )
    model = build(config, 5).double().eval()
    with torch.no_grad():
        for linear in (model.encoder.log_variance, model.decoder.location):
            linear.weight.mul_(2.0)
    x_ng = np.tile([[3.0, 0.0, 7.0, 1.0]], (n, 1))
    counts = Counts.from_scipy(sparse.csr_matrix(x_ng))
    nothing = Covariates(torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0, dtype=torch.float64))
    return model, Batch(
        Rows(torch.arange(n), counts), torch.arange(n), torch.full((n, 1), math.log(11.0), dtype=torch.float64), nothing
    )


def _gradients(model: VAE, batch: Batch, objective: Objective, weight: float, seed: int) -> dict[str, Tensor]:
    model.zero_grad()
    objective.loss(objective.terms(model, batch, Noise(seed)), weight, 0.0).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("latent_library", [False, True])
def test_doubly_reparameterised_gradients_have_the_mean_of_plain_ones(weight: float, latent_library: bool) -> None:
    model, batch = _toy(200, latent_library=latent_library)
    found: dict[str, dict[str, Tensor]] = {}
    for name in ("iwae", "dreg"):
        objective = _objective(model, objective=name, n_samples=3)
        draws = [_gradients(model, batch, objective, weight, seed) for seed in range(40)]
        found[name] = {key: torch.stack([draw[key] for draw in draws]) for key in draws[0]}
    assert found["iwae"].keys() == found["dreg"].keys()
    for key, plain in found["iwae"].items():
        double = found["dreg"][key]
        error = ((plain.var(0) + double.var(0)) / 40).sqrt()
        difference = (plain.mean(0) - double.mean(0)).abs()
        assert bool((difference <= 5.0 * error + 1e-9).all()), key
        if key.startswith("decoder"):
            # the samples and weights are the same
            torch.testing.assert_close(plain, double, rtol=1e-8, atol=1e-10)


def _signal_to_noise(name: str, k: int) -> float:
    model, batch = _toy(50)
    objective = _objective(model, objective=name, n_samples=k)
    draws = [_gradients(model, batch, objective, 1.0, seed) for seed in range(40)]
    flat = torch.stack(
        [torch.cat([v.flatten() for n, v in d.items() if n.startswith("blocks.z.encoder")]) for d in draws]
    )
    used = flat.var(0) > 0
    return float((flat.mean(0).square() / flat.var(0))[used].mean())


def test_the_encoders_gradient_has_less_noise_with_many_samples() -> None:
    assert _signal_to_noise("dreg", 64) > 5 * _signal_to_noise("iwae", 64)


def _linear_gaussian(slope_g: np.ndarray, mean_g: np.ndarray, variance_g: np.ndarray) -> VAE:
    """Build y = slope z + mean + noise, with the exact posterior as encoder: relu(. + 1000) is linear."""
    g, far = len(slope_g), 1e3
    config = ModelConfig(n_genes=g, n_latent=1, n_hidden=1, likelihood="gaussian", norm="none", dropout=0.0)
    model = build(config, 0).double().eval()
    variance = 1 / (1 + (slope_g**2 / variance_g).sum())
    weight_g = variance * slope_g / variance_g

    def fill(linear: nn.Module, weight: object, bias: object) -> None:
        assert isinstance(linear, nn.Linear)
        linear.weight.copy_(torch.as_tensor(weight).reshape(linear.weight.shape))
        linear.bias.copy_(torch.as_tensor(bias).reshape(linear.bias.shape))

    with torch.no_grad():
        fill(model.encoder.body.linears[0], weight_g, far - (weight_g * mean_g).sum())  # type: ignore[index]
        fill(model.encoder.mean, 1.0, -far)
        fill(model.encoder.log_variance, 0.0, np.log(variance - MIN_POSTERIOR_VARIANCE))
        fill(model.decoder.body.linears[0], 1.0, far)  # type: ignore[index, union-attr]
        fill(model.decoder.location, slope_g, mean_g - far * slope_g)
        model.decoder.log_dispersion.copy_(torch.as_tensor(np.log(variance_g - 1e-3)))
    return model


def test_against_the_gradient_of_the_exact_evidence() -> None:
    rng = np.random.default_rng(0)
    slope_g, mean_g, variance_g = rng.normal(size=5), rng.uniform(1, 3, 5), rng.uniform(0.2, 2, 5)
    model, n = _linear_gaussian(slope_g, mean_g, variance_g), 4000
    x_ng = np.tile(rng.poisson(6.0, (1, 5)).astype(float), (n, 1))
    counts = Counts.from_scipy(sparse.csr_matrix(x_ng))
    nothing = Covariates(torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0))
    # with a library of 1e4 the distribution is of log1p(x), which is what the encoder sees too
    batch = Batch(
        Rows(torch.arange(n), counts), torch.arange(n), torch.full((n, 1), math.log(1e4), dtype=torch.float64), nothing
    )

    bias = torch.tensor(mean_g, requires_grad=True)
    covariance = torch.as_tensor(np.outer(slope_g, slope_g) + np.diag(variance_g))
    evidence = MultivariateNormal(bias, covariance).log_prob(torch.log1p(torch.as_tensor(x_ng[0])))
    evidence.backward()

    objective = _objective(model, objective="dreg", n_samples=8)
    terms = objective.terms(model, batch, Noise(1))
    # every sample of an exact posterior has the weight p(x)
    torch.testing.assert_close(terms.value().detach(), evidence.detach().expand(n), rtol=1e-8, atol=1e-8)
    gradients = _gradients(model, batch, objective, 1.0, 1)
    for name, gradient in gradients.items():
        if name.startswith("blocks.z.encoder"):  # there is nothing to learn, and no noise in the gradient
            assert float(gradient.abs().max()) < 1e-7, name
    assert bias.grad is not None
    torch.testing.assert_close(-gradients["decoder.location.bias"], bias.grad, rtol=0.05, atol=0.02)
    plain = _gradients(model, batch, _objective(model, objective="iwae", n_samples=8), 1.0, 1)
    assert float(plain["blocks.z.encoder.log_variance.bias"].abs().max()) > 1e-4


# bounds


@pytest.mark.parametrize("likelihood", ["nb", "gaussian", "bernoulli"])
@pytest.mark.parametrize("latent_library", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_one_sample_is_the_estimate_of_the_elbo(
    make_cells: MakeCells, likelihood: str, latent_library: bool, beta: float
) -> None:
    config = replace(CONFIG, likelihood=likelihood, latent_library=latent_library)  # type: ignore[arg-type]
    batch, model = make_cells(30, n_batches=3).batch(torch.arange(30)), build(config, 0).eval()
    eps_nd = torch.randn(30, 4 + latent_library, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        terms, several = (
            elbo(model, batch, Noise(0), eps_nd),
            importance_terms(model, batch, Noise(0), 1, eps_nd[:, None]),
        )
        q = model.posterior(batch)["z"]
        z_nd = q.rsample(eps_nd[:, :4])
        kl_n = (Normal(q.loc, q.scale).log_prob(z_nd) - Normal(0.0, 1.0).log_prob(z_nd)).sum(-1)
        expected = terms.reconstruction_n - beta * kl_n
        if latent_library:
            q_l = model.posterior(batch)["library"]
            log_l = q_l.rsample(eps_nd[:, 4:])
            mean, variance = cast("NormalBlock", model.blocks["library"]).prior(batch.covariates)
            expected = expected - (
                Normal(q_l.loc, q_l.scale).log_prob(log_l) - Normal(mean, variance.sqrt()).log_prob(log_l)
            ).squeeze(-1)
    torch.testing.assert_close(several.value(beta), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(several.reconstruction_n, terms.reconstruction_n, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(several.kl["z"], terms.kl["z"])


def test_the_bound_rises_with_the_samples_and_over_the_elbo(make_cells: MakeCells) -> None:
    batch, model = make_cells(30, n_batches=3).batch(torch.arange(30)), build(CONFIG, 0).double().eval()
    batch = replace(batch, log_library_n1=batch.log_library_n1.double())
    with torch.no_grad():
        log_weight_kn = importance_terms(model, batch, Noise(3), 64).log_weight()
    # means over disjoint blocks of samples: rising block size cannot lower them (Jensen)
    bounds = [
        float((log_weight_kn.view(64 // k, k, 30).logsumexp(1) - math.log(k)).mean()) for k in (1, 2, 4, 8, 16, 32, 64)
    ]
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0] + 0.05


def test_fixed_noise_fixes_the_objective_and_chunks_do_not_matter(
    make_cells: MakeCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, rows, model = make_cells(60, n_batches=3), torch.arange(60), build(CONFIG, 0)
    objective = _objective(model, objective="iwae", n_samples=5, beta=0.7)
    eps = torch.randn(60, 5, 4, generator=torch.Generator().manual_seed(0))
    whole = evaluate(model, cells, rows, eps, objective)
    monkeypatch.setattr("vxpress.core.training.evaluation.CHUNK", 35)
    parts = evaluate(model, cells, rows, eps, objective)
    for name in ("reconstruction", "kl", "further"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-6, atol=1e-6)
    assert list(whole.further) == ["bound"]
    expected = importance_terms(model, cells.batch(rows), Noise(9), 5, eps).value(0.7).mean()
    assert objective.final(whole) == pytest.approx(float(expected.detach()), rel=1e-6)


@pytest.mark.parametrize("objective", ["iwae", "dreg"])
@pytest.mark.parametrize("latent_library", [False, True])
def test_training_on_a_bound_reports_elbo_and_bound(
    make_cells: MakeCells, objective: str, latent_library: bool
) -> None:
    cells, rows = make_cells(200, 20), torch.arange(200)
    model = build(ModelConfig(n_genes=20, n_latent=3, n_hidden=16, latent_library=latent_library), 0)
    model.start_from(cells, rows)
    config = TrainConfig(max_epochs=15, batch_size=64, objective=objective, n_samples=4)  # type: ignore[arg-type]
    history = {k: np.array(v) for k, v in train(model, cells, rows[40:], rows[:40], config, seed=0).history.items()}
    parts = history["reconstruction_validation"] - history["kl_validation"] - history["elbo_validation"]
    assert (parts > 0.0).all() if latent_library else np.allclose(parts, 0.0)
    # at weight 1 throughout, above the ELBO of the same samples
    assert (history["objective_validation"] > history["elbo_validation"]).all()
    assert history["objective_validation"][-1] > history["objective_validation"][0] + 5


# replacements of the weighted divergence


def _terms(kl_nd: Tensor) -> Elbo:
    return Elbo({"rna": torch.full((len(kl_nd),), -100.0)}, {"z": kl_nd})


def test_hard_free_bits_give_no_gradient_below_the_floor() -> None:
    kl_nd = torch.tensor([[0.1, 0.2, 4.0, 0.0], [0.3, 0.8, 2.0, 0.0]], requires_grad=True)
    objective = _objective(build(CONFIG, 0), free_bits=0.4, free_bits_form="hard")
    loss = objective.loss(_terms(kl_nd), 2.0, 0.0)
    # the means are 0.2, 0.5, 3 and 0
    assert float(loss.detach()) == pytest.approx(100 + 2.0 * (0.4 + 0.5 + 3.0 + 0.4))
    loss.backward()
    assert kl_nd.grad is not None
    assert kl_nd.grad.tolist() == [[0.0, 1.0, 1.0, 0.0]] * 2


def test_soft_free_bits_weigh_each_dimension_and_keep_its_gradient() -> None:
    objective = _objective(build(CONFIG, 0), free_bits=1.0, beta=3.0)
    assert isinstance(objective, ElboObjective)
    kl_nd = torch.tensor([[0.5, 1.02, 2.0, 0.0]], requires_grad=True)
    for step in range(1, 4):
        loss = objective.loss(_terms(kl_nd), 3.0, 0.0)
        shares = [SOFT_STEP**-step, 1.0, 1.0, SOFT_STEP**-step]
        assert objective.share["z"].tolist() == pytest.approx(shares)
        assert float(loss.detach()) == pytest.approx(100 + 3.0 * (0.5 * shares[0] + 1.02 + 2.0))
    loss.backward()
    assert kl_nd.grad is not None
    assert kl_nd.grad[0].tolist() == pytest.approx([3.0 * share for share in shares])
    # the weight rises up to the full weight; NaN changes nothing
    for _ in range(5):
        objective.loss(_terms(torch.full((1, 4), SOFT_BAND + 0.01)), 3.0, 0.0)
    assert objective.share["z"].tolist() == [1.0] * 4
    for _ in range(200):
        objective.loss(_terms(torch.tensor([[0.0, float("nan"), 0.0, 0.0]])), 3.0, 0.0)
    assert objective.share["z"].tolist() == pytest.approx([MIN_SOFT_WEIGHT, 1.0, MIN_SOFT_WEIGHT, MIN_SOFT_WEIGHT])


def test_dimensions_of_a_joint_divergence_share_one_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(CONFIG, 0)
    monkeypatch.setattr(type(model.prior), "analytic", False)
    objective = _objective(model, free_bits=0.5, free_bits_form="hard")
    assert float(objective.loss(_terms(torch.tensor([[1.0], [1.4]])), 1.0, 0.0)) == pytest.approx(100 + 4 * 0.5)
    assert float(objective.loss(_terms(torch.tensor([[3.0], [1.4]])), 1.0, 0.0)) == pytest.approx(102.2)


def _means(kl: float, **further: list[float]) -> Means:
    return Means({"rna": -100.0}, {"z": kl, "library": 1.0}, further)


def test_final_objectives() -> None:
    model = build(CONFIG, 0)
    assert _objective(model, beta=2.0).final(_means(3.0)) == -107.0
    floored = _objective(model, beta=2.0, free_bits=0.5)
    assert floored.final(_means(3.0, z=[0.1, 0.2, 2.6, 0.1])) == pytest.approx(-101.0 - 2 * (0.5 * 3 + 2.6))
    held = _objective(model, beta=9.0, kl_schedule="capacity", kl_capacity=5.0)
    assert [held.final(_means(kl)) for kl in (4.0, 5.0, 7.0)] == [-110.0, -101.0, -119.0]
    for name in ("iwae", "dreg"):
        assert _objective(model, objective=name).final(_means(2.0, bound=[-4.0])) == -4.0


def _fit(cells: Cells, **settings: object) -> tuple[VAE, dict[str, np.ndarray], np.ndarray]:
    """Train without dropout; return the model, the history and the held-out divergence per dimension."""
    config = ModelConfig(n_genes=20, n_latent=4, n_hidden=16, norm="batch", norm_eps=1e-5, dropout=0.0)
    model, rows = build(config, 0), torch.arange(len(cells))
    model.start_from(cells, rows[100:])
    known = {"max_epochs": 45, "batch_size": 100, "early_stopping": False}
    outcome = train(model, cells, rows[100:], rows[:100], TrainConfig(**known | settings), seed=0)  # type: ignore[arg-type]
    with torch.no_grad():
        q = model.posterior(cells.batch(rows[100:]))["z"]
        kl_d = model.prior.kl(q, q.loc).mean(0).numpy()
    return model, {k: np.array(v) for k, v in outcome.history.items()}, kl_d


def test_free_bits_prevent_a_collapse(make_cells: MakeCells) -> None:
    cells, beta = make_cells(600, 20), 50.0
    _, history, kl_d = _fit(cells, beta=beta)
    assert kl_d.max() < 0.01
    for form in ("hard", "soft"):
        _, floored, kl_d = _fit(cells, beta=beta, free_bits=0.3, free_bits_form=form)
        assert kl_d.sum() == pytest.approx(4 * 0.3, rel=0.2), form
        assert ((kl_d > 0.15) & (kl_d < 0.45)).all(), (form, kl_d)
        # the reported bound is the plain one for every training objective
        np.testing.assert_allclose(
            floored["elbo_validation"], floored["reconstruction_validation"] - floored["kl_validation"]
        )
        assert floored["elbo_validation"][-1] > history["elbo_validation"][-1] + 1
        np.testing.assert_array_equal(floored["kl_weight"], history["kl_weight"])


@pytest.mark.parametrize("capacity", [1.5, 9.0])
def test_a_capacity_is_reached_from_either_side(make_cells: MakeCells, capacity: float) -> None:
    cells = make_cells(600, 20)
    _, plain, _ = _fit(cells)
    settings = {"kl_schedule": "capacity", "kl_capacity": capacity, "beta": 25.0}
    _, history, _ = _fit(cells, **settings)
    assert abs(history["kl_train"][-5:].mean() / capacity - 1) < 0.1 < abs(plain["kl_train"][-1] / capacity - 1)
    assert history["kl_target"][-1] == capacity
    assert (history["kl_weight"] == 25.0).all()
    expected = history["reconstruction_validation"] - 25.0 * np.abs(history["kl_validation"] - capacity)
    np.testing.assert_allclose(history["objective_validation"], expected)
