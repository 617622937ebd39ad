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
        ``"mlp"``; ``"skip"`` shows z to every layer again (Dieng et al. 2019); ``"linear"`` has no hidden layer, so that
        its weights are loadings of the genes; ``"split"`` decodes every latent dimension by itself and adds the results up.
    n_samples
        Samples per cell of ``objective="iwae"`` and ``"dreg"``; 5 by default.
    kl_schedule
        How the KL weight rises: ``"linear"``; ``"cyclical"``, ``kl_cycles`` times (Fu et al. 2019); or ``"capacity"``, which
        holds the divergence at a target that rises to ``kl_capacity`` nats (Burgess et al. 2018).
    kl_cycles
        Cycles of the cyclical schedule; 4 by default.
    kl_capacity
        Final target of the capacity schedule, in nats per cell.
    free_bits_form
        ``"soft"`` weighs each dimension's divergence so that it comes to rest near ``free_bits`` (Chen et al. 2017);
        ``"hard"`` leaves what lies below without gradient (Kingma et al. 2016).
    encoder_steps
        Updates of the encoder alone before each step, at most, while the information of the latent still grows
        (He et al. 2019); 0 by default.
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
    given = dict(arguments) | (asdict(options) if options is not None else {})
    return replace(PRESETS[preset], **{name: value for name, value in given.items() if value is not None})


def settings_for(config: type[ModelConfig | TrainConfig], settings: Settings) -> dict[str, Any]:
    """The part of the settings that a config holds too."""
    names = {f.name for f in fields(config)} - {"max_epochs", "prior"}
    return {f.name: getattr(settings, f.name) for f in fields(settings) if f.name in names}
