from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from scipy import sparse
from torch import Tensor

from vxpress.core.bodies import MLP
from vxpress.core.config import Dispersion, ModelConfig, Norm
from vxpress.core.covariates import Covariates
from vxpress.core.data import Batch, Counts, Rows
from vxpress.core.likelihoods import Gaussian, NegativeBinomial, ZeroInflated
from vxpress.core.networks import MIN_POSTERIOR_VARIANCE, Decoder, Encoder
from vxpress.core.noise import Noise

N, G, D = 6, 9, 3
BATCH, LABEL = torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([3, 3, 0, 1, 2, 0])
COVARIATES = Covariates(BATCH[:, None], torch.zeros(N, 0), LABEL)
LOG_LIBRARY = torch.linspace(3.0, 9.0, N)[:, None]


def _config(**settings: object) -> ModelConfig:
    known = {"n_genes": G, "n_latent": D, "n_hidden": 16, "n_categories": (3,), "has_batch": True, "n_labels": 4}
    return ModelConfig(**{**known, **settings})  # type: ignore[arg-type]


def _z(n: int = N) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(0))


def _decoder(**settings: object) -> Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Decoder(_config(**settings), n_condition=0).eval()


@pytest.mark.parametrize("remainder", [False, True])
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli"])
def test_the_composition_sums_to_one_with_its_remainder(likelihood: str, remainder: bool) -> None:
    decoder = _decoder(likelihood=likelihood, remainder=remainder)
    log_rho_ng, log_rest_n1 = decoder.locate(decoder.features(_z(), None))
    assert log_rho_ng.shape == (N, G)
    assert (log_rest_n1 is not None) == remainder
    total = log_rho_ng.exp().sum(-1)
    if log_rest_n1 is not None:
        assert (total < 1).all()
        total = total + log_rest_n1.exp()[:, 0]
    torch.testing.assert_close(total, torch.ones(N))


@pytest.mark.parametrize("remainder", [False, True])
def test_the_mean_is_the_library_times_the_composition(remainder: bool) -> None:
    decoder = _decoder(likelihood="poisson", remainder=remainder)
    log_rho_ng, _ = decoder.locate(decoder.features(_z(), None))
    distribution = decoder(_z(), None, COVARIATES, LOG_LIBRARY)
    torch.testing.assert_close(distribution.mean, LOG_LIBRARY.exp() * log_rho_ng.exp())


def test_log_values_are_not_a_composition() -> None:
    decoder = _decoder(likelihood="gaussian", remainder=True)
    location_ng, rest = decoder.locate(decoder.features(_z(), None))
    assert rest is None
    assert location_ng.shape == (N, G)
    distribution = decoder(_z(), None, COVARIATES, LOG_LIBRARY)
    assert isinstance(distribution, Gaussian)
    assert torch.equal(distribution.mean, location_ng)


@pytest.mark.parametrize(
    ("dispersion", "row"),
    [("gene", torch.zeros(N, dtype=torch.int64)), ("gene-batch", BATCH), ("gene-label", LABEL)],
)
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "gaussian"])
def test_each_cell_has_the_dispersion_of_its_group(likelihood: str, dispersion: Dispersion, row: Tensor) -> None:
    decoder = _decoder(likelihood=likelihood, dispersion=dispersion)
    distribution = decoder(_z(), None, COVARIATES, LOG_LIBRARY)
    if isinstance(distribution, ZeroInflated):
        distribution = distribution.base
    dispersion_ng = (
        (distribution.variance - 1e-3).log() if isinstance(distribution, Gaussian) else distribution.log_theta
    )
    expected = decoder.log_dispersion[row]
    torch.testing.assert_close(dispersion_ng.expand(N, G), expected, rtol=1e-4, atol=1e-4)


def test_a_dispersion_per_cell_is_decoded() -> None:
    decoder = _decoder(dispersion="gene-cell")
    distribution = decoder(_z(), None, COVARIATES, LOG_LIBRARY)
    assert isinstance(distribution, NegativeBinomial)
    torch.testing.assert_close(distribution.log_theta, decoder.heads["dispersion"](decoder.features(_z(), None)))


@pytest.mark.parametrize("condition_output", [True, False])
def test_the_condition_reaches_the_composition(condition_output: bool) -> None:
    decoder = Decoder(_config(condition_output=condition_output), n_condition=3).eval()
    same_z = _z(1).expand(N, D)
    distribution = decoder(same_z, torch.eye(3)[BATCH], COVARIATES, LOG_LIBRARY[:1].expand(N, 1))
    torch.testing.assert_close(distribution.mean[0], distribution.mean[5])
    assert not torch.allclose(distribution.mean[0], distribution.mean[1])
    assert decoder.location.in_features == 16 + 3 * condition_output


def _batch(x_ng: torch.Tensor) -> Batch:
    counts = Counts.from_scipy(sparse.csr_matrix(x_ng.numpy()))
    nothing = Covariates(torch.zeros(len(x_ng), 0, dtype=torch.int64), torch.zeros(len(x_ng), 0))
    return Batch(Rows(torch.arange(len(x_ng)), counts), torch.arange(len(x_ng)), torch.zeros(len(x_ng), 1), nothing)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_each_row_is_encoded_independently_in_evaluation(norm: Norm) -> None:
    encoder = Encoder(_config(norm=norm, n_layers=2, dropout=0.5), 0, D).eval()
    x_ng = torch.rand(N, G, generator=torch.Generator().manual_seed(3))
    whole, alone = encoder(_batch(x_ng), None, Noise(0)), encoder(_batch(x_ng[2:3]), None, Noise(9))
    torch.testing.assert_close(whole.loc[2:3], alone.loc)
    torch.testing.assert_close(whole.scale[2:3], alone.scale)


def test_the_posterior_variance_has_a_floor() -> None:
    encoder = Encoder(_config(), 0, D)
    torch.nn.init.constant_(encoder.log_variance.bias, -1e4)
    q = encoder(_batch(torch.rand(N, G)), None, None)
    torch.testing.assert_close(q.scale.square(), torch.full((N, D), MIN_POSTERIOR_VARIANCE))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_dropout_keeps_the_expectation_and_drops_its_share(dropout: float) -> None:
    mlp = MLP(G, 0, _config(norm="none"), dropout)
    x_ng = torch.rand(1, G, generator=torch.Generator().manual_seed(3)).expand(20_000, G)
    with torch.no_grad():
        dropped, whole = mlp.train()(x_ng, None, Noise(0)), mlp.eval()(x_ng, None, Noise(0))
    active = whole[0] > 0
    assert active.any()
    share = (dropped[:, active] == 0).float().mean(0)
    torch.testing.assert_close(share, torch.full_like(share, dropout), rtol=0, atol=0.02)
    torch.testing.assert_close(dropped.mean(0), whole[0], rtol=0.03, atol=0)


def test_dropout_draws_from_the_noise_alone(global_noise_untouched: Callable[[], AbstractContextManager[None]]) -> None:
    mlp = MLP(G, 0, _config(), 0.4).train()
    x_ng = torch.rand(N, G, generator=torch.Generator().manual_seed(3))
    with global_noise_untouched():
        first = mlp(x_ng, None, Noise(5))
    torch.manual_seed(1234)
    assert torch.equal(first, mlp(x_ng, None, Noise(5)))
    assert not torch.equal(first, mlp(x_ng, None, Noise(6)))


def test_the_decoder_has_no_dropout() -> None:
    decoder = _decoder(dropout=0.9, norm="layer")
    still = decoder(_z(), None, COVARIATES, LOG_LIBRARY, Noise(0)).mean
    # up to the last bits, in which the compiled layer of training differs from that of torch
    torch.testing.assert_close(still, decoder.train()(_z(), None, COVARIATES, LOG_LIBRARY, Noise(1)).mean)


def test_noise_is_standard_normal_and_independent_of_the_global_state(
    global_noise_untouched: Callable[[], AbstractContextManager[None]],
) -> None:
    with global_noise_untouched():
        eps = Noise(3).normal_like(torch.zeros(50_000))
    assert abs(float(eps.mean())) < 4.5 / 50_000**0.5
    assert float(eps.var()) == pytest.approx(1.0, abs=4.5 * (2 / 50_000) ** 0.5)
    assert torch.equal(eps, Noise(3).normal_like(torch.zeros(50_000)))
