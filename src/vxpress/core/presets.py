"""Named settings: the defaults, those of scvi-tools, and settings for a higher likelihood.

Every value can be overridden by an argument of ``fit_vae`` or a field of :class:`FitOptions`.
The measurements behind them are in ``docs/benchmarks.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from vxpress._checks import check_choice, check_range
from vxpress.core.config import (
    BATCH_SIZES,
    CovariateCode,
    DecoderName,
    FreeBitsForm,
    KlSchedule,
    ModelConfig,
    Norm,
    ObjectiveName,
    OptimizerName,
    Preset,
    PriorName,
    Schedule,
    TrainConfig,
    WarmupUnit,
)
from vxpress.core.priors import PRIORS

MAX_EPOCHS = 100
# number of times that a cell is used, summed over cells, in a fit of up to 5,000 cells
VISITS, VISITS_UP_TO = 184_320, 5_000
SMALL_BATCH, LARGE_BATCH, LARGE_BATCH_FROM = 256, 512, 1_500
# learning rate per cell of a minibatch (Goyal et al. 2017), and its maximum
RATE_PER_CELL, MAX_RATE = 0.01 / 256, 0.02


@dataclass(frozen=True)
class FitOptions:
    """Rarely needed settings of :func:`~vxpress.tl.fit_vae`; ``None`` leaves the choice to the preset.

    Parameters
    ----------
    dropout
        Share of the encoder's hidden units that are dropped in training.
    norm
        Normalisation after every hidden linear layer: ``"layer"``, ``"batch"`` or ``"none"``.
    encode_covariates
        Whether the encoder also receives the covariates.
    condition_output
        Whether the decoder's output layer receives the covariates, in addition to its hidden layers. This gives a
        factor per gene and category.
    covariate_code
        ``"one-hot"``, or ``"embedding"``: a learned vector of ``n_embedding`` numbers per category, for covariates
        with many categories.
    n_embedding
        Length of these vectors.
    optimizer
        ``"adamw"`` (decoupled weight decay; Loshchilov & Hutter 2019) or ``"adam"``.
    schedule
        Learning rate schedule: ``"one-cycle"`` (Smith & Topin 2019) or ``"constant"``.
    learning_rate
        Peak learning rate. The default is 0.01 for minibatches of 256 cells and proportional to their size, at most
        0.02 (Goyal et al. 2017); 0.001 with ``preset="scvi"``.
    weight_decay
        Weight decay of the optimizer.
    adam_eps
        Epsilon of the optimizer.
    max_grad_norm
        Largest gradient norm: larger gradients are scaled down to it. 0 means no limit.
    patience
        Number of epochs without a better validation objective after which training stops early.
    keep_best
        Whether to keep the state with the best validation objective instead of the last one.
    readout
        Whether genes outside the modelled subset also get denoised values.
    decoder
        How the decoder maps z to expression. ``"mlp"`` (default) has hidden layers. ``"skip"`` has them too, and every
        layer and the output also receive z, which makes z harder to ignore (Dieng et al. 2019). ``"linear"`` has no
        hidden layer: its weights are loadings of the genes and are written to ``varm`` (Svensson et al. 2020).
        ``"split"`` has a small network for each latent dimension. Their outputs are added before the softmax, so each
        dimension multiplies expression by its own factors (after Moinfar & Theis 2024). ``n_hidden`` and ``n_layers``
        apply to the first two and to the encoder. Each network of ``"split"`` has ``n_hidden / n_latent`` units per
        layer, at least 8.
    n_samples
        Samples per cell of ``objective="iwae"`` and ``"dreg"``; 5 by default. The cost of the decoder grows with it.
    kl_schedule
        How the KL term changes over the warm-up. With ``"linear"`` (default) its weight rises from 0 to ``beta``. With
        ``"cyclical"`` the weight rises ``kl_cycles`` times, over the first half of each cycle, and stays at ``beta``
        over the second half (Fu et al. 2019). With ``"capacity"`` the penalty is ``beta`` times the distance
        ``|KL - C|`` of a minibatch's mean divergence from a target C, which rises from 0 to ``kl_capacity`` (Burgess
        et al. 2018). This needs a ``beta`` above 1 to hold the target; 10 usually works.
    kl_cycles
        Number of cycles of the cyclical schedule; 4 by default, as in its source.
    kl_capacity
        Final target of the capacity schedule, in nats per cell. Required with this schedule.
    free_bits_form
        ``"soft"`` (default) lowers the weight of a dimension by a tenth per step while its divergence is below
        ``free_bits``, and raises it again, up to ``beta``, while it is above (Chen et al. 2017). ``"hard"`` gives
        divergences below ``free_bits`` no gradient (Kingma et al. 2016). Divergences are means over a minibatch, with
        dropout. A prior that does not factorise over dimensions has a single floor, ``free_bits`` times their number.
    encoder_steps
        Number of updates of the encoder alone before each step. They continue while the mutual information between
        held-out cells and the latent space grows, and end after three epochs without growth (after He et al. 2019).
        Each update costs as much as a step; 0 by default.
    refit_dispersion
        Whether to refit the dispersions of the genes after training, with the rest of the model fixed (default; not
        with ``preset="scvi"``). Training moves them only so far, and counts of strongly expressed genes would stay too
        noisy. The most likely dispersions are found on up to 4,096 training cells. At least 20 validation cells are
        needed: on them the dispersions of genes of similar expression are shifted together, and the new dispersions are
        kept only if the importance-weighted bound of these cells increases. Latent space and decoded expression do not
        change.
    prior_components
        Number of components of ``prior="mixture"`` and of pseudo-inputs of ``prior="vamp"``; 50 by default.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=2, options=vx.tl.FitOptions(dropout=0.2))
    >>> float(adata.uns["vae"]["params"]["model"]["dropout"])
    0.2
    """

    dropout: float | None = None
    norm: Norm | None = None
    encode_covariates: bool | None = None
    condition_output: bool | None = None
    covariate_code: CovariateCode | None = None
    n_embedding: int | None = None
    optimizer: OptimizerName | None = None
    schedule: Schedule | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    adam_eps: float | None = None
    max_grad_norm: float | None = None
    patience: int | None = None
    keep_best: bool | None = None
    readout: bool | None = None
    decoder: DecoderName | None = None
    n_samples: int | None = None
    kl_schedule: KlSchedule | None = None
    kl_cycles: int | None = None
    kl_capacity: float | None = None
    free_bits_form: FreeBitsForm | None = None
    encoder_steps: int | None = None
    refit_dispersion: bool | None = None
    prior_components: int | None = None


@dataclass(frozen=True)
class Settings:
    """A complete set of settings, before the data are known; :meth:`sized` chooses the values that are None."""

    likelihood: str = "nb"
    n_latent: int = 10
    n_hidden: int = 128
    n_layers: int = 1
    dropout: float = 0.1
    norm: Norm = "batch"
    norm_momentum: float = 0.1
    norm_eps: float = 1e-3
    bias_before_norm: bool = False
    encode_covariates: bool = False
    condition_output: bool = False
    covariate_code: CovariateCode = "one-hot"
    n_embedding: int = 8
    batch_size: int | None = None
    optimizer: OptimizerName = "adamw"
    schedule: Schedule = "one-cycle"
    learning_rate: float | None = None
    weight_decay: float = 1e-4
    adam_eps: float = 1e-8
    max_grad_norm: float = 0.0
    kl_warmup: float = 0.3
    warmup_unit: WarmupUnit = "steps"
    early_stopping: bool = True
    patience: int = 20
    keep_best: bool = True
    readout: bool = True
    start_from_data: bool = True
    library_of_modelled_genes: bool = False
    decoder: DecoderName = "mlp"
    prior: PriorName = "normal"
    prior_components: int = 50
    objective: ObjectiveName = "elbo"
    n_samples: int = 5
    kl_schedule: KlSchedule = "linear"
    kl_cycles: int = 4
    kl_capacity: float = 0.0
    free_bits: float = 0.0
    free_bits_form: FreeBitsForm = "soft"
    encoder_steps: int = 0
    refit_dispersion: bool = True

    def max_epochs(self, n_train: int, n_validation: int) -> int:
        """Compute the default number of epochs, from a number of visits of cells that grows slowly with the data.

        Small data are overfitted long before that many visits, and training should end before.
        """
        visits = VISITS * max(1.0, n_train / VISITS_UP_TO) ** 0.5
        return min(MAX_EPOCHS, max(2, round(visits / max(1, n_train))))

    def sized(self, n_train: int) -> Settings:
        """Fill in the batch size if not given, 512 (256 for few cells), and a learning rate that matches it."""
        batch_size = LARGE_BATCH if n_train >= LARGE_BATCH_FROM else SMALL_BATCH
        if self.batch_size is not None:
            check_range("batch_size", self.batch_size, *BATCH_SIZES, integer=True)
            batch_size = int(self.batch_size)
        rate = min(MAX_RATE, RATE_PER_CELL * batch_size) if self.learning_rate is None else self.learning_rate
        return replace(self, batch_size=batch_size, learning_rate=rate)


@dataclass(frozen=True)
class ReferenceSettings(Settings):
    """The defaults of SCVI in scvi-tools (1.5.1): architecture, initialisation, optimizer, KL schedule and epochs.

    One difference remains: the cells of an epoch are divided into equal minibatches, while scvi-tools has a smaller one
    at the end.
    """

    likelihood: str = "zinb"
    n_latent: int = 10
    dropout: float = 0.1
    norm: Norm = "batch"
    norm_momentum: float = 0.01
    norm_eps: float = 1e-3
    bias_before_norm: bool = True
    condition_output: bool = False
    batch_size: int | None = 128
    optimizer: OptimizerName = "adam"
    schedule: Schedule = "constant"
    learning_rate: float | None = 1e-3
    weight_decay: float = 1e-6
    adam_eps: float = 0.01
    kl_warmup: float = 400.0
    warmup_unit: WarmupUnit = "epochs"
    early_stopping: bool = False
    keep_best: bool = False
    start_from_data: bool = False
    refit_dispersion: bool = False
    library_of_modelled_genes: bool = True

    def max_epochs(self, n_train: int, n_validation: int) -> int:
        """Return 400 epochs for up to 20,000 cells, including held-out ones, then as many as give 8 million visits."""
        return max(1, min(400, round(20_000 / (n_train + n_validation) * 400)))


PRESETS: dict[Preset | None, Settings] = {
    None: Settings(),
    "scvi": ReferenceSettings(),
    # better held-out likelihood, coarser clusters
    "likelihood": Settings(n_latent=20, dropout=0.3, norm="layer", norm_eps=1e-5, condition_output=True),
}


def resolve(preset: Preset | None, arguments: Mapping[str, Any], options: FitOptions | None) -> Settings:
    """Combine a preset with the values that were given explicitly, which take precedence."""
    if preset is not None:
        check_choice("preset", preset, Preset)
    if options is not None and not isinstance(options, FitOptions):
        msg = f"options={options!r} was given; pass options=vx.tl.FitOptions(...)."
        raise TypeError(msg)
    of_options = {} if options is None else {k: v for k, v in asdict(options).items() if v is not None}
    given = {name: value for name, value in arguments.items() if value is not None} | of_options
    settings = replace(PRESETS[preset], **given)
    _check_used(settings, of_options)
    return settings


def _check_used(settings: Settings, given: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if an option was given that has no effect with the other settings."""
    several = settings.objective in ("iwae", "dreg")
    capacity = settings.kl_schedule == "capacity"
    check_choice("prior", settings.prior, PriorName)
    of_components = " or ".join(repr(name) for name, kind in PRIORS.items() if kind.has_components)
    effective = {
        "n_samples": (several, "objective='iwae' or 'dreg'"),
        "kl_cycles": (settings.kl_schedule == "cyclical", "options=FitOptions(kl_schedule='cyclical')"),
        "kl_capacity": (capacity, "options=FitOptions(kl_schedule='capacity')"),
        "free_bits_form": (settings.free_bits != 0, "free_bits="),
        "prior_components": (PRIORS[settings.prior].has_components, f"prior={of_components}"),
    }
    for name, (used, needed) in effective.items():
        if name in given and not used:
            msg = f"options=FitOptions({name}={given[name]!r}) has no effect unless you pass {needed}. Leave it out."
            raise ValueError(msg)
    check_range("prior_components", settings.prior_components, 1, 100_000, integer=True)
    if settings.decoder == "linear" and given.get("condition_output") is False:
        msg = (
            "options=FitOptions(condition_output=False) is not available with decoder='linear', in which covariates enter only "
            "at the output. Leave it out."
        )
        raise ValueError(msg)


def settings_for(config: type[ModelConfig | TrainConfig], settings: Settings) -> dict[str, Any]:
    """Select the settings that are fields of a config."""
    names = {f.name for f in fields(config)} - {"max_epochs", "prior"}
    return {f.name: getattr(settings, f.name) for f in fields(settings) if f.name in names}
