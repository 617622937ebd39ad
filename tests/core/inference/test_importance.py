"""The importance-weighted bound, compared with marginals from closed forms or quadrature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import sparse, special, stats
from torch import nn

from vxpress.core.bodies import MLP
from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts
from vxpress.core.inference import importance
from vxpress.core.inference.importance import (
    Bound,
    ImportanceSums,
    cell_proposals,
    importance_bound,
    importance_bounds,
    log_likelihood,
)
from vxpress.core.likelihoods import MIN_GAUSSIAN_VARIANCE
from vxpress.core.model import VAE, build
from vxpress.core.networks import MIN_POSTERIOR_VARIANCE
from vxpress.core.threads import OneThread, decided

MakeCells = Callable[..., Cells]
N, G, D, SHIFT = 200, 6, 2, 50.0


class LinearGaussian:
    """A VAE with y = W z + b + noise and, unless it is disturbed, the true posterior: p(y) is known.

    Hidden units are shifted so far up that no ReLU cuts.  W has orthogonal columns in the metric of the noise, so that
    the true posterior is diagonal, as an encoder's is.  A library of 1e4 makes y = log1p(x).
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.psi_g = rng.uniform(0.02, 0.1, G)
        basis, _ = np.linalg.qr(rng.normal(size=(G, D)))
        w = np.sqrt(self.psi_g)[:, None] * basis * [3.0, 1.5]
        self.w, self.b_g = w, rng.uniform(4.0, 6.0, G)
        y = rng.normal(size=(N, D)) @ w.T + self.b_g + rng.normal(size=(N, G)) * np.sqrt(self.psi_g)
        x = np.expm1(y).astype(np.float32)
        self.y = np.log1p(x.astype(np.float64))
        none = Covariates(torch.zeros(N, 0, dtype=torch.int64), torch.zeros(N, 0))
        log_library = torch.full((N, 1), np.log(1e4), dtype=torch.float64)
        self.cells = Cells(Counts.from_scipy(sparse.csr_matrix(x)), log_library, none)
        self.exact_n = stats.multivariate_normal(self.b_g, w @ w.T + np.diag(self.psi_g)).logpdf(self.y)
        self.var_d = 1.0 / (1.0 + np.square(w / np.sqrt(self.psi_g)[:, None]).sum(0))
        self.to_mean = self.var_d[:, None] * (w / self.psi_g[:, None]).T
        self.mean_nd = (self.y - self.b_g) @ self.to_mean.T

    @torch.no_grad()
    def model(self, shift: float = 0.0, widen: float = 1.0) -> VAE:
        """Return the model with its posterior shifted by ``shift`` standard deviations and widened."""
        config = ModelConfig(n_genes=G, n_latent=D, n_hidden=4, likelihood="gaussian", norm="none", dropout=0.0)
        model = build(config, 0).double().eval()
        bodies = model.encoder.body, cast("MLP", model.decoder.body)
        for linear in (*bodies[0].linears, *bodies[1].linears):
            _set(linear, 0.0, SHIFT)
        into, out = (cast("nn.Linear", body.linears[0]) for body in bodies)
        into.weight[:D] = torch.from_numpy(self.to_mean)
        into.bias[:D] = SHIFT - torch.from_numpy(self.to_mean @ self.b_g)
        sd_d = torch.from_numpy(np.sqrt(self.var_d))
        _set(model.encoder.mean, 0.0, -SHIFT)
        model.encoder.mean.weight[:, :D] = torch.eye(D)
        model.encoder.mean.bias.add_(shift * sd_d)
        _set(model.encoder.log_variance, 0.0, 0.0)
        model.encoder.log_variance.bias.copy_((widen * sd_d.square() - MIN_POSTERIOR_VARIANCE).log())
        out.weight[:D] = torch.eye(D)
        _set(model.decoder.location, 0.0, 0.0)
        model.decoder.location.weight[:, :D] = torch.from_numpy(self.w)
        model.decoder.location.bias.copy_(torch.from_numpy(self.b_g - SHIFT * self.w.sum(1)))
        model.decoder.log_dispersion.copy_(torch.from_numpy(np.log(self.psi_g - MIN_GAUSSIAN_VARIANCE)))
        return model


def _set(linear: nn.Module, weight: float, bias: float) -> None:
    linear = cast("nn.Linear", linear)
    linear.weight.fill_(weight)
    linear.bias.fill_(bias)


@pytest.fixture(scope="module")
def linear() -> LinearGaussian:
    return LinearGaussian()


@pytest.mark.parametrize("n_samples", [1, 7, 40])
def test_with_the_true_posterior_every_sample_gives_the_exact_marginal(linear: LinearGaussian, n_samples: int) -> None:
    found = log_likelihood(linear.model(), linear.cells, n_samples, seed=0)
    np.testing.assert_allclose(found.log_likelihood_n, linear.exact_n, atol=1e-4)
    np.testing.assert_allclose(found.ess_n, n_samples, rtol=1e-6)
    if n_samples > 1:
        assert found.se_n.max() < 1e-4


def test_the_elbo_is_lower_by_the_divergence_from_the_true_posterior(linear: LinearGaussian) -> None:
    shift, widen, n_samples = 0.8, 1.5, 4000
    found = log_likelihood(linear.model(shift, widen), linear.cells, n_samples, seed=0)
    gap = D * 0.5 * (widen + shift**2 - 1 - np.log(widen))
    # mean over cells of estimates with independent errors
    np.testing.assert_allclose((linear.exact_n - found.elbo_n).mean(), gap, rtol=0.01)
    assert (found.reconstruction_n > found.elbo_n).all()
    sd_d = np.sqrt(linear.var_d)
    q_mean, q_var = linear.mean_nd + shift * sd_d, widen * linear.var_d
    kl_n = 0.5 * (q_var + q_mean**2 - 1 - np.log(q_var)).sum(1)
    np.testing.assert_allclose(found.reconstruction_n - found.elbo_n, kl_n, rtol=1e-5)


def test_the_bound_is_below_the_marginal_and_rises_with_the_samples(linear: LinearGaussian) -> None:
    # narrower than the true posterior: the difficult case, with unbounded weights
    model = linear.model(1.0, 0.5)
    means, errors = [], []
    for n_samples in (1, 4, 16, 64):
        gap = np.concatenate(
            [
                linear.exact_n - log_likelihood(model, linear.cells, n_samples, seed=s).log_likelihood_n
                for s in range(10)
            ]
        )
        means.append(gap.mean())
        errors.append(gap.std() / np.sqrt(len(gap)))
    for k in range(3):
        assert means[k + 1] + 3 * np.hypot(*errors[k : k + 2]) < means[k]
    assert means[-1] > -2 * errors[-1]


def test_the_standard_error_is_that_of_the_estimate(linear: LinearGaussian) -> None:
    model = linear.model(0.3, 1.3)
    found = log_likelihood(model, linear.cells, 1000, seed=0)
    # the error of each cell's estimate in units of its standard error
    score_n = (found.log_likelihood_n - linear.exact_n) / found.se_n
    assert 0.85 < score_n.std() < 1.15
    assert abs(score_n.mean()) < 4 / np.sqrt(N)


def test_rows_per_pass_do_not_change_the_result_beyond_noise(linear: LinearGaussian) -> None:
    model = linear.model(0.5, 1.5)
    few, many = (
        importance_bound(cell_proposals(model, linear.cells), 500, rows_per_pass=rows, seed=1) for rows in (320, 3000)
    )
    error = np.hypot(few.se_n, many.se_n)
    assert (np.abs(few.log_likelihood_n - many.log_likelihood_n) / error).max() < 5
    assert log_likelihood(model, linear.cells, 50, seed=3).log_likelihood_n.shape == (N,)


def test_counts_are_read_once_per_cell_whatever_the_number_of_samples(
    linear: LinearGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[torch.Tensor] = []
    dense = Counts.dense

    def noted(self: Counts, rows: torch.Tensor, *others: Any) -> torch.Tensor:
        read.append(rows)
        return dense(self, rows, *others)

    monkeypatch.setattr(Counts, "dense", noted)
    # two full rounds of samples and a part of one
    log_likelihood(linear.model(), linear.cells, 40, seed=0)
    assert torch.equal(torch.cat(read), torch.arange(N))


def test_streamed_sums_equal_the_direct_sums() -> None:
    rng = np.random.default_rng(0)
    reconstruction, ratio = rng.normal(-5000, 40, (60, 9)), rng.normal(0, 3, (60, 9))
    reconstruction[:, 0] = -np.inf
    reconstruction[:30, 1] = -np.inf
    sums, kl = ImportanceSums(9, torch.device("cpu")), torch.arange(9.0, dtype=torch.float64)
    for part in (slice(0, 1), slice(1, 40), slice(40, 60)):
        sums.add(torch.from_numpy(reconstruction[part]), torch.from_numpy(ratio[part]))
    found = sums.bound(kl)
    log_w = (reconstruction + ratio)[:, 1:]
    np.testing.assert_allclose(found.log_likelihood_n[1:], special.logsumexp(log_w, axis=0) - np.log(60), rtol=1e-14)
    w = np.exp(log_w - log_w.max(0))
    np.testing.assert_allclose(found.ess_n[1:], w.sum(0) ** 2 / (w**2).sum(0), rtol=1e-12)
    np.testing.assert_allclose(found.se_n[1:], w.std(0, ddof=1) / w.mean(0) / np.sqrt(60), rtol=1e-10)
    np.testing.assert_allclose(found.reconstruction_n[2:], reconstruction[:, 2:].mean(0))
    np.testing.assert_allclose(found.elbo_n[2:], reconstruction[:, 2:].mean(0) - np.arange(2, 9))
    # a cell with zero weight in all samples
    assert found.log_likelihood_n[0] == -np.inf


def test_a_latent_library_is_integrated_out(make_cells: MakeCells) -> None:
    cells = make_cells(6, 5, n_batches=2)
    config = ModelConfig(
        n_genes=5,
        n_latent=1,
        n_hidden=8,
        n_categories=(2,),
        has_batch=True,
        latent_library=True,
        norm="none",
        dropout=0.0,
    )
    model = build(config, 1).eval()
    model.get_buffer("blocks.library.log_mean_b").copy_(torch.tensor([5.5, 6.5]))
    model.get_buffer("blocks.library.log_var_b").copy_(torch.tensor([0.3, 0.6]))
    with torch.no_grad():
        q_l = model.blocks["library"].encoder.mean
        q_l.bias.fill_(6.0)
        model.blocks["library"].encoder.log_variance.bias.fill_(-2.0)
    found = log_likelihood(model, cells, 3000, seed=0)
    z, l = np.linspace(-5, 5, 81), np.linspace(3, 9, 241)
    grid = np.stack(np.meshgrid(z, l, indexing="ij"), -1).reshape(-1, 2)
    step = (z[1] - z[0]) * (l[1] - l[0])
    exact = np.empty(len(cells))
    for n in range(len(cells)):
        code = n % 2
        mean, var = (
            float(model.get_buffer("blocks.library.log_mean_b")[code]),
            float(model.get_buffer("blocks.library.log_var_b")[code]),
        )
        batch = cells.batch(torch.full((len(grid),), n))
        point = torch.from_numpy(grid).float()
        with torch.no_grad():
            log_x = model.log_likelihood({"z": point[:, :1], "library": point[:, 1:]}, batch)["rna"].double().numpy()
        log_prior = stats.norm.logpdf(grid[:, 0]) + stats.norm.logpdf(grid[:, 1], mean, np.sqrt(var))
        exact[n] = special.logsumexp(log_x + log_prior) + np.log(step)
    assert np.median(found.ess_n) > 50
    np.testing.assert_array_less(np.abs(found.log_likelihood_n - exact), 5 * found.se_n + 1e-3)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli"])
def test_single_precision_keeps_the_bound(make_cells: MakeCells, likelihood: str) -> None:
    cells = make_cells(80, n_batches=3)
    config = ModelConfig(
        n_genes=20,
        n_latent=3,
        n_hidden=16,
        n_categories=(3,),
        has_batch=True,
        likelihood=likelihood,  # type: ignore[arg-type]
    )
    model = build(config, 0)
    model.start_from(cells, torch.arange(80))
    single = log_likelihood(model, cells, 30, seed=0)
    double = log_likelihood(model.double(), replace(cells, log_library_n1=cells.log_library_n1.double()), 30, seed=0)
    for name in ("log_likelihood_n", "elbo_n", "reconstruction_n"):
        np.testing.assert_allclose(getattr(single, name), getattr(double, name), atol=2e-3, rtol=2e-6)
    np.testing.assert_allclose(single.ess_n, double.ess_n, rtol=0.01)


def test_noise_is_seeded_and_independent_of_the_global_state(
    make_cells: MakeCells, global_noise_untouched: Callable
) -> None:
    cells, model = make_cells(40), build(ModelConfig(n_genes=20, n_latent=3, n_hidden=16), 0)
    with global_noise_untouched():
        one, again = (log_likelihood(model, cells, 10, seed=4) for _ in range(2))
    other = log_likelihood(model, cells, 10, seed=5)
    np.testing.assert_array_equal(one.log_likelihood_n, again.log_likelihood_n)
    assert (one.log_likelihood_n != other.log_likelihood_n).all()
    assert isinstance(one, Bound)
    assert np.isnan(log_likelihood(model, cells, 1, seed=0).se_n).all()


def test_neither_threads_nor_noise_drawn_ahead_change_a_bit(
    linear: LinearGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, found = linear.model(0.5, 1.5), []
    for n_threads, kept in ((1, 1024), (3, 1024), (3, 0)):
        monkeypatch.setattr(importance, "KEPT_SAMPLES", kept)
        with OneThread(), decided(n_threads):
            propose = cell_proposals(model, linear.cells)
            found.append(importance_bounds(propose, (3, 40), rows_per_pass=320, seed=1))
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(one.log_likelihood_n, other.log_likelihood_n)
            np.testing.assert_array_equal(one.elbo_n, other.elbo_n)
