"""Arguments of a fit that can be checked before any count is read, and the settings they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from vxpress._names import name_of
from vxpress._seeds import seed_of
from vxpress.bridge.fits.checkpoints import Checkpointing
from vxpress.bridge.read.modalities import core_name
from vxpress.bridge.read.prepare import FitRequest, Prepared, as_tuple, resolve_device
from vxpress.core.config import (
    Dispersion,
    LikelihoodName,
    ModalityConfig,
    ModelConfig,
    ObjectiveName,
    Preset,
    PriorName,
    TrainConfig,
    check_batch_shown,
)
from vxpress.core.likelihoods import LIKELIHOODS
from vxpress.core.objectives import OBJECTIVES
from vxpress.core.option import check, declares
from vxpress.core.priors import PRIORS
from vxpress.core.settings import Settings, model_config, resolve, train_config
from vxpress.core.threads import in_environment

# what fit_vae names in its signature, and this module
__all__ = [
    "CANDIDATES",
    "CheckedArguments",
    "Dispersion",
    "LikelihoodName",
    "ObjectiveName",
    "Preset",
    "PriorName",
    "check_arguments",
    "model_config_of",
    "train_config_of",
]

# what likelihood="auto" chooses from, the simplest first: a later one is chosen only if it is decidedly better
CANDIDATES: tuple[LikelihoodName, ...] = ("nb", "zinb")


@dataclass(frozen=True, kw_only=True)
class CheckedArguments(FitRequest):
    """Arguments of a fit, after their checks; ``seeds`` are those of ``rng`` and ``split_rng``, None for a generator.

    ``settings`` are the preset with all that was given in its place.
    """

    device: torch.device
    rng: np.random.Generator
    seeds: tuple[int | None, int | None]
    settings: Settings
    choosing: bool
    likelihoods: tuple[str, ...]
    """Likelihoods of the modalities other than RNA."""
    n_latent: int | None
    max_epochs: int | None
    cure: bool
    denoised: bool | None
    n_threads: int | None = field(metadata=declares(low=1))
    checkpointing: Checkpointing | None

    def __post_init__(self) -> None:
        check(self)


def check_arguments(given: Mapping[str, Any]) -> CheckedArguments:
    """Check the arguments of :func:`fit_vae` as far as possible without the data; raises the same errors.

    ``given`` holds the arguments by name. Those that name parts of the data are checked when the data are read.
    """
    device = resolve_device(given["device"])
    in_environment()
    rng, split_rng = seed_of(given["rng"]), seed_of(given["split_rng"], "split_rng")
    settings = resolve(given)
    choosing = settings.likelihood == "auto"  # type: ignore[comparison-overlap]
    if choosing:
        settings = replace(settings, likelihood=CANDIDATES[0])
    _check_ranges(settings, given["max_epochs"])
    _check_objective(settings)
    kinds = "categorical_covariate_keys", "continuous_covariate_keys", "optional_covariate_keys"
    columns: dict[str, Any] = {name: as_tuple(given[name]) for name in kinds}
    names = {f.name for f in fields(CheckedArguments)} & set(given)
    if given["control"] is not None:
        columns["control"] = name_of(given["control"])
    own = {"device": device, "rng": rng, "split_rng": split_rng, "settings": settings, "choosing": choosing}
    own["checkpointing"] = Checkpointing.of(given)
    columns["modalities"], columns["likelihoods"] = _modalities(given)
    seeds = _number(given["rng"]), _number(given["split_rng"])
    checked = CheckedArguments(**{name: given[name] for name in names} | columns | own, seeds=seeds)
    _check_together(checked)
    return checked


def _modalities(given: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the modalities of a joint fit, RNA first, and the likelihoods of those after it."""
    modalities: Mapping[str, str] = given["modalities"] or {}
    if modalities and given["library"] == "latent":
        msg = "library='latent' infers the size factor from RNA, which cells of a joint fit may lack. Use library='observed'."
        raise ValueError(msg)
    cores = [core_name(name) for name in list(modalities)[1:]]
    if len(set(cores)) < len(cores):
        msg = f"The modalities {list(modalities)[1:]} differ only in characters that are not letters or digits. Rename one of them."
        raise ValueError(msg)
    return tuple(modalities), tuple(modalities.values())[1:]


def _number(rng: object) -> int | None:
    return int(rng) if isinstance(rng, (int, np.integer)) else None


def _check_ranges(settings: Settings, max_epochs: int | None) -> None:
    """Raise an error if a number is out of range, before any count is read."""
    few = settings.sized(2)
    train_config(few, few.max_epochs(2, 0) if max_epochs is None else max_epochs)
    # the largest possible number of genes and a dispersion without groups, because the data are not known yet
    model_config(replace(settings, dispersion="gene"), n_genes=10_000_000)


def _check_objective(settings: Settings) -> None:
    if settings.prior == "label_mixture":
        msg = "prior='label_mixture' is learned from labels: pass labels_key= and unlabeled_category=, and leave prior= out."
        raise ValueError(msg)
    if not PRIORS[settings.prior].cheap and not OBJECTIVES[settings.objective].has_divergence:
        msg = (
            f"objective={settings.objective!r} needs the density of the prior in every step, which is too slow with "
            f"prior={settings.prior!r}. Use objective='elbo', or learn that prior afterwards: vx.tl.fit_prior(adata, ...)."
        )
        raise ValueError(msg)


def _check_together(checked: CheckedArguments) -> None:
    """Raise ``ValueError`` if two arguments cannot be combined."""
    _check_perturbations(checked)
    _check_labels(checked)
    if checked.batch_key is not None and checked.batch_key in checked.optional_covariate_keys:
        check_batch_shown(checked.settings.dispersion, latent_library=checked.library == "latent")
    if checked.choosing and checked.validation_fraction == 0:
        msg = (
            "likelihood='auto' needs held-out cells, but validation_fraction=0 leaves none. Pass "
            "validation_fraction=0.1, or name the likelihood, for example likelihood='nb'."
        )
        raise ValueError(msg)
    if checked.cure and checked.validation_fraction == 0:
        msg = "cure=True needs held-out cells, but validation_fraction=0 leaves none. Pass validation_fraction=0.1."
        raise ValueError(msg)


def _check_perturbations(checked: CheckedArguments) -> None:
    """Raise ``ValueError`` if arguments of perturbations lack one another, or name a column of another purpose."""
    key = checked.perturbation_key
    for name in ("dose_key", "control"):
        if key is None and getattr(checked, name) is not None:
            msg = f"{name}={getattr(checked, name)!r} needs the column of the perturbations: pass perturbation_key= too, or leave it out."
            raise ValueError(msg)
    if key is None:
        return
    if checked.dose_key == key:
        msg = f"perturbation_key= and dose_key= both name {key!r}. Name it once: the dose is a column of its own."
        raise ValueError(msg)
    others = (checked.batch_key, *checked.categorical_covariate_keys, *checked.continuous_covariate_keys)
    for column in (key, checked.dose_key):
        if column is not None and column in (*others, *checked.optional_covariate_keys):
            msg = (
                f"{column!r} is named as a covariate and as {'perturbation_key' if column == key else 'dose_key'}=, which is one too. "
                "Name it once, as the latter."
            )
            raise ValueError(msg)


def _check_labels(checked: CheckedArguments) -> None:
    """Raise unless labels come with one option that uses them."""
    key, unlabeled, by_label = (
        checked.labels_key,
        checked.unlabeled_category,
        checked.settings.dispersion == "gene-label",
    )
    given: object = unlabeled
    if given is not None and (not isinstance(given, str) or not given):
        msg = f"unlabeled_category={unlabeled!r} was given; the name of the category of cells without a label is expected."
        raise ValueError(msg)
    if key is None and unlabeled is not None:
        msg = (
            f"unlabeled_category={unlabeled!r} has no effect without labels: name their column, labels_key='cell_type'."
        )
        raise ValueError(msg)
    if key is not None and unlabeled is None and not by_label:
        msg = (
            f"labels_key={key!r} has no effect unless you pass unlabeled_category='Unknown', which learns the labels for "
            "vx.tl.annotate (cells without a label have this category or a missing value), or dispersion='gene-label'. Leave it "
            "out otherwise."
        )
        raise ValueError(msg)
    if unlabeled is not None and by_label:
        msg = (
            "dispersion='gene-label' needs the label of every cell, but unlabeled_category= says that some have none. Leave one of "
            "the two out."
        )
        raise ValueError(msg)


def model_config_of(checked: CheckedArguments, prepared: Prepared) -> ModelConfig:
    """Return the configuration of the model from the settings and the data of a fit."""
    settings, table = checked.settings, prepared.covariates
    n_outside, n_genes = (int((prepared.modelled_g == modelled).sum()) for modelled in (False, True))
    if checked.n_latent is None:  # the default must also fit a panel of few genes
        settings = replace(settings, n_latent=min(settings.n_latent, n_genes))
    return model_config(
        settings,
        n_genes=n_genes,
        n_categories=tuple(len(names) for _, names in table.categorical),
        has_batch=table.batch_key is not None,
        optional=table.positions(checked.optional_covariate_keys),
        n_continuous=len(table.continuous),
        n_labels=0 if table.labels is None else len(table.labels[1]),
        latent_library=checked.library == "latent",
        remainder=prepared.library.beyond and LIKELIHOODS[settings.likelihood].output.has_remainder,
        n_readout=n_outside if settings.readout else 0,
        left_out=prepared.left_out,
        n_perturbations=0 if table.perturbations is None else len(table.perturbations.names),
        dose_response=table.perturbations is not None and table.perturbations.differ,
        modalities=_modality_configs(checked, prepared),
        n_panels=0 if table.panels is None else len(table.panels.names),
    )


def _modality_configs(checked: CheckedArguments, prepared: Prepared) -> tuple[ModalityConfig, ...]:
    """Return the settings of the modalities other than RNA."""
    if prepared.further is None:
        return ()
    parts = prepared.further.parts.items()
    return tuple(
        ModalityConfig(name, len(part.features), likelihood)
        for (name, part), likelihood in zip(parts, checked.likelihoods, strict=True)
    )


def train_config_of(checked: CheckedArguments, prepared: Prepared) -> TrainConfig:
    """Return the configuration of the training from the settings and the number of cells of a fit."""
    n_train, n_validation = len(prepared.train_n), len(prepared.validation_n)
    settings = checked.settings.sized(n_train)
    n_epochs = settings.max_epochs(n_train, n_validation) if checked.max_epochs is None else checked.max_epochs
    return train_config(settings, n_epochs)
