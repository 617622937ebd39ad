"""Likelihoods, priors, decoders, latent blocks, objectives, data sources and latent maps of your own, without a change of the package.

Subclass a base class of this module, and register the class under a name. A fit then takes the name as it takes those of
the package: ``vx.tl.fit_vae(adata, likelihood="geometric")``. A stored fit holds the name and the options of the class, not its code.
So whoever uses the fit registers the same class first, typically by importing the module that does so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from vxpress.core.blocks import Block, DecoderInputs, NormalBlock, Posterior
from vxpress.core.bodies import Body
from vxpress.core.config import ModelConfig, PriorConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Batch, Cells, Counts, Rows, Sampler, Source
from vxpress.core.extension import registration
from vxpress.core.likelihoods import (
    Bernoulli,
    Decoded,
    Gaussian,
    Layers,
    Levels,
    Likelihood,
    Measured,
    NegativeBinomial,
    Output,
    Poisson,
    Shares,
    Sums,
    ToReadOut,
    ZeroInflated,
)
from vxpress.core.maps import LatentMap, Pair
from vxpress.core.model import VAE
from vxpress.core.noise import Noise
from vxpress.core.normal import DiagonalNormal
from vxpress.core.numerics import expected_log1p
from vxpress.core.objectives import Elbo, ElboObjective, ImportanceTerms, Iwae, Means, Objective, elbo, importance_terms
from vxpress.core.option import Options, option
from vxpress.core.priors import Prior

__all__ = [
    "VAE",
    "Batch",
    "Bernoulli",
    "Block",
    "Body",
    "Cells",
    "Counts",
    "Covariates",
    "Decoded",
    "DecoderInputs",
    "DiagonalNormal",
    "Elbo",
    "ElboObjective",
    "Gaussian",
    "ImportanceTerms",
    "Iwae",
    "LatentMap",
    "Layers",
    "Levels",
    "Likelihood",
    "Means",
    "Measured",
    "ModelConfig",
    "NegativeBinomial",
    "Noise",
    "NormalBlock",
    "Objective",
    "Options",
    "Output",
    "Pair",
    "Poisson",
    "Posterior",
    "Prior",
    "PriorConfig",
    "Rows",
    "Sampler",
    "Shares",
    "Source",
    "Sums",
    "ToReadOut",
    "TrainConfig",
    "ZeroInflated",
    "elbo",
    "expected_log1p",
    "importance_terms",
    "option",
    "register_block",
    "register_decoder",
    "register_likelihood",
    "register_map",
    "register_objective",
    "register_prior",
    "register_source",
    "unregister",
]

F = TypeVar("F", bound=Callable[..., Any])


_SHARED = """replace
    Whether to replace another class that was registered under this name. The same class, as after running a cell of a
    notebook again, is replaced in any case. Names of the package cannot be replaced.

Raises
------
TypeError
    If the class has another base, constructor or name than is expected, or lacks a method; the message names it.
ValueError
    If the name is taken, or is not a name."""


def _documented(register: F) -> F:
    """Insert the part of the documentation that all functions share."""
    register.__doc__ = inspect.cleandoc(register.__doc__ or "").replace("<replace and errors>", _SHARED)
    return register


@_documented
def register_likelihood(name: str, cls: type[Likelihood], *, replace: bool = False) -> None:
    """Register a likelihood, so that ``vx.tl.fit_vae(adata, likelihood=name)`` fits with it.

    Parameters
    ----------
    name
        Name of the likelihood: letters, digits and underscores.
    cls
        Subclass of :class:`Likelihood`, or of one of the likelihoods of the package. It defines ``from_decoded``,
        ``log_prob``, ``mean``, ``variance``, ``zero_probability``, ``expected_log1p``, ``at``, ``steps`` and ``draw``,
        and ``log_rate`` if its location is a composition (``output = Shares()``, the default).
    <replace and errors>

    Examples
    --------
    A geometric distribution, which is a negative binomial with theta = 1:

    >>> import torch, vxpress as vx
    >>> class Geometric(vx.extend.NegativeBinomial):
    ...     has_dispersion = gamma_rate = False
    ...
    ...     @classmethod
    ...     def from_decoded(cls, decoded):
    ...         return cls(decoded.location_ng + decoded.log_library_n1, torch.zeros(()))
    >>> vx.extend.register_likelihood("geometric", Geometric)
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, likelihood="geometric", max_epochs=2)
    >>> adata.uns["vae"]["params"]["model"]["likelihood"]
    'geometric'
    >>> vx.extend.unregister("likelihood", "geometric")
    """
    registration.register("likelihood", name, cls, replace=replace)


@_documented
def register_prior(name: str, cls: type[Prior], *, replace: bool = False) -> None:
    """Register a prior of z, so that ``vx.tl.fit_vae(adata, prior=name)`` fits with it.

    Parameters
    ----------
    name
        Name of the prior: letters, digits and underscores.
    cls
        Subclass of :class:`Prior`, built as ``cls(config, n_latent, n_inputs)``. It defines ``conditional_log_prob`` and
        ``conditional_sample``, or ``log_prob`` and ``sample`` if conditions have no effect. Its options are a frozen
        dataclass ``Options`` in the class, and are given as ``options=vx.tl.FitOptions(prior_options={...})``.
    <replace and errors>

    Examples
    --------
    >>> import torch, vxpress as vx
    >>> from torch.distributions import Laplace
    >>> class LaplacePrior(vx.extend.Prior):
    ...     def log_prob(self, z, condition_n=None):
    ...         return Laplace(0.0, 1.0).log_prob(z).sum(-1)
    ...
    ...     def sample(self, n, generator, condition_n=None):
    ...         u = torch.rand(n, self.n_latent, generator=generator, device=generator.device)
    ...         return Laplace(0.0, 1.0).icdf(u.clamp(1e-6, 1 - 1e-6))
    >>> vx.extend.register_prior("laplace", LaplacePrior)
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, prior="laplace", max_epochs=2)
    >>> adata.uns["vae"]["params"]["model"]["prior"]["name"]
    'laplace'
    >>> vx.extend.unregister("prior", "laplace")
    """
    registration.register("prior", name, cls, replace=replace)


@_documented
def register_decoder(name: str, cls: type[Body], *, replace: bool = False) -> None:
    """Register a decoder body, so that ``vx.tl.fit_vae(adata, options=vx.tl.FitOptions(decoder=name))`` fits with it.

    Parameters
    ----------
    name
        Name of the decoder: letters, digits and underscores.
    cls
        Subclass of :class:`Body`, built as ``cls(config, n_condition)``. It sets ``n_features`` and defines ``forward``,
        which maps z and the condition vector to that many features per cell. Its options are a frozen dataclass
        ``Options`` in the class; ``config.decoder_options`` holds them, and they are given as
        ``options=vx.tl.FitOptions(decoder=name, decoder_options={...})``.
    <replace and errors>

    Examples
    --------
    >>> import torch, vxpress as vx
    >>> class Squares(vx.extend.Body):
    ...     receives_condition = False
    ...
    ...     def __init__(self, config, n_condition):
    ...         super().__init__()
    ...         self.n_features = 2 * config.n_latent
    ...
    ...     def forward(self, z_nd, s_nc, noise):
    ...         return torch.cat((z_nd, z_nd.square()), dim=-1)
    >>> vx.extend.register_decoder("squares", Squares)
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=2, options=vx.tl.FitOptions(decoder="squares"))
    >>> adata.uns["vae"]["params"]["model"]["decoder"]
    'squares'
    >>> vx.extend.unregister("decoder", "squares")
    """
    registration.register("decoder", name, cls, replace=replace)


@_documented
def register_block(name: str, cls: type[Block], *, replace: bool = False) -> None:
    """Register a latent block, so that ``vx.tl.fit_vae(adata, options=vx.tl.FitOptions(blocks=(name,)))`` fits with it.

    A latent block is one more latent variable of each cell, next to z.

    Parameters
    ----------
    name
        Name of the block, equal to ``cls.name``.
    cls
        Subclass of :class:`Block` or :class:`NormalBlock`, built as ``cls(config, n_condition)``. It defines ``enter``, which
        changes the inputs of the decoder, and its prior: ``prior`` with a :class:`NormalBlock`, otherwise ``log_prior``,
        ``prior_mean`` and ``sample_prior``.
    <replace and errors>

    Examples
    --------
    A factor of each cell that multiplies its size factor:

    >>> import dataclasses, torch, vxpress as vx
    >>> class Efficiency(vx.extend.NormalBlock):
    ...     name = "efficiency"
    ...
    ...     def prior(self, covariates):
    ...         return torch.tensor(0.0), torch.tensor(0.1)
    ...
    ...     def enter(self, inputs, value):
    ...         return dataclasses.replace(inputs, log_library_n1=inputs.log_library_n1 + value)
    >>> vx.extend.register_block("efficiency", Efficiency)
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=2, options=vx.tl.FitOptions(blocks=("efficiency",)))
    >>> adata.obsm["vae_efficiency"].shape
    (700, 1)
    >>> vx.extend.unregister("block", "efficiency")
    """
    registration.register("block", name, cls, replace=replace)


@_documented
def register_objective(name: str, cls: type[Objective], *, replace: bool = False) -> None:
    """Register a training objective, so that ``vx.tl.fit_vae(adata, objective=name)`` fits with it.

    Parameters
    ----------
    name
        Name of the objective: letters, digits and underscores.
    cls
        Subclass of :class:`Objective`, built as ``cls(config, model)``. It defines ``terms``, ``loss`` and ``final``. A
        subclass of :class:`ElboObjective` also has its floors and schedules.
    <replace and errors>

    Examples
    --------
    The ELBO with reconstruction in place of the bound for the choice of the best epoch:

    >>> import vxpress as vx
    >>> class BestReconstruction(vx.extend.Objective):
    ...     def terms(self, model, batch, noise, eps=None):
    ...         return vx.extend.elbo(model, batch, noise, eps)
    ...
    ...     def loss(self, terms, weight, target):
    ...         return -terms.value(weight).mean()
    ...
    ...     def final(self, means):
    ...         return sum(means.reconstruction.values())
    >>> vx.extend.register_objective("best_reconstruction", BestReconstruction)
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, objective="best_reconstruction", max_epochs=2)
    >>> adata.uns["vae"]["params"]["train"]["objective"]
    'best_reconstruction'
    >>> vx.extend.unregister("objective", "best_reconstruction")
    """
    registration.register("objective", name, cls, replace=replace)


@_documented
def register_source(name: str, cls: type[Source], *, replace: bool = False) -> None:
    """Register a data source, so that ``vx.tl.fit_vae(adata, options=vx.tl.FitOptions(source=name))`` trains from it.

    A source gives the counts of the cells of a minibatch. Where the counts are stored does not change a fit, so the name
    is not part of the stored fit.

    Parameters
    ----------
    name
        Name of the source: letters, digits and underscores.
    cls
        Subclass of :class:`Source`. It defines ``of``, which makes a source of cells that were read, ``n_genes`` and
        ``read``.
    <replace and errors>

    Examples
    --------
    The counts in memory, with a count of the cells that were read:

    >>> import vxpress as vx
    >>> class Counting(vx.extend.Cells):
    ...     n_read = 0
    ...
    ...     def read(self, rows):
    ...         Counting.n_read += len(rows)
    ...         return super().read(rows)
    >>> vx.extend.register_source("counting", Counting)
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=2, options=vx.tl.FitOptions(source="counting"))
    >>> Counting.n_read > 2 * adata.n_obs
    True
    >>> vx.extend.unregister("source", "counting")
    """
    registration.register("source", name, cls, replace=replace)


@_documented
def register_map(name: str, cls: type[LatentMap], *, replace: bool = False) -> None:
    """Register a map from control to treated cells, for ``vx.tl.predict_perturbation(adata, ..., method=name)``.

    Parameters
    ----------
    name
        Name of the map: letters, digits and underscores.
    cls
        Subclass of :class:`LatentMap`, built as ``cls(options)``. It defines ``learn``, which receives the control and
        treated cells of one or several groups in the latent space (:class:`Pair`) and returns a function that moves
        cells. Its options are a frozen dataclass ``Options`` in the class; ``self.options`` holds them.
    <replace and errors>

    Examples
    --------
    A shift by the difference of medians:

    >>> import torch, vxpress as vx
    >>> class MedianShift(vx.extend.LatentMap):
    ...     def learn(self, pairs, generator):
    ...         shifts = [p.weight * (p.target_nd.median(0).values - p.source_nd.median(0).values) for p in pairs]
    ...         return lambda x_nd: x_nd + sum(shifts)
    >>> vx.extend.register_map("median_shift", MedianShift)
    >>> fitted = MedianShift()
    >>> control, treated = torch.zeros(5, 2), torch.ones(4, 2)
    >>> fitted.fit(control, treated, None, None, torch.Generator().manual_seed(0))
    >>> fitted(control[:1]).tolist()
    [[1.0, 1.0]]
    >>> vx.extend.unregister("map", "median_shift")
    """
    registration.register("map", name, cls, replace=replace)


def unregister(
    kind: Literal["likelihood", "prior", "decoder", "block", "objective", "source", "map"], name: str
) -> None:
    """Remove a class that was registered, for example at the end of a test.

    Parameters
    ----------
    kind
        What the class is: ``"likelihood"``, ``"prior"``, ``"decoder"``, ``"block"``, ``"objective"``, ``"source"`` or
        ``"map"``.
    name
        Its name.

    Raises
    ------
    ValueError
        If there is no class of this name, or it belongs to the package.

    Examples
    --------
    >>> import vxpress as vx
    >>> class Counts(vx.extend.Poisson):
    ...     pass
    >>> vx.extend.register_likelihood("counts", Counts)
    >>> vx.extend.unregister("likelihood", "counts")
    """
    registration.unregister(kind, name)
