"""Likelihoods of other kinds than the built-in ones, each with an output of its own, in every use of a model.

Two are defined here: log values that no library size scales, from :class:`Levels`; and foreground over a background, whose
decoded expression depends on a head, from :class:`Output` itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from vxpress.bridge.ask.decoded import DecodingRequest, decode
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts, Source
from vxpress.core.inference.group_expression import count_overdispersion
from vxpress.core.inference.importance import log_likelihood
from vxpress.core.inference.posterior import Draws, Encoded, Genes, encode, expected_expression
from vxpress.core.inference.predictive_check import predictive_check
from vxpress.core.inference.response import REACH, decoder_response
from vxpress.core.likelihoods import (
    LIKELIHOODS,
    Decoded,
    Layers,
    Levels,
    Likelihood,
    Measured,
    Output,
    Poisson,
    Sums,
    ToReadOut,
)
from vxpress.core.model import VAE, build
from vxpress.core.query.masked import Missing, encode_masked
from vxpress.core.readout import fit_readout
from vxpress.core.training import Outcome, train

N, INSIDE, OUTSIDE = 160, 20, 5


# log-normal intensities


class LogIntensities(Levels):
    """Levels log1p(x), whatever the library."""

    scale = "log1p"

    def level(self, x: Tensor, library: Tensor) -> Tensor:
        return torch.log1p(x)

    def per_intensity(self, library: Tensor) -> Tensor:
        return torch.ones_like(library)


class LogNormal(Likelihood):
    """Normal log1p(x), with one variance per gene."""

    output = LogIntensities()
    has_dispersion = True
    discrete = False
    observes = "log intensities"

    def __init__(self, loc: Tensor, log_variance: Tensor) -> None:
        self.loc, self.log_variance = torch.broadcast_tensors(loc, log_variance)
        super().__init__(self.loc.shape)

    @classmethod
    def from_decoded(cls, decoded: Decoded) -> LogNormal:
        assert decoded.log_dispersion is not None
        return cls(decoded.location_ng, decoded.log_dispersion)

    @classmethod
    def log_dispersion_from(cls, variance_g: Tensor) -> Tensor:
        return variance_g.clamp_min(1e-3).log()

    def observe(self, x: Tensor) -> Tensor:
        return torch.log1p(x)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.log_variance.exp()

    @property
    def zero_probability(self) -> Tensor:
        return torch.zeros_like(self.loc)

    def expected_log1p(self, log_library_n1: Tensor) -> Tensor:
        return self.loc

    def at(self, *index: Tensor | slice) -> LogNormal:
        return LogNormal(self.loc[index], self.log_variance[index])

    def steps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        upto = torch.special.ndtr((value.double() - self.loc) / self.variance.double().sqrt())
        return upto, upto

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.distributions.Normal(self.loc, self.variance.sqrt()).log_prob(self.observe(value))

    def draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        return self.loc + self.variance.sqrt() * torch.randn(shape, generator=generator)


# foreground over background


class ForegroundSums(Sums):
    """Sums of the foreground alone: the rate above the background."""

    def add_block(self, f_nf: Tensor, part: slice) -> None:
        layers = self.model_layers
        rate = foreground(layers.location(f_nf), layers.heads["signal"](f_nf))
        self.inside[part].add_(rate if self.columns["location"] is None else rate[:, self.columns["location"]])


def foreground(location: Tensor, signal: Tensor) -> Tensor:
    """Compute the rate above a background of exp(location)."""
    return location.exp() * torch.nn.functional.softplus(signal)


class Foreground(Output):
    """The location is the log rate of the background."""

    scale = "foreground"
    nonnegative = True

    def start(self, layers: Layers, likelihood: type[Likelihood], cells: Source, rows: Tensor) -> None:
        mean_g = cells.batch(rows).x_ng.mean(0).clamp_min(1e-2)
        layers.start_location((mean_g / 2).log())
        for name, value in likelihood.heads.items():
            layers.start_head(name, value)

    def sums(self, layers: Layers, n: int, inside: Tensor | None, outside: Tensor | None) -> Sums:
        return ForegroundSums(layers, n, inside, outside)

    def expected_counts(self, layers: Layers, values_ng: Tensor, log_library_n1: Tensor) -> Tensor:
        return values_ng

    def fit_readout(self, layers: Layers, data: ToReadOut) -> None:
        raise NotImplementedError

    def measured_share(self, distribution: Likelihood, measured: Measured) -> Tensor:
        # the library has no part in the rate
        return torch.ones_like(measured.batch.log_library_n1)


class WithBackground(Poisson):
    """Poisson counts whose rate is that of the background plus that of the foreground."""

    output = Foreground()
    # softplus(0.5413) = 1: half of the counts are foreground at the start
    heads: ClassVar[Mapping[str, float]] = {"signal": 0.5413}
    observes = "protein counts"

    @classmethod
    def from_decoded(cls, decoded: Decoded) -> Poisson:
        background = decoded.location_ng
        return cls((background.exp() + foreground(background, decoded.heads["signal"])).log())

    def expected_log1p(self, log_library_n1: Tensor) -> Tensor:
        return super().expected_log1p(torch.zeros_like(log_library_n1))

    def at(self, *index: Tensor | slice) -> WithBackground:
        return WithBackground(self.log_mean[index])


OWN = {"log_normal": LogNormal, "with_background": WithBackground}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    """Register the likelihoods for the tests of this file."""
    for name, kind in OWN.items():
        LIKELIHOODS.register(name, kind)
    try:
        yield
    finally:
        for name in OWN:
            LIKELIHOODS.remove(name)


class Trained(NamedTuple):
    started: VAE
    model: VAE
    cells: Cells
    outside: Cells
    outcome: Outcome


ROWS = torch.arange(N)


def _build(name: str) -> VAE:
    config: dict[str, Any] = {
        "n_genes": INSIDE,
        "n_latent": 2,
        "n_hidden": 16,
        "norm": "batch",
        "dropout": 0.1,
        "likelihood": name,
        "n_categories": (2,),
    }
    if name == "log_normal":
        config["n_readout"] = OUTSIDE
    return build(ModelConfig(**config, has_batch=True, condition_output=True), 0)


@pytest.fixture(scope="module", params=OWN)
def trained(_registered: None, request: pytest.FixtureRequest) -> Trained:
    """Return a model of an own likelihood that was built, started and trained like any other."""
    rng = np.random.default_rng(0)
    z, slope = rng.normal(size=(N, 2)), rng.normal(size=(2, INSIDE + OUTSIDE))
    x = rng.poisson(np.exp(1.5 + 0.7 * z @ slope)).astype(np.float32)
    x, outside = sparse.csr_matrix(x[:, :INSIDE]), Counts.from_scipy(sparse.csr_matrix(x[:, INSIDE:]))
    library = torch.from_numpy(np.asarray(x.sum(1))).clamp_min(1.0).log()
    cells = Cells(Counts.from_scipy(x), library, Covariates(ROWS[:, None] % 2, torch.zeros(N, 0)))
    started, model = _build(request.param), _build(request.param)
    for each in (started, model):
        each.start_from(cells, ROWS)
    outcome = train(model, cells, ROWS[:140], ROWS[140:], TrainConfig(30, batch_size=35), seed=0)
    return Trained(started.eval(), model.eval(), cells, replace(cells, counts=outside), outcome)


def _moments(trained: Trained) -> tuple[Tensor, Tensor]:
    found = encode(trained.model, trained.cells)
    return torch.from_numpy(found.mean_nd), torch.from_numpy(found.var_nd)


@torch.no_grad()
def _values(model: VAE, z_nd: Tensor, cells: Cells) -> Tensor:
    """Compute decoded expression directly from the likelihood's parameters."""
    f_nf = model.decoder.features(z_nd, model.conditioner(cells.covariates))
    location = model.decoder.location(f_nf)
    if model.decoder.likelihood is LogNormal:
        return location
    return foreground(location, model.decoder.heads["signal"](f_nf))


def test_it_starts_from_the_data(trained: Trained) -> None:
    x_ng, cells = trained.cells.batch(ROWS).x_ng, trained.cells
    with torch.no_grad():
        distribution = trained.started.likelihood({"z": torch.zeros(N, 2)}, cells.covariates, cells.log_library_n1)
    expected = distribution.observe(x_ng).mean(0)
    error = (distribution.mean.mean(0) - expected).abs() / expected.clamp_min(1.0)
    assert float(error.max()) < 0.2
    if isinstance(distribution, LogNormal):
        torch.testing.assert_close(distribution.variance[0], torch.log1p(x_ng).var(0))
    else:
        bias = trained.started.decoder.heads["signal"].bias
        torch.testing.assert_close(bias, torch.full_like(bias, 0.5413))


def test_it_trains(trained: Trained) -> None:
    history = np.array(trained.outcome.history["elbo_validation"])
    assert bool(np.isfinite(history).all())
    # the latent space describes more than the mean profile
    assert history.max() - history[0] > 1.0
    batch, (mean_nd, _) = trained.cells.batch(ROWS), _moments(trained)
    with torch.no_grad():
        value = trained.model.log_likelihood({"z": mean_nd}, batch)["rna"]
        distribution = trained.model.likelihood({"z": mean_nd}, batch.covariates, batch.log_library_n1)
    torch.testing.assert_close(value, distribution.log_prob(batch.x_ng).sum(-1))
    assert float(log_likelihood(trained.model, trained.cells, 20, seed=0).log_likelihood_n.mean()) > history[0]


@pytest.mark.parametrize("some", [False, True])
def test_it_is_decoded_without_scaling(trained: Trained, some: bool) -> None:
    mean_nd, _ = _moments(trained)
    columns = torch.tensor([7, 3]) if some else None
    genes = Genes(columns, torch.empty(0, dtype=torch.int64))
    at_means = Encoded.at({"z": mean_nd.numpy()})
    (found,) = expected_expression(trained.model, at_means, trained.cells.covariates, Draws(1, (None,), 0), genes)
    expected = _values(trained.model, mean_nd, trained.cells)
    torch.testing.assert_close(found[1], expected[:, columns] if columns is not None else expected)
    # a target sum, which is for shares alone, does not change the layer of a fit
    request = DecodingRequest(Draws(1, (None,), 0), np.float32(1e4), genes=None if columns is None else columns.numpy())
    (matrix,) = decode(
        trained.model, at_means, trained.cells.covariates,
        modelled_g=np.ones(INSIDE, dtype=bool), request=request,
    )  # fmt: skip
    np.testing.assert_allclose(matrix, found[1].numpy(), rtol=1e-6)


@pytest.mark.parametrize("trained", ["log_normal"], indirect=True)
def test_genes_outside_are_read_out_as_levels(trained: Trained) -> None:
    mean_nd, _ = _moments(trained)
    fit_readout(trained.model, trained.cells, trained.outside, {"z": mean_nd}, ROWS[:140], ROWS[140:], seed=0)
    at_means = Encoded.at({"z": mean_nd.numpy()})
    (found,) = expected_expression(trained.model, at_means, trained.cells.covariates, Draws(1, (None,), 0))
    y = torch.log1p(trained.outside.batch(ROWS).x_ng)
    with torch.no_grad():
        f = trained.model.decoder.features(mean_nd, trained.model.conditioner(trained.cells.covariates)).numpy()
    centred = f - f[:140].mean(0)
    gram = centred[:140].T @ centred[:140] + 0.14 * np.eye(f.shape[1])
    weight = np.linalg.solve(gram, centred[:140].T @ y[:140].numpy())
    assert found[2] is not None
    np.testing.assert_allclose(found[2].numpy(), centred @ weight + y[:140].numpy().mean(0), rtol=1e-2, atol=2e-3)
    held_out = (found[2] - y)[140:].square().mean(0)
    assert float((held_out / y[140:].var(0)).mean()) < 0.6


@pytest.mark.parametrize("inside", [False, True])
def test_cells_with_missing_genes_are_encoded(trained: Trained, inside: bool) -> None:
    hidden = torch.zeros(INSIDE, dtype=torch.bool)
    hidden[::4] = True
    x_ng = trained.cells.batch(ROWS).x_ng.clone()
    x_ng[:, hidden] = 0.0
    library = x_ng.sum(-1, keepdim=True).clamp_min(1.0).log()
    some = Cells(Counts.from_scipy(sparse.csr_matrix(x_ng.numpy())), library, trained.cells.covariates)
    found = encode_masked(trained.model, some, Missing(~hidden, library_known=False, inside=inside))
    with_zeros, (complete, _) = encode(trained.model, some), _moments(trained)
    error, with_zeros_error = (
        float(np.square(mean_nd - complete.numpy()).mean()) for mean_nd in (found.encoded.mean_nd, with_zeros.mean_nd)
    )
    assert error < 0.5 * with_zeros_error
    assert bool((found.log_library_n1 >= library - 1e-5).all())
    if trained.model.decoder.likelihood is WithBackground:
        torch.testing.assert_close(found.log_library_n1, library)
    else:
        assert abs(float((found.log_library_n1 - trained.cells.log_library_n1).mean())) < 0.1


def test_the_response_is_that_of_decoded_values(trained: Trained) -> None:
    mean_nd, var_nd = _moments(trained)
    one, own = slice(0, 1), trained.cells.covariates[torch.tensor([0])]
    found = decoder_response(trained.model, encode(trained.model, trained.cells)[one], own)
    cell = Cells(trained.cells.counts, trained.cells.log_library_n1, own)
    for d in range(2):
        step = REACH * float(var_nd[0, d].sqrt()) * torch.eye(2)[d]
        ends = [_values(trained.model, mean_nd[one] + sign * step, cell) for sign in (-1, 1)]
        assert found[d] == pytest.approx(float((ends[1] - ends[0]).abs().mean()), rel=1e-3)


def test_it_is_checked_by_its_own_draws(trained: Trained) -> None:
    batch, (mean_nd, _) = trained.cells.batch(ROWS), _moments(trained)
    with torch.no_grad():
        distribution = trained.model.likelihood({"z": mean_nd}, batch.covariates, batch.log_library_n1)
    drawn = distribution.sample((200,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean((0, 1)), distribution.mean.mean(0), rtol=0.05, atol=0.05)
    check = predictive_check(trained.model, trained.cells, n_draws=2, seed=0)
    assert check is not None
    assert bool(
        (count_overdispersion(trained.model, encode(trained.model, trained.cells), trained.cells.covariates) == 0).all()
    )


def test_its_weights_have_the_stored_names() -> None:
    names = set(_build("log_normal").state_dict())
    built_in = set(
        build(
            ModelConfig(INSIDE, n_latent=2, n_hidden=16, norm="batch", likelihood="gaussian", n_readout=2), 0
        ).state_dict()
    )
    assert names == built_in
