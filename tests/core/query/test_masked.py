from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.data import Cells, Counts
from vxpress.core.inference.posterior import encode
from vxpress.core.likelihoods import Bernoulli, NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from vxpress.core.model import VAE, build
from vxpress.core.normal import DiagonalNormal
from vxpress.core.query.masked import Missing, _Chunk, encode_masked
from vxpress.core.training import train

MEANS = [1e-3, 0.1, 1.0, 7.0, 100.0, 3000.0]


class Trained(NamedTuple):
    model: VAE
    cells: Cells


@cache
def _train(make_cells: Callable[..., Cells]) -> Trained:
    cells = make_cells(300, 40)
    model, rows = build(ModelConfig(40, n_latent=2, n_hidden=32, norm="layer", dropout=0.1), 0), torch.arange(300)
    model.start_from(cells, rows)
    train(model, cells, rows[:270], rows[270:], TrainConfig(60, batch_size=64), seed=0)
    return Trained(model, cells)


@pytest.fixture
def trained(make_cells: Callable[..., Cells]) -> Trained:
    """Return a model of 40 genes with two latent dimensions, and its 300 training cells."""
    return _train(make_cells)


def _hide(cells: Cells, observed: np.ndarray, *, keep_library: bool = False) -> tuple[Cells, Missing]:
    x = cells.counts.dense(torch.arange(len(cells))).numpy() * observed
    library = cells.log_library_n1 if keep_library else torch.tensor(x.sum(1, keepdims=True)).clamp_min(1).log()
    hidden = Cells(Counts.from_scipy(sparse.csr_matrix(x)), library, cells.covariates)
    return hidden, Missing(torch.from_numpy(observed), library_known=keep_library)


def _half(seed: int = 0, n: int = 40) -> np.ndarray:
    observed = np.ones(n, dtype=bool)
    observed[np.random.default_rng(seed).permutation(n)[: n // 2]] = False
    return observed


@torch.no_grad()
def _exact_mean(model: VAE, cells: Cells, observed: np.ndarray) -> np.ndarray:
    """Compute E[z | counts of the observed genes] by importance sampling from the prior."""
    z = torch.randn(5_000, 2, generator=torch.Generator().manual_seed(0))
    out = []
    for i in range(len(cells)):
        batch = cells.batch(torch.full((len(z),), i))
        log_p = (
            model.likelihood({"z": z}, batch.covariates, batch.log_library_n1).log_prob(batch.x_ng)[:, observed].sum(-1)
        )
        out.append((torch.softmax(log_p, 0)[:, None] * z).sum(0).numpy())
    return np.array(out)


@pytest.mark.parametrize("theta", [0.1, 1.0, 30.0])
def test_expected_log_counts_are_those_of_scipy(theta: float) -> None:
    log_library = torch.full((1, 1), 2.0)
    log_mean = torch.tensor([MEANS]).log() - 2.0
    gate = torch.full((1, len(MEANS)), -1.0)
    x = np.arange(300_000)
    nb = np.array([(stats.nbinom(theta, theta / (theta + m)).pmf(x) * np.log1p(x)).sum() for m in MEANS])
    poisson = np.array([(stats.poisson(m).pmf(x) * np.log1p(x)).sum() for m in MEANS])
    base = NegativeBinomial(log_mean, torch.full((1, len(MEANS)), theta).log())
    for distribution, expected in (
        (base, nb),
        (ZeroInflatedNegativeBinomial(base, gate), nb * stats.logistic.cdf(1.0)),
        (Poisson(log_mean), poisson),
        (Bernoulli(log_mean), poisson),
    ):
        np.testing.assert_allclose(distribution.expected_log1p(log_library)[0].numpy(), expected, rtol=0.007)


def test_with_all_genes_measured_the_posterior_is_the_encoders(trained: Trained) -> None:
    everything = Missing(torch.ones(40, dtype=torch.bool), library_known=False)
    masked, plain = encode_masked(trained.model, trained.cells, everything), encode(trained.model, trained.cells)
    np.testing.assert_array_equal(masked.encoded.mean_nd, plain.mean_nd)
    np.testing.assert_array_equal(masked.encoded.var_nd, plain.var_nd)
    torch.testing.assert_close(masked.log_library_n1, trained.cells.log_library_n1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("keep_library", [True, False])
def test_it_is_closer_to_the_exact_posterior_than_with_zeros(trained: Trained, keep_library: bool) -> None:
    observed = _half()
    rows = torch.arange(30)
    some = Cells(
        Counts.from_scipy(sparse.csr_matrix(trained.cells.counts.dense(rows).numpy())),
        trained.cells.log_library_n1[rows],
        trained.cells.covariates[rows],
    )
    hidden, missing = _hide(some, observed, keep_library=keep_library)
    exact = _exact_mean(trained.model, some, observed)
    masked = encode_masked(trained.model, hidden, missing).encoded.mean_nd
    zeros = encode(trained.model, hidden).mean_nd
    assert np.square(masked - exact).mean() < 0.4 * np.square(zeros - exact).mean()


def test_the_library_is_estimated_from_the_measured_genes(trained: Trained) -> None:
    hidden, missing = _hide(trained.cells, _half())
    found = encode_masked(trained.model, hidden, missing).log_library_n1
    truth = trained.cells.counts.dense(torch.arange(300)).sum(1, keepdim=True).log()
    assert float((found - truth).abs().median()) < 0.25 * float((hidden.log_library_n1 - truth).abs().median())
    known, missing = _hide(trained.cells, _half(), keep_library=True)
    assert torch.equal(encode_masked(trained.model, known, missing).log_library_n1, trained.cells.log_library_n1)


def test_the_posterior_widens_with_the_number_of_missing_genes(trained: Trained) -> None:
    order = np.random.default_rng(1).permutation(40)
    variances = []
    for n_hidden in (0, 10, 20, 30, 36):
        observed = np.ones(40, dtype=bool)
        observed[order[:n_hidden]] = False
        hidden, missing = _hide(trained.cells, observed)
        variances.append(float(encode_masked(trained.model, hidden, missing).encoded.var_nd.mean()))
    assert variances == sorted(variances)
    assert variances[-1] > 2 * variances[0]


def test_the_share_of_information_is_that_of_the_gradients(trained: Trained) -> None:
    observed = _half()
    hidden, missing = _hide(trained.cells, observed)
    z = torch.tensor([[0.3, -0.4]])
    chunk = _Chunk(trained.model, hidden.batch(torch.arange(1)), missing, torch.ones(trained.model.config.n_latent))
    chunk.q = chunk.q.replaced(z=DiagonalNormal(z, torch.full_like(z, 1e-3)))
    slope_gd = torch.autograd.functional.jacobian(lambda z: chunk.likelihood(z, chunk.log_library_n1).mean[0], z)[:, 0]
    information_gd = (slope_gd.square() / chunk.likelihood(z, chunk.log_library_n1).variance.T).detach().numpy()
    with torch.no_grad():
        found = chunk._information_share()[0].numpy()
    np.testing.assert_allclose(found, information_gd[observed].sum(0) / information_gd.sum(0), rtol=0.02)


def test_it_uses_no_global_random_state_and_repeats(
    trained: Trained, global_noise_untouched: Callable[[], object]
) -> None:
    hidden, missing = _hide(trained.cells, _half())
    with global_noise_untouched():  # type: ignore[attr-defined]
        one, two = (encode_masked(trained.model, hidden, missing).encoded for _ in range(2))
    np.testing.assert_array_equal(one.mean_nd, two.mean_nd)
    np.testing.assert_array_equal(one.var_nd, two.var_nd)
