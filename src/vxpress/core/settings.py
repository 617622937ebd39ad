"""What users give for a fit: :class:`FitOptions`, presets, and the settings that they make together.

Every value of a preset can be overridden by an argument of ``fit_vae`` or a field of :class:`FitOptions`.
The measurements behind them are in ``docs/benchmarks.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Literal, Never

from vxpress._checks import check_choice
from vxpress.core.config import (
    ModelConfig,
    Network,
    NetworkOptions,
    Preset,
    PriorConfig,
    PriorName,
    SourceName,
    TrainConfig,
    Training,
    TrainingOptions,
)
from vxpress.core.option import (
    U,
    check_offered,
    check_option,
    check_used,
    documented,
    offered,
    option,
    unset_by_default,
)
from vxpress.core.registry import DECODERS, PRIORS, SOURCES

MAX_EPOCHS = 65
# number of times that a cell is used, summed over cells, in a fit of up to 5,000 cells
VISITS, VISITS_UP_TO = 120_000, 5_000
# cells per minibatch, by the least number of training cells
BATCH_SIZES = {0: 128, 500: 256, 1_500: 512}
# from this many genes, the encoder has its full dropout and thinning; both fall in proportion below
MANY_GENES, DROPOUT, THINNING = 1_000, 0.3, 0.9
# visits and thinning in a fit of several modalities, which gains from more steps and from an encoder that sees more of a cell
JOINT_VISITS, JOINT_THINNING = 240_000, 0.3
# learning rate per cell of a minibatch (Goyal et al. 2017), and its maximum
RATE_PER_CELL, MAX_RATE = 0.01 / 256, 0.02


def _has_components(prior: str) -> bool:
    return "n_components" in offered(PRIORS[prior].Options)


def _needs_components() -> str:
    return f"prior={' or '.join(repr(name) for name in PRIORS if _has_components(name))}"


@dataclass(frozen=True, kw_only=True)
class FurtherOptions(Generic[U]):
    """Options that rarely need a change, and from which a part of the model follows."""

    readout: bool | U = option(True, "Whether genes outside the modelled subset also get denoised values.")
    screen_covariates: bool | U = option(
        True,
        """Whether to leave a categorical covariate out of the model if its categories differ no more than random groups of
        cells of the same sizes. The fit is then the same as without the covariate. The variance between category means of
        log-normalised expression is compared with that of 19 random groupings, so a column of random labels is left out in
        95 % of cases. Optional covariates are always kept, and so are all with fewer than 100 cells or ``preset="scvi"``.""",
    )
    source: SourceName | U | None = option(
        None,
        """Where the counts are during the fit: ``"resident"`` in the memory of the device, ``"streamed"`` in the memory of
        the host, which sends the next minibatch to the GPU while it computes, ``"stored"`` where the AnnData has them, read in
        blocks of neighbouring cells, or ``"mapped"`` in temporary files. By default counts on disk that take more than 256 MB
        are stored. Others are resident, and streamed if they would fill the free memory of the GPU. Of stored counts, blocks of
        128 to 1,024 neighbours come in random order, and the cells of as many blocks as take 256 MB are shuffled together; the
        next ones are read ahead. Mapped ones are read the same way, 16 blocks of 256 at a time, and are in memory at the start.
        The others shuffle all cells.""",
        registry=SOURCES,
    )
    prior_components: int | U = option(
        50,
        """Number of components of ``prior="mixture"`` and of pseudo-inputs of ``prior="vamp"``; 50 by default.""",
        low=1,
        high=100_000,
        applies=lambda settings: _has_components(settings.prior),
        needs=_needs_components,
    )
    prior_options: Mapping[str, Any] | U = option(
        dict, "Options of a prior that was registered from outside the package, by name, as a dict."
    )
    decoder_options: Mapping[str, Any] | U = option(
        dict, "Options of a decoder that was registered from outside the package, by name, as a dict."
    )


@documented
@dataclass(frozen=True, kw_only=True)
@unset_by_default
class FitOptions(FurtherOptions[None], TrainingOptions[None], NetworkOptions[None]):
    """Rarely needed settings of :func:`~vxpress.tl.fit_vae`; ``None`` leaves the choice to the preset.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=2, options=vx.tl.FitOptions(dropout=0.2))
    >>> float(adata.uns["vae"]["params"]["model"]["dropout"])
    0.2
    """

    def __repr__(self) -> str:
        # most are left out
        given = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return f"FitOptions({', '.join(f'{name}={value!r}' for name, value in given.items())})"


@dataclass(frozen=True, kw_only=True)
class Settings(FurtherOptions[Never], Training, Network):
    """A complete set of settings, before the data are known; the numbers of cells and genes decide what is ``None``."""

    batch_size: int | None = None  # type: ignore[assignment]
    learning_rate: float | None = None  # type: ignore[assignment]
    dropout: float | None = None  # type: ignore[assignment]
    thinning: float | None = None  # type: ignore[assignment]
    prior: PriorName = "normal"
    library_of_modelled_genes: bool = False
    epochs: Literal["visits", "joint", "scvi-tools"] = "visits"
    most_thinned: float = THINNING

    def max_epochs(self, n_train: int, n_validation: int) -> int:
        """Compute the default number of epochs."""
        return _EPOCHS[self.epochs](n_train, n_validation)

    def sized(self, n_train: int) -> Settings:
        """Fill in the batch size if not given, and a learning rate that matches it."""
        batch_size = max(size for least, size in BATCH_SIZES.items() if n_train >= least)
        if self.batch_size is not None:
            batch_size = check_option(TrainConfig, "batch_size", self.batch_size)
        rate = min(MAX_RATE, RATE_PER_CELL * batch_size) if self.learning_rate is None else self.learning_rate
        return replace(self, batch_size=batch_size, learning_rate=rate)

    def regularised(self, n_genes: int) -> Settings:
        """Fill in dropout and thinning if not given: a panel of few genes says too little about a cell to hide a part of it."""
        part = min(1.0, n_genes / MANY_GENES)
        return replace(
            self,
            dropout=DROPOUT * part if self.dropout is None else self.dropout,
            thinning=self.most_thinned * part if self.thinning is None else self.thinning,
        )


def _epochs_of_visits(n_train: int, n_validation: int, visits_of_few: int = VISITS) -> int:
    """Compute the epochs from a number of visits of cells that grows slowly with the data.

    Small data are overfitted long before that many visits, and training should end before.
    """
    visits = visits_of_few * max(1.0, n_train / VISITS_UP_TO) ** 0.5
    return min(MAX_EPOCHS, max(2, round(visits / max(1, n_train))))


def _epochs_of_joint_fits(n_train: int, n_validation: int) -> int:
    """Compute the epochs of a fit of several modalities, from twice as many visits."""
    return _epochs_of_visits(n_train, n_validation, JOINT_VISITS)


def _epochs_of_scvi_tools(n_train: int, n_validation: int) -> int:
    """Return 400 epochs for up to 20,000 cells, including held-out ones, then as many as give 8 million visits."""
    return max(1, min(400, round(20_000 / (n_train + n_validation) * 400)))


_EPOCHS: dict[str, Callable[[int, int], int]] = {
    "visits": _epochs_of_visits,
    "joint": _epochs_of_joint_fits,
    "scvi-tools": _epochs_of_scvi_tools,
}

PRESETS: dict[Preset | None, dict[str, Any]] = {
    # options that fits of release 0.1 did not have are off in a configuration without them
    None: {"start": "components"},
    # the defaults of SCVI in scvi-tools (1.5.1): architecture, initialisation, optimizer, KL schedule and epochs. One
    # difference remains: the cells of an epoch are divided into equal minibatches, while scvi-tools has a smaller one at the end
    "scvi": {
        "likelihood": "zinb",
        "n_latent": 10,
        "dropout": 0.1,
        "norm": "batch",
        "norm_momentum": 0.01,
        "norm_eps": 1e-3,
        "bias_before_norm": True,
        "condition_output": False,
        "thinning": 0.0,
        "batch_size": 128,
        "optimizer": "adam",
        "schedule": "constant",
        "learning_rate": 1e-3,
        "weight_decay": 1e-6,
        "adam_eps": 0.01,
        "kl_warmup": 400.0,
        "warmup_unit": "epochs",
        "early_stopping": False,
        "keep_best": False,
        "start": "random",
        "refit_dispersion": False,
        "library_of_modelled_genes": True,
        "screen_covariates": False,
        "epochs": "scvi-tools",
    },
    # higher held-out likelihood on seven of nine tuning sets
    "likelihood": {"start": "components", "beta": 1.5},
    # higher totals of scib-metrics on the tuning sets, mostly by more mixing
    "integration": {"start": "components", "encode_covariates": True, "n_hidden": 64, "beta": 1.5},
}


# what a fit of several modalities has in place of the defaults; see docs/benchmarks/modalities.md
JOINT: dict[str, Any] = {
    "n_hidden": 256,
    "batch_size": 128,
    "learning_rate": 0.005,
    "most_thinned": JOINT_THINNING,
    "epochs": "joint",
}


def preset_settings(preset: Preset | None = None, **given: Any) -> Settings:
    """Return the settings of a preset, with the given ones in place of its own."""
    return Settings(**{**PRESETS[preset], **given})


def resolve(arguments: Mapping[str, Any]) -> Settings:
    """Combine the preset with what was given explicitly, which takes precedence.

    ``arguments`` are those of ``fit_vae`` by name. ``None`` leaves a setting to the preset, in an argument as in a field of
    ``options``; ``dispersion`` has one default with every preset.
    """
    preset, options = arguments["preset"], arguments["options"]
    if preset is not None:
        check_choice("preset", preset, Preset)
    if options is not None and not isinstance(options, FitOptions):
        msg = f"options={options!r} was given; pass options=vx.tl.FitOptions(...)."
        raise TypeError(msg)
    check_option(Settings, "dispersion", arguments["dispersion"])
    if arguments["beta"] is not None:
        check_option(Settings, "beta", arguments["beta"])
    of_options = {} if options is None else _given(vars(options))
    several = preset is None and len(arguments.get("modalities") or ()) > 1
    settings = preset_settings(preset, **{**(JOINT if several else {}), **_given(arguments), **of_options})
    # these are neither part of the model nor of the training, whose options are checked there
    for name in ("source", "readout", "screen_covariates"):
        check_option(Settings, name, getattr(settings, name))
    PRIORS.check(settings.prior)
    DECODERS.check(settings.decoder)
    check_used(settings, of_options)
    settings = _with_own_options(settings, of_options)
    if not DECODERS[settings.decoder].receives_condition and of_options.get("condition_output") is False:
        msg = (
            f"options=FitOptions(condition_output=False) is not available with decoder={settings.decoder!r}, in which covariates "
            "enter only at the output. Leave it out."
        )
        raise ValueError(msg)
    return settings


def _with_own_options(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Check the options of the chosen prior and decoder that users give as a dict; ``prior_components`` is one of them."""
    for of, kind in (("prior", PRIORS[settings.prior].Options), ("decoder", DECODERS[settings.decoder].Options)):
        argument = f"{of}_options"
        check_offered(kind, getattr(settings, argument), argument, f"{of}={getattr(settings, of)!r}")
    if "prior_components" not in given:
        return settings
    if "n_components" in settings.prior_options:
        msg = "prior_components= and n_components in prior_options= are the same option. Leave one of them out."
        raise ValueError(msg)
    n_components = check_option(Settings, "prior_components", settings.prior_components)
    return replace(settings, prior_options={**settings.prior_options, "n_components": n_components})


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Select the settings that were given."""
    names = {f.name for f in fields(Settings)}
    return {name: value for name, value in values.items() if name in names and value is not None}


def model_config(settings: Settings, *, n_genes: int, **of_the_data: Any) -> ModelConfig:
    """Return the configuration of a model from settings, and what the data decide."""
    settings = settings.regularised(n_genes)
    return ModelConfig(
        **_shared(Network, settings),
        n_genes=n_genes,
        prior=PriorConfig(settings.prior, options=settings.prior_options),
        decoder_options=settings.decoder_options,
        **of_the_data,
    )


def train_config(settings: Settings, max_epochs: int) -> TrainConfig:
    """Return the configuration of the training from settings for a number of cells."""
    return TrainConfig(**_shared(Training, settings), max_epochs=max_epochs)


def _shared(part: type, settings: Settings) -> dict[str, Any]:
    """Select the settings that are fields of a part of them."""
    return {f.name: getattr(settings, f.name) for f in fields(part)}
