"""A trial of the classes from outside the package, before a fit: on a few cells, does each method return what is expected?

Registration checks what can be seen without data. This checks shapes and values, so that a mistake in a class is reported
by the name of its method and not by an error from inside the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from vxpress.core.blocks import Block, DecoderInputs, NormalBlock, Posterior
from vxpress.core.config import TrainConfig
from vxpress.core.data import Batch, Rows, Source
from vxpress.core.isolation import seeded
from vxpress.core.likelihoods import Likelihood
from vxpress.core.maps import LatentMap, Pair
from vxpress.core.model import VAE
from vxpress.core.noise import Noise
from vxpress.core.objectives import Elbo
from vxpress.core.priors import Prior
from vxpress.core.registry import BLOCKS, DECODERS, LIKELIHOODS, MAPS, OBJECTIVES, PRIORS, SOURCES, Registry
from vxpress.core.training.evaluation import evaluate

N_CELLS = 3


class Trial:
    """The trial of one class: calls its methods and names them in errors."""

    def __init__(self, registry: Registry[Any], name: str, cls: type) -> None:
        self.what, self.cls = f"The {registry.kind} {name!r}", cls

    def refuse(self, method: str, found: str, expected: str) -> NoReturn:
        """Raise the error of a method."""
        msg = f"{self.what}: {self.cls.__name__}.{method} {found}; {expected} is expected."
        raise ValueError(msg)

    @contextmanager
    def calling(self, method: str) -> Iterator[None]:
        """Name the method in an error that is raised by it."""
        try:
            yield
        except Exception as error:
            msg = f"{self.what}: {self.cls.__name__}.{method} raised {type(error).__name__}: {error}"
            raise ValueError(msg) from error

    def call(self, method: str, function: Callable[[], Any]) -> Any:
        """Return the value of a function."""
        with self.calling(method):
            return function()

    def tensor(
        self, method: str, function: Callable[[], Any], shape: tuple[int | None, ...], axes: str, *, finite: bool = True
    ) -> Tensor:
        """Return the value of a function, a tensor of this shape; None stands for any length."""
        return self.check(method, self.call(method, function), shape, axes, finite=finite)

    def check(
        self, method: str, value: object, shape: tuple[int | None, ...], axes: str, *, finite: bool = True
    ) -> Tensor:
        """Return a value that a method returned; raise unless it is a tensor of this shape."""
        sizes = ", ".join("any" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "")
        expected = f"a tensor of shape ({axes}) = ({sizes})" if shape else "a tensor of one number"
        if not isinstance(value, Tensor):
            self.refuse(method, f"returned {_described(value)}", expected)
        if len(value.shape) != len(shape) or any(n not in (None, m) for n, m in zip(shape, value.shape, strict=True)):
            self.refuse(method, f"returned a tensor of shape {tuple(value.shape)}", expected)
        if finite and not bool(torch.isfinite(value).all()):
            self.refuse(method, "returned NaN or infinite values at the start of a fit", "a finite tensor")
        return value

    def instance(self, method: str, value: object, kind: type) -> None:
        """Raise unless a value is of this kind."""
        if not isinstance(value, kind):
            self.refuse(method, f"returned {_described(value)}", f"an instance of vx.extend.{kind.__name__}")


def _described(value: object) -> str:
    return "None" if value is None else f"an instance of {type(value).__name__}"


def try_source(name: str | None, source: Source, n_genes: int) -> None:
    """Try a data source that is not of the package; raise ``ValueError`` with what is wrong."""
    if name is None or not SOURCES.is_own(name):
        return
    trial = Trial(SOURCES, name, SOURCES[name])
    trial.instance("of", source, Source)
    for attribute in ("log_library_n1", "covariates"):
        if not hasattr(source, attribute):
            trial.refuse("of", f"returned a source without {attribute}", f"a source that has the attribute {attribute}")
    if source.n_genes != n_genes:
        trial.refuse("n_genes", f"is {source.n_genes}", f"the number of genes, {n_genes},")
    rows = torch.arange(min(N_CELLS, len(source)), device=source.device if source.on_device else "cpu")
    counts = trial.call("read", lambda: source.read(rows))
    trial.instance("read", counts, Rows)
    x_ng = trial.tensor("read", counts.dense, (len(rows), n_genes), "cells, genes")
    if bool((x_ng < 0).any()):
        trial.refuse("read", "returned negative counts", "counts of at least 0")
    if source.device.type == "cpu":
        parts = rows.tensor_split(3)
        batches = trial.call("batches", lambda: list(source.batches(parts)))
        if not torch.equal(torch.cat([batch.x_ng for batch in batches]), x_ng):
            trial.refuse(
                "batches", "changed a minibatch after the next one was requested", "memory of its own for each"
            )


def try_classes(model: VAE, source: Source, rows: Tensor, config: TrainConfig) -> None:
    """Try the classes of a fit that are not of the package on some cells; raise ``ValueError`` with what is wrong.

    The model and all random states stay as they are.
    """
    settings, chosen = model.config, rows[:N_CELLS]
    training = model.training
    model.eval()
    try:
        with seeded(0), torch.enable_grad():
            batch = source.batch(chosen)
            try_prior(settings.prior.name, model.prior)
            posterior = model.posterior(batch)
            for name, block in model.blocks.items():
                if BLOCKS.is_own(name):
                    _try_block(Trial(BLOCKS, name, type(block)), block, model, posterior, batch)
            if DECODERS.is_own(settings.decoder):
                _try_body(Trial(DECODERS, settings.decoder, type(model.decoder.body)), model, posterior, batch)
            if LIKELIHOODS.is_own(settings.likelihood):
                _try_likelihood(
                    Trial(LIKELIHOODS, settings.likelihood, model.decoder.likelihood), model, posterior, batch
                )
            if OBJECTIVES.is_own(config.objective):
                _try_objective(
                    Trial(OBJECTIVES, config.objective, OBJECTIVES[config.objective]), model, source, chosen, config
                )
    finally:
        model.train(training)


def try_prior(name: str, prior: Prior) -> None:
    """Try a prior that is not of the package; raise ``ValueError`` with what is wrong."""
    if not PRIORS.is_own(name):
        return
    trial, n_conditions = Trial(PRIORS, name, type(prior)), prior.config.n_conditions
    device = next(iter((*prior.parameters(), *prior.buffers())), torch.zeros(())).device
    z_knd = torch.linspace(-1, 1, 2 * N_CELLS * prior.n_latent, device=device).view(2, N_CELLS, prior.n_latent)
    codes = [None, torch.arange(N_CELLS, device=device) % n_conditions] if n_conditions else [None]
    for code_n in codes:
        given = "" if code_n is None else " with conditions"
        density = f"log_prob{given}"
        trial.tensor(density, partial(prior.log_prob, z_knd[0], code_n), (N_CELLS,), "cells")
        trial.tensor(density, partial(prior.log_prob, z_knd, code_n), (2, N_CELLS), "draws, cells")
        if device.type == "cpu":
            sample = partial(prior.sample, N_CELLS, torch.Generator().manual_seed(0), code_n)
            trial.tensor(f"sample{given}", sample, (N_CELLS, prior.n_latent), "cells, dimensions")


def try_map(name: str, latent_map: LatentMap, n_latent: int) -> None:
    """Try a map that is not of the package; raise ``ValueError`` with what is wrong."""
    if not MAPS.is_own(name):
        return
    trial = Trial(MAPS, name, type(latent_map))
    generator = torch.Generator().manual_seed(0)
    x_nd = torch.randn(4 * N_CELLS, n_latent, generator=generator, dtype=torch.float64)
    pairs = [Pair(x_nd[:5], x_nd[5:], torch.zeros(n_latent, dtype=torch.float64), weight) for weight in (0.25, 0.75)]
    for some in (pairs[:1], pairs):
        move = trial.call("learn", partial(latent_map.learn, some, generator))
        if not callable(move):
            trial.refuse("learn", f"returned {_described(move)}", "a function that moves cells")
        for x in (x_nd[:N_CELLS], x_nd[:1]):
            moved = trial.tensor("learn: its function", partial(move, x), tuple(x.shape), "cells, dimensions")
            if moved.dtype != torch.float64:
                trial.refuse("learn: its function", f"returned a tensor of {moved.dtype}", "a tensor of torch.float64")


def _try_block(trial: Trial, block: Block, model: VAE, posterior: Posterior, batch: Batch) -> None:
    name, n, covariates = block.name, len(batch), batch.covariates
    shape, axes = (n, block.n_noise), "cells, columns"
    if isinstance(block, NormalBlock):
        found = trial.call("prior", lambda: block.prior(covariates))
        if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Tensor) for part in found)):
            trial.refuse("prior", f"returned {found!r}", "a pair of tensors, mean and variance,")
        trial.call("prior", lambda: [part.expand(shape) for part in found])
        if not bool((found[1] > 0).all()):
            trial.refuse("prior", "returned a variance that is not above 0", "a positive variance")
    value = trial.tensor("encode", lambda: posterior[name].loc, shape, axes)
    trial.tensor("prior_mean", lambda: block.prior_mean(covariates), shape, axes)
    trial.tensor("log_prior", lambda: block.log_prior(value, covariates), (n,), "cells")
    trial.tensor("log_prior", lambda: block.log_prior(torch.stack((value, value)), covariates), (2, n), "draws, cells")
    trial.tensor("sample_prior", lambda: block.sample_prior(covariates, torch.zeros_like(value)), shape, axes)
    trial.tensor("kl", lambda: block.kl(posterior[name], value, covariates), (n, None), "cells, columns")
    inputs = DecoderInputs(posterior["z"].loc, model.conditioner(covariates), covariates, batch.log_library_n1)
    entered = trial.call("enter", lambda: block.enter(inputs, value))
    trial.instance("enter", entered, DecoderInputs)
    for field, axes in (("z_nd", "cells, dimensions"), ("log_library_n1", "cells, 1")):
        expected = tuple(getattr(inputs, field).shape)
        trial.tensor(f"enter: its {field}", partial(getattr, entered, field), expected, axes)


def _try_body(trial: Trial, model: VAE, posterior: Posterior, batch: Batch) -> None:
    body, inputs = model.decoder.body, model.inputs(posterior.mean(), batch.covariates, batch.log_library_n1)
    shape = (len(batch), body.n_features)
    trial.tensor(
        "forward",
        lambda: body(inputs.z_nd, model.decoder.body_condition(inputs.condition_nc), None),
        shape,
        "cells, n_features",
    )


def _try_likelihood(trial: Trial, model: VAE, posterior: Posterior, batch: Batch) -> None:
    point, covariates, log_library_n1 = posterior.mean(), batch.covariates, batch.log_library_n1
    make = "from_decoded"
    distribution = trial.call(make, lambda: model.likelihood(point, covariates, log_library_n1))
    trial.instance(make, distribution, Likelihood)
    shape, axes = tuple(batch.x_ng.shape), "cells, genes"
    if distribution.batch_shape != shape:
        found = f"made a distribution with batch_shape {tuple(distribution.batch_shape)}"
        trial.refuse(make, found, f"({axes}) = {shape}, passed to super().__init__,")
    log_prob = trial.tensor("log_prob", lambda: distribution.log_prob(batch.x_ng), shape, axes)
    if not log_prob.requires_grad:
        trial.refuse("log_prob", "returned a tensor without a gradient", "a differentiable function of the location")
    for name in ("mean", "variance", "zero_probability"):
        trial.tensor(name, partial(getattr, distribution, name), shape, axes, finite=name != "variance")
    if distribution.output.scalable:
        trial.tensor("log_rate", lambda: distribution.log_rate, shape, axes)
    with torch.no_grad():
        of_one = model.likelihood(point, covariates, torch.zeros_like(log_library_n1))
        trial.tensor("expected_log1p", lambda: of_one.expected_log1p(log_library_n1), shape, axes)
        plain = model.likelihood(point, covariates, log_library_n1)
        if log_library_n1.device.type == "cpu":
            _try_draws(trial, plain, batch)
        some = trial.call("at", lambda: plain.at(slice(0, 1)))
        trial.instance("at", some, Likelihood)
        trial.tensor("at: its mean", lambda: some.mean, (1, shape[1]), "cells, genes")


def _try_draws(trial: Trial, distribution: Likelihood, batch: Batch) -> None:
    """Try what a training does not need, and may use numpy or a generator of the CPU."""
    shape, axes = tuple(batch.x_ng.shape), "cells, genes"
    sample = partial(distribution.sample, (2,), generator=torch.Generator().manual_seed(0))
    trial.tensor("sample", sample, (2, *shape), "draws, cells, genes")
    pair = trial.call("steps", lambda: distribution.steps(distribution.observe(batch.x_ng)))
    if not isinstance(pair, tuple) or len(pair) != 2:
        trial.refuse("steps", f"returned {_described(pair)}", "a pair of tensors, P(X < value) and P(X <= value),")
    for part in pair:
        trial.check("steps", part, shape, axes)


def _try_objective(trial: Trial, model: VAE, source: Source, rows: Tensor, config: TrainConfig) -> None:
    objective = trial.call("__init__", lambda: OBJECTIVES[config.objective](config, model))
    n = len(rows)
    columns = (model.n_noise,) if objective.n_samples is None else (objective.n_samples, model.n_noise)
    eps = torch.zeros(n, *columns, device=rows.device)
    batch, noise = source.batch(rows), Noise(0, rows.device)
    trial.call(f"terms with eps of shape {tuple(eps.shape)}", lambda: objective.terms(model, batch, noise, eps))
    terms = trial.call("terms", lambda: objective.terms(model, batch, noise))
    trial.instance("terms", terms, Elbo)
    trial.tensor("loss", lambda: objective.loss(terms, 1.0, 0.0), (), "")
    further = trial.call("further", lambda: objective.further(terms))
    if not isinstance(further, dict):
        trial.refuse("further", f"returned {_described(further)}", "a dict of tensors by name")
    for name in further:
        trial.check(f"further: {name!r}", further[name], (None,), "any length")
    means = evaluate(model, source, rows, eps, objective)
    value = trial.call("final", lambda: objective.final(means))
    if not isinstance(value, float | int):
        trial.refuse("final", f"returned {_described(value)}", "a number")
