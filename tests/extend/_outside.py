"""A likelihood, prior, decoder, latent block, objective and data source that a user defines, and how a fit names them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import anndata as ad
import torch
from torch import Tensor, nn

import vxpress as vx
from vxpress import extend
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import read_query


class Geometric(extend.Likelihood):
    """Geometric counts with variance mu + mu^2."""

    def __init__(self, log_mean: Tensor) -> None:
        self.log_mean = log_mean
        super().__init__(log_mean.shape)

    @classmethod
    def from_decoded(cls, decoded: extend.Decoded) -> Geometric:
        return cls(decoded.location_ng + decoded.log_library_n1)

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean + self.mean.square()

    @property
    def zero_probability(self) -> Tensor:
        return torch.sigmoid(-self.log_mean)

    @property
    def log_rate(self) -> Tensor:
        return self.log_mean

    @property
    def log_tail(self) -> Tensor:
        """The log of P(X > 0) = mu / (1 + mu)."""
        return nn.functional.logsigmoid(self.log_mean)

    def log_prob(self, value: Tensor) -> Tensor:
        return value * self.log_tail + nn.functional.logsigmoid(-self.log_mean)

    def expected_log1p(self, log_library_n1: Tensor) -> Tensor:
        return extend.expected_log1p((self.log_mean + log_library_n1).exp(), torch.log1p)

    def at(self, *index: Tensor | slice) -> Geometric:
        return Geometric(self.log_mean[index])

    def steps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        below, upto = value.double().ceil().clamp_min(0.0), (value.double().floor() + 1).clamp_min(0.0)
        return -torch.expm1(below * self.log_tail.double()), -torch.expm1(upto * self.log_tail.double())

    def draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        u = torch.rand(shape, generator=generator).clamp_min(1e-7)
        return (u.log() / self.log_tail).floor()


class Laplace(extend.Prior):
    """Independent Laplace distributions."""

    @dataclass(frozen=True)
    class Options(extend.Options):
        scale: float = extend.option(1.0, low=0.1, high=10.0)

    def log_prob(self, z: Tensor, condition_n: Tensor | None = None) -> Tensor:
        scale = self.options.scale
        return -(z.abs() / scale + math.log(2 * scale)).sum(-1)

    def sample(self, n: int, generator: torch.Generator, condition_n: Tensor | None = None) -> Tensor:
        u = torch.rand(2, n, self.n_latent, generator=generator, device=generator.device).clamp_min(1e-7).log()
        return self.options.scale * (u[0] - u[1])


class Powers(extend.Body):
    """z, its squares and so on, through one linear layer."""

    @dataclass(frozen=True)
    class Options(extend.Options):
        degree: int = extend.option(2, low=1, high=5)

    def __init__(self, config: extend.ModelConfig, n_condition: int) -> None:
        super().__init__()
        self.degree, self.n_features = config.decoder_options.degree, config.n_hidden
        self.linear = nn.Linear(self.degree * config.n_latent + n_condition, config.n_hidden)

    def conditioned(self) -> Iterator[str]:
        yield "linear.weight"

    def forward(self, z_nd: Tensor, s_nc: Tensor | None, noise: extend.Noise | None) -> Tensor:
        parts = [z_nd**power for power in range(1, self.degree + 1)]
        return torch.tanh(self.linear(torch.cat(parts if s_nc is None else [*parts, s_nc], dim=-1)))


class Activity(extend.NormalBlock):
    """One number per cell that moves z along a learned direction."""

    name = "activity"
    direction_d: Tensor

    def add_prior(self) -> None:
        self.direction_d = nn.Parameter(torch.ones(self.config.n_latent))

    def prior(self, covariates: extend.Covariates) -> tuple[Tensor, Tensor]:
        return torch.tensor(0.5), torch.tensor(2.0)

    def enter(self, inputs: extend.DecoderInputs, value: Tensor) -> extend.DecoderInputs:
        return dataclasses.replace(inputs, z_nd=inputs.z_nd + value * self.direction_d)


class Renyi(extend.Objective):
    """The bound of order 1/2 of Li & Turner (2016), from three samples: 2 log mean_k w_k^(1/2)."""

    def __init__(self, config: extend.TrainConfig, model: extend.VAE) -> None:
        super().__init__(config, model)
        self.n_samples = 3

    def terms(
        self, model: extend.VAE, batch: extend.Batch, noise: extend.Noise, eps: Tensor | None = None
    ) -> extend.ImportanceTerms:
        return extend.importance_terms(model, batch, noise, 3, eps)

    def bound(self, terms: extend.Elbo, weight: float | Tensor) -> Tensor:
        assert isinstance(terms, extend.ImportanceTerms)
        return 2.0 * ((0.5 * terms.log_weight(weight)).logsumexp(0) - math.log(3))

    def loss(self, terms: extend.Elbo, weight: float | Tensor, target: float | Tensor) -> Tensor:
        return -self.bound(terms, weight).mean()

    def further(self, terms: extend.Elbo) -> dict[str, Tensor]:
        return {"renyi": self.bound(terms, self.config.beta).sum()[None]}

    def final(self, means: extend.Means) -> float:
        return means.further["renyi"][0]


class Counting(extend.Source):
    """Counts in memory; counts the cells that are read."""

    n_read = 0

    def __init__(self, counts: extend.Counts, log_library_n1: Tensor, covariates: extend.Covariates) -> None:
        self.counts, self.log_library_n1, self.covariates = counts, log_library_n1, covariates

    @classmethod
    def of(
        cls, counts: extend.Counts, log_library_n1: Tensor, covariates: extend.Covariates, device: torch.device
    ) -> Counting:
        return cls(counts, log_library_n1, covariates)

    @property
    def n_genes(self) -> int:
        return self.counts.n_genes

    def read(self, rows: Tensor) -> extend.Rows:
        Counting.n_read += len(rows)
        return extend.Rows(rows, self.counts)


class Extension(NamedTuple):
    register: Callable[..., None]
    name: str
    cls: type
    settings: dict[str, Any]
    recorded: dict[str, Any]


Options = vx.tl.FitOptions
EXTENSIONS = {
    "likelihood": Extension(
        extend.register_likelihood, "geometric", Geometric,
        {"likelihood": "geometric"}, {"model": {"likelihood": "geometric"}},
    ),
    "prior": Extension(
        extend.register_prior, "laplace", Laplace,
        {"prior": "laplace", "options": Options(prior_options={"scale": 0.5})},
        {"model": {"prior": {"name": "laplace", "n_conditions": 0, "scale": 0.5}}},
    ),
    "decoder": Extension(
        extend.register_decoder, "powers", Powers,
        {"options": Options(decoder="powers", decoder_options={"degree": 3})},
        {"model": {"decoder": "powers", "decoder_options": {"degree": 3}}},
    ),
    "block": Extension(
        extend.register_block, "activity", Activity,
        {"options": Options(blocks=("activity",))}, {"model": {"blocks": ["activity"]}},
    ),
    "objective": Extension(
        extend.register_objective, "renyi", Renyi, {"objective": "renyi"}, {"train": {"objective": "renyi"}},
    ),
    # where counts are read from is not part of a fit
    "source": Extension(extend.register_source, "counting", Counting, {"options": Options(source="counting")}, {}),
}  # fmt: skip


QUICK = {"n_latent": 3, "n_hidden": 8, "max_epochs": 6, "batch_size": 32}


def register(kind: str) -> None:
    EXTENSIONS[kind].register(EXTENSIONS[kind].name, EXTENSIONS[kind].cls)


def model_of(adata: ad.AnnData) -> extend.VAE:
    return Fit.from_uns(adata.uns["vae"]).model


def cells_of(adata: ad.AnnData) -> extend.Batch:
    return read_query(adata, Fit.from_uns(adata.uns["vae"]), None).cells.batch(torch.arange(adata.n_obs))


class MedianShift(extend.LatentMap):
    """Moves all cells by a multiple of the difference of medians."""

    @dataclass(frozen=True)
    class Options(extend.Options):
        factor: float = extend.option(1.0, low=0.0, high=10.0)

    def learn(self, pairs: Sequence[extend.Pair], generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        parts = [p.weight * (p.target_nd.median(0).values - p.source_nd.median(0).values) for p in pairs]
        shift_d = self.options.factor * torch.stack(parts).sum(0)
        return lambda x_nd: x_nd + shift_d
