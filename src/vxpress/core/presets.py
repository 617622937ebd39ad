"""Named settings: the defaults, the reference set-up of scvi-tools, and one for likelihood.

Every value is a choice that can be overridden by an argument of ``fit_vae`` or a field of :class:`FitOptions`.
The measurements behind them stand in ``docs/benchmarks.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

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
    check_choice,
    check_range,
)
from vxpress.core.priors import PRIORS

MAX_EPOCHS = 100
# visits of cells in a fit of up to 5,000 cells
VISITS, VISITS_UP_TO = 184_320, 5_000
SMALL_BATCH, LARGE_BATCH, LARGE_BATCH_FROM = 256, 512, 1_500
# learning rate per cell of a minibatch (Goyal et al. 2017), and where it stops to grow
RATE_PER_CELL, MAX_RATE = 0.01 / 256, 0.02


@dataclass(frozen=True)
class FitOptions:
    """Settings of :func:`~vxpress.tl.fit_vae` that few people touch; ``None`` leaves the choice to the preset.

    Parameters
    ----------
    dropout
        Share of the hidden units of the encoder that are dropped in training.
    norm
        ``"layer"``, ``"batch"`` or ``"none"``, after every hidden linear layer.
    encode_covariates
        Whether the encoder sees the covariates too.
    condition_output
        Whether the output layer of the decoder sees the covariates, beside its hidden layers: a factor per gene
        and category.
    covariate_code
        ``"one-hot"``, or ``"embedding"``: a learned vector of ``n_embedding`` numbers per category, for covariates
        with many categories.
    n_embedding
        Length of these vectors.
    optimizer
        ``"adamw"`` (decoupled weight decay; Loshchilov & Hutter 2019) or ``"adam"``.
    schedule
        ``"one-cycle"`` (Smith & Topin 2019) or ``"constant"`` learning rate.
    learning_rate
        Peak learning rate. By default 0.01 for minibatches of 256 cells, in proportion to their size and at most 0.02
        (Goyal et al. 2017); 0.001 with ``preset="scvi"``.
    weight_decay
        Weight decay of the optimizer.
    adam_eps
        Epsilon of the optimizer.
    max_grad_norm
        Gradients are scaled down to this norm; 0 leaves them as they are.
    patience
        Epochs without a better validation objective before training stops early.
    keep_best
        Whether the state with the best validation objective is kept, or the last one.
    readout
        Whether genes outside the modelled subset are given denoised values too.
    decoder
        How z becomes expression. ``"mlp"`` (default): hidden layers. ``"skip"``: the same, and every layer and the output
        see z again (Dieng et al. 2019), which makes z harder to ignore. ``"linear"``: no hidden layer, so that its weights are
        loadings of the genes, which are written to ``varm`` (Svensson et al. 2020). ``"split"``: a small network for each latent
        dimension, whose results are added up before the softmax (after Moinfar & Theis 2024): a dimension multiplies
        expression by factors of its own. ``n_hidden`` and ``n_layers`` shape the first two and the encoder; each network of
        ``"split"`` has ``n_hidden / n_latent`` units a layer and at least 8.
    n_samples
        Samples per cell of ``objective="iwae"`` and ``"dreg"``; 5 by default. The decoder's cost grows with it.
    kl_schedule
        How the pull of the prior grows over the warm-up. ``"linear"`` (default): its weight rises from 0 to ``beta``.
        ``"cyclical"``: ``kl_cycles`` times, over the first half of each cycle, resting at ``beta`` for the second (Fu et al. 2019).
        ``"capacity"``: the weight is ``beta`` from the start, on the distance ``|KL - C|`` of a minibatch's mean divergence from a
        target C that rises from 0 to ``kl_capacity`` (Burgess et al. 2018); it takes a ``beta`` above 1 to hold it, 10 as a rule.
    kl_cycles
        Cycles of the cyclical schedule; 4 by default, as in its source.
    kl_capacity
        Final target of the capacity schedule, in nats per cell; to be given with it.
    free_bits_form
        ``"soft"`` (default) lowers a dimension's own weight, by a tenth a step, while its divergence lies below ``free_bits``,
        and raises it again, to ``beta`` at most, while it lies above (Chen et al. 2017). ``"hard"`` leaves what lies below
        without any gradient (Kingma et al. 2016). Divergences are a minibatch's means, dropout included; a prior that ties
        the dimensions together has one floor, ``free_bits`` times their number.
    encoder_steps
        Updates of the encoder alone before each step, while the mutual information between held-out cells and the latent
        still grows; after three epochs without growth they end for good (after He et al. 2019). Each costs as much as a
        step; 0 by default.
    refit_dispersion
        Whether the dispersions of the genes are fitted once more after training, with the rest of the model left as it is
        (default; not with ``preset="scvi"``). Training moves them only so far, and counts of strongly expressed genes would
        stay too noisy. The most likely ones are found on up to 4,096 training cells; validation cells, of which there must be
        at least 20, shift those of genes that are expressed about as strongly alike, and decide by their importance-weighted
        bound whether they are kept. Latent space and decoded expression stay as they are.
    prior_components
        Components of ``prior="mixture"`` and pseudo-inputs of ``prior="vamp"``; 50 by default.

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
    """A complete set of choices, before the data are known; what is None is chosen by :meth:`sized`."""

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
        """The budget: a number of visits of cells that grows slowly with the data, in whole epochs.

        Few cells are overfitted long before that many visits, and the schedule should end before they are.
        """
        visits = VISITS * max(1.0, n_train / VISITS_UP_TO) ** 0.5
        return min(MAX_EPOCHS, max(2, round(visits / max(1, n_train))))

    def sized(self, n_train: int) -> Settings:
        """The same with minibatches, where not chosen, of 512 (256 for few cells), and a learning rate that fits them."""
        batch_size = LARGE_BATCH if n_train >= LARGE_BATCH_FROM else SMALL_BATCH
        if self.batch_size is not None:
            check_range("batch_size", self.batch_size, *BATCH_SIZES, integer=True)
            batch_size = int(self.batch_size)
        rate = min(MAX_RATE, RATE_PER_CELL * batch_size) if self.learning_rate is None else self.learning_rate
        return replace(self, batch_size=batch_size, learning_rate=rate)


@dataclass(frozen=True)
class ReferenceSettings(Settings):
    """The defaults of scvi-tools' SCVI (1.5.1): architecture, initialisation, optimizer, KL schedule and epochs.

    The cells of an epoch are dealt into equal minibatches, where scvi-tools leaves a smaller one at the end.
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
        """400 epochs up to 20,000 cells, held-out ones counted, then as many as make 8 million visits."""
        return max(1, min(400, round(20_000 / (n_train + n_validation) * 400)))


PRESETS: dict[Preset | None, Settings] = {
    None: Settings(),
    "scvi": ReferenceSettings(),
    # better held-out likelihood, coarser clusters
    "likelihood": Settings(n_latent=20, dropout=0.3, norm="layer", norm_eps=1e-5, condition_output=True),
}


def resolve(preset: Preset | None, arguments: Mapping[str, Any], options: FitOptions | None) -> Settings:
    """The preset with everything that was given explicitly put over it."""
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
    """Raise where an option was given that the other choices leave without effect."""
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
            msg = f"options=FitOptions({name}={given[name]!r}) has no use here: it goes with {needed}. Leave it out."
            raise ValueError(msg)
    check_range("prior_components", settings.prior_components, 1, 100_000, integer=True)
    if settings.decoder == "linear" and given.get("condition_output") is False:
        msg = (
            "options=FitOptions(condition_output=False) cannot be had with decoder='linear': covariates enter it at the output "
            "and nowhere else. Leave it out."
        )
        raise ValueError(msg)


def settings_for(config: type[ModelConfig | TrainConfig], settings: Settings) -> dict[str, Any]:
    """The part of the settings that a config holds too."""
    names = {f.name for f in fields(config)} - {"max_epochs", "prior"}
    return {f.name: getattr(settings, f.name) for f in fields(settings) if f.name in names}
