"""A latent block is one latent variable of a cell: z, a library size, or one that is registered from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vxpress._keys import Keys
from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Batch, Source
from vxpress.core.networks import Encoder, FilledEncoder
from vxpress.core.noise import Noise
from vxpress.core.normal import DiagonalNormal, gaussian_kl

# values of latent blocks by name, each (n, columns), or (k, n, columns) for several draws
Point = dict[str, Tensor]
# what is written to an AnnData: arrays by slot and name
Slots = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class DecoderInputs:
    """What the decoder receives: z (n, d), condition vector (n, c) or None, covariates, log size factor (n, 1)."""

    z_nd: Tensor
    condition_nc: Tensor | None
    covariates: Covariates
    log_library_n1: Tensor


class Posterior(dict[str, DiagonalNormal]):
    """The posterior of some cells: a distribution for each latent block, independent of the others given the counts."""

    def noise(self, normal: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Draw standard noise for each block in turn; ``normal`` draws it with the shape of a given tensor."""
        return {name: normal(q.loc) for name, q in self.items()}

    def draw(self, normal: Callable[[Tensor], Tensor]) -> Point:
        """Draw the blocks one after another; ``normal`` draws standard noise with the shape of a given tensor."""
        return self.at(self.noise(normal))

    def at(self, eps: Tensor | Mapping[str, Tensor]) -> Point:
        """Return the point of standard noise: by block, or (..., columns) with the columns of the blocks in order."""
        eps = self.split(eps) if isinstance(eps, Tensor) else eps
        return {name: q.rsample(eps[name]) for name, q in self.items()}

    def split(self, eps: Tensor) -> dict[str, Tensor]:
        """Split noise (..., columns) into that of each block."""
        found, start = {}, 0
        for name, q in self.items():
            stop = start + q.loc.shape[-1]
            found[name], start = eps[..., start:stop], stop
        return found

    def mean(self) -> Point:
        """Return the mean of each block."""
        return {name: q.loc for name, q in self.items()}

    def double(self) -> Posterior:
        """Return the same posterior in double precision."""
        return Posterior({name: DiagonalNormal(q.loc.double(), q.scale.double()) for name, q in self.items()})

    def replaced(self, **parts: DiagonalNormal) -> Posterior:
        """Return the posterior with other distributions of some blocks."""
        return Posterior(self | parts)


class Block(nn.Module):
    """One latent variable of a cell: its posterior, its prior, and how it reaches the decoder.

    A subclass defines ``name``, :meth:`enter`, :meth:`log_prior`, :meth:`prior_mean` and :meth:`sample_prior`, and :meth:`columns`
    if it has more than one column. ``blocks=("name",)`` in the settings switches it on once it is registered under its name.
    """

    name: ClassVar[str]
    """Name in terms, history, slots and files."""
    weighted: ClassVar[bool] = False
    """Whether the weight of the divergence (beta, with its schedule), free bits and capacity apply to this block."""
    thinned: ClassVar[bool] = False
    """Whether the posterior sees thinned counts in training, if the settings ask for them."""
    infers_library: ClassVar[bool] = False
    """Whether this block is the log size factor of a cell, one column, so that none has to be given.

    Stored cells have the exponential of its posterior mean as their size factor, and are not decoded from draws of it.
    """

    def __init__(self, config: ModelConfig, n_condition: int) -> None:
        super().__init__()
        self.config, self.n_noise = config, self.columns(config)
        self.encoder = Encoder(config, n_condition, self.n_noise)

    @classmethod
    def columns(cls, config: ModelConfig) -> int:
        """Return the number of columns, ``n_noise``."""
        return 1

    @classmethod
    def applies(cls, config: ModelConfig) -> bool:
        """Return whether a model with these settings has this block."""
        return cls.name in config.blocks

    @classmethod
    def recorded_as(cls) -> str | None:
        """Return the name of its divergence in the history, or None if only the ELBO contains it."""
        return f"kl_{cls.name}"

    @property
    def analytic(self) -> bool:
        """Whether :meth:`kl` is exact; otherwise it is an estimate from one draw."""
        return False

    # posterior

    def encode(self, batch: Batch, condition_nc: Tensor | None, noise: Noise | None = None) -> DiagonalNormal:
        """Return the posterior of a minibatch, (n, n_noise); ``noise`` drops units out."""
        return self.encoder(batch, condition_nc, noise)

    def filled_encoder(self, batch: Batch, condition_nc: Tensor | None, missing_g: Tensor) -> FilledEncoder:
        """Return a function of the log1p counts of the genes ``missing_g``, zero in the minibatch, that gives the posterior."""
        return FilledEncoder(self.encoder, batch, condition_nc, missing_g)

    def inference_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the posterior."""
        yield from self.encoder.parameters()

    # prior

    def add_prior(self) -> None:
        """Create the parameters of the prior.

        It is called after the decoder is built, so that blocks do not change the initial weights of the decoder.
        """

    def log_prior(self, value: Tensor, covariates: Covariates) -> Tensor:
        """Compute the log prior density of points (..., n, n_noise), with shape (..., n), in nats."""
        raise NotImplementedError

    def prior_mean(self, covariates: Covariates) -> Tensor:
        """Return the mean of the prior for every cell, (n, n_noise)."""
        raise NotImplementedError

    def sample_prior(self, covariates: Covariates, eps: Tensor) -> Tensor:
        """Draw from the prior of every cell, (n, n_noise), with standard noise of this shape."""
        raise NotImplementedError

    def kl(self, q: DiagonalNormal, value: Tensor, covariates: Covariates) -> Tensor:
        """Compute KL(q || prior) of every cell in nats, (n, columns), the sum of the columns.

        ``value`` is a draw of q for priors without closed form.
        """
        return (q.log_prob(value) - self.log_prior(value, covariates))[..., None]

    def mean_kl(self, q: DiagonalNormal, covariates: Covariates, n_draws: int, generator: torch.Generator) -> Tensor:
        """Compute KL(q || prior) of every cell, (n,): exact, or the mean over draws with noise from a CPU generator."""
        if self.analytic:
            return self.kl(q, q.loc, covariates).sum(-1)
        draws = (q.rsample(torch.randn(q.loc.shape, generator=generator).to(q.loc)) for _ in range(n_draws))
        return torch.stack([self.kl(q, value, covariates).sum(-1) for value in draws]).mean(0)

    def start_from(self, source: Source, rows: Tensor, generator: torch.Generator) -> None:
        """Initialise from the training cells ``rows``."""

    # decoder

    def enter(self, inputs: DecoderInputs, value: Tensor) -> DecoderInputs:
        """Return the inputs of the decoder with a value of this block, (n, n_noise)."""
        raise NotImplementedError

    def enter_unknown(self, inputs: DecoderInputs) -> DecoderInputs:
        """Return the inputs of the decoder if no value of this block is known.

        By default, those of its prior mean, or the same inputs if it infers the size factor, which they hold.
        """
        return inputs if self.infers_library else self.enter(inputs, self.prior_mean(inputs.covariates))

    # results and changes of a trained model

    def moments(self, keys: Keys) -> tuple[str, str]:
        """Return the entries of ``obsm`` that hold posterior mean and variance, from which stored cells are decoded."""
        return keys.of_block(self.name)

    def slots(self, keys: Keys, mean_nd: np.ndarray, var_nd: np.ndarray) -> Slots:
        """Return what is written to an AnnData of the posterior means and variances of all cells, each (n, n_noise).

        By default, these are the entries of :meth:`moments`, or the size factor if the block infers its log.
        """
        if self.infers_library:
            return {"obs": {keys.library: np.exp(mean_nd[:, 0].astype(np.float64))}}
        mean, var = self.moments(keys)
        return {"obsm": {mean: mean_nd, var: var_nd}}

    def conditioned(self) -> Iterator[str]:
        """Yield the names of the weights whose last columns belong to the condition vector if encoders receive it."""
        yield from (f"encoder.{name}" for name in self.encoder.conditioned())

    def with_batches(self, name: str, n_rows: int, share_b: Tensor) -> Tensor:
        """Return the weight ``name``, which has one row per batch, with ``n_rows`` rows.

        By default, each new row is the mean of the known batches with the weights ``share_b``.
        """
        return with_mean_rows(self.state_dict()[name], n_rows, share_b)


class NormalBlock(Block):
    """A block whose prior is a normal distribution with independent columns; a subclass defines :meth:`prior`."""

    def prior(self, covariates: Covariates) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the prior, each broadcastable to (n, n_noise)."""
        raise NotImplementedError

    @property
    def analytic(self) -> bool:
        return True

    def log_prior(self, value: Tensor, covariates: Covariates) -> Tensor:
        loc, variance = (part.to(value.dtype) for part in self.prior(covariates))
        return DiagonalNormal(loc, variance.sqrt()).log_prob(value)

    def prior_mean(self, covariates: Covariates) -> Tensor:
        loc, _ = self.prior(covariates)
        return loc.expand(len(covariates.continuous_nc), self.n_noise)

    def kl(self, q: DiagonalNormal, value: Tensor, covariates: Covariates) -> Tensor:
        loc, variance = (part.to(q.loc.dtype) for part in self.prior(covariates))
        return gaussian_kl(q, loc, variance)

    def sample_prior(self, covariates: Covariates, eps: Tensor) -> Tensor:
        loc, variance = self.prior(covariates)
        return loc + variance.sqrt() * eps


def weighted_mean(value: Tensor, share: Tensor) -> Tensor:
    """Compute the weighted mean over the first axis."""
    return torch.tensordot(share.to(value), value, dims=1)


def with_mean_rows(value: Tensor, n_rows: int, share: Tensor) -> Tensor:
    """Append rows, each the weighted mean of the others, until there are ``n_rows``."""
    mean = weighted_mean(value, share)
    return torch.cat((value, mean.expand(n_rows - len(value), *mean.shape)))
