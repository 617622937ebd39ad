"""Arguments of a fit that can be checked before any count is read, and the settings they make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from vxpress._checks import check_choice, check_range
from vxpress._seeds import seed_of
from vxpress.bridge.health.choice import CANDIDATES
from vxpress.bridge.read.prepare import Prepared, resolve_device
from vxpress.core.config import (
    Dispersion,
    LikelihoodName,
    ModelConfig,
    ObjectiveName,
    Preset,
    PriorConfig,
    PriorName,
    TrainConfig,
)
from vxpress.core.likelihoods import LIKELIHOODS
from vxpress.core.priors import PRIORS
from vxpress.core.settings import FitOptions, Settings, resolve, settings_for


@dataclass(frozen=True)
class CheckedArguments:
    """Arguments of a fit, after their checks; ``seeds`` are those of ``rng`` and ``split_rng``, None for a generator."""

    device: torch.device
    rng: np.random.Generator
    split_rng: np.random.Generator
    seeds: tuple[int | None, int | None]
    settings: Settings
    choosing: bool
    dispersion: Dispersion
    beta: float
    max_epochs: int | None
    validation_fraction: float
    preset: Preset | None
    cure: bool
    denoised: bool | None
    target_sum: float


def check_arguments(
    *,
    labels_key: str | None = None,
    likelihood: LikelihoodName | Literal["auto"] | None = None,
    dispersion: Dispersion = "gene",
    n_latent: int | None = None,
    n_hidden: int | None = None,
    n_layers: int | None = None,
    prior: PriorName | None = None,
    objective: ObjectiveName | None = None,
    beta: float = 1.0,
    kl_warmup: float | None = None,
    free_bits: float | None = None,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    validation_fraction: float = 0.1,
    early_stopping: bool | None = None,
    preset: Preset | None = None,
    options: FitOptions | None = None,
    cure: bool = False,
    denoised: bool | None = None,
    target_sum: float = 1e4,
    device: str | torch.device = "auto",
    rng: int | np.random.Generator | None = 0,
    split_rng: int | np.random.Generator | None = 0,
) -> CheckedArguments:
    """Check the arguments of :func:`fit_vae` as far as possible without the data; raises the same errors."""
    torch_device = resolve_device(device)
    generator, split_generator = seed_of(rng), seed_of(split_rng, "split_rng")
    settings = resolve(
        preset,
        {
            "likelihood": likelihood,
            "n_latent": n_latent,
            "n_hidden": n_hidden,
            "n_layers": n_layers,
            "kl_warmup": kl_warmup,
            "free_bits": free_bits,
            "prior": prior,
            "objective": objective,
            "batch_size": batch_size,
            "early_stopping": early_stopping,
        },
        options,
    )
    _check_objective(settings)
    _check_arguments(labels_key, dispersion, validation_fraction, target_sum)
    choosing = likelihood == "auto"
    if choosing:
        _check_choosing(validation_fraction)
        settings = replace(settings, likelihood=CANDIDATES[0])
    if not (denoised is None or isinstance(denoised, bool)):
        msg = f"denoised={denoised!r} was given; True, False or None is expected."
        raise ValueError(msg)
    if not isinstance(cure, bool):
        msg = f"cure={cure!r} was given; True or False is expected."
        raise ValueError(msg)
    if cure and validation_fraction == 0:
        msg = "cure=True needs held-out cells, but validation_fraction=0 leaves none. Pass validation_fraction=0.1."
        raise ValueError(msg)
    _check_ranges(settings, beta, max_epochs)
    return CheckedArguments(
        torch_device,
        generator,
        split_generator,
        (_number(rng), _number(split_rng)),
        settings,
        choosing,
        dispersion,
        beta,
        max_epochs,
        float(validation_fraction),
        preset,
        cure,
        denoised,
        float(target_sum),
    )


def _number(rng: object) -> int | None:
    return int(rng) if isinstance(rng, (int, np.integer)) else None


def _check_ranges(settings: Settings, beta: float, max_epochs: int | None) -> None:
    """Raise an error if a number is out of range, before any count is read."""
    few = settings.sized(2)
    n_epochs = few.max_epochs(2, 0) if max_epochs is None else max_epochs
    TrainConfig(max_epochs=n_epochs, **{**settings_for(TrainConfig, few), "beta": beta})
    prior = PriorConfig(settings.prior, settings.prior_components)
    # the largest possible number of genes, because the actual number is not known yet
    ModelConfig(n_genes=10_000_000, prior=prior, **settings_for(ModelConfig, settings))


def _check_objective(settings: Settings) -> None:
    if settings.objective != "elbo" and not PRIORS[settings.prior].cheap:
        msg = (
            f"objective={settings.objective!r} needs the density of the prior in every step, which is too slow with "
            f"prior={settings.prior!r}. Use objective='elbo', or learn that prior afterwards: vx.tl.fit_prior(adata, ...)."
        )
        raise ValueError(msg)


def _check_arguments(labels_key: str | None, dispersion: str, validation_fraction: float, target_sum: float) -> None:
    check_choice("dispersion", dispersion, Dispersion)
    if labels_key is not None and dispersion != "gene-label":
        msg = (
            f"labels_key={labels_key!r} has no effect unless you pass dispersion='gene-label'. Leave it out otherwise."
        )
        raise ValueError(msg)
    check_range("validation_fraction", validation_fraction, 0.0, 0.99)
    check_range("target_sum", target_sum, 1e-12, 1e12)


def _check_choosing(validation_fraction: float) -> None:
    if validation_fraction == 0:
        msg = (
            "likelihood='auto' needs held-out cells, but validation_fraction=0 leaves none. Pass "
            "validation_fraction=0.1, or name the likelihood, for example likelihood='nb'."
        )
        raise ValueError(msg)


def model_config_of(checked: CheckedArguments, prepared: Prepared, *, latent_library: bool) -> ModelConfig:
    """Return the configuration of the model from the settings and the data of a fit."""
    settings, table = checked.settings, prepared.covariates
    check_choice("likelihood", settings.likelihood, LikelihoodName)
    n_outside = int((~prepared.modelled_g).sum())
    return ModelConfig(
        n_genes=int(prepared.modelled_g.sum()),
        dispersion=checked.dispersion,
        n_categories=tuple(len(names) for _, names in table.categorical),
        has_batch=table.batch_key is not None,
        n_continuous=len(table.continuous),
        n_labels=0 if table.labels is None else len(table.labels[1]),
        latent_library=latent_library,
        remainder=prepared.library.beyond and LIKELIHOODS[settings.likelihood].output.has_remainder,
        n_readout=n_outside if settings.readout else 0,
        prior=PriorConfig(settings.prior, settings.prior_components),
        **settings_for(ModelConfig, settings),
    )


def train_config_of(checked: CheckedArguments, prepared: Prepared) -> TrainConfig:
    """Return the configuration of the training from the settings and the number of cells of a fit."""
    n_train, n_validation = len(prepared.train_n), len(prepared.validation_n)
    settings = checked.settings.sized(n_train)
    n_epochs = settings.max_epochs(n_train, n_validation) if checked.max_epochs is None else checked.max_epochs
    return TrainConfig(max_epochs=n_epochs, **{**settings_for(TrainConfig, settings), "beta": checked.beta})
