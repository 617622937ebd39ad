"""The options of a model and of its training, each declared once, as frozen dataclasses.

:class:`ModelConfig` holds everything needed to build the same network again, :class:`TrainConfig` everything needed
to train it in the same way. Both hold only plain scalars, tuples and such dataclasses, so one codec stores them. Their
defaults are those of :func:`~vxpress.tl.fit_vae`, except for options that fits of an earlier release did not have: these
are off, and the defaults of a fit switch them on (``PRESETS[None]`` in ``settings.py``).

:class:`NetworkOptions` and :class:`TrainingOptions` are the part that users give as fields of
:class:`~vxpress.tl.FitOptions`, where each can also be ``None``.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Any, Generic, Literal, Never

from vxpress._checks import check_range
from vxpress.core.option import Options, U, check, declares, option
from vxpress.core.registry import BLOCKS, DECODERS, LIKELIHOODS, OBJECTIVES, PRIORS

LikelihoodName = Literal["nb", "zinb", "poisson", "gaussian", "bernoulli", "nb_mixture"]
Dispersion = Literal["gene", "gene-batch", "gene-label", "gene-cell"]
Norm = Literal["batch", "layer", "none"]
CovariateCode = Literal["one-hot", "embedding"]
Schedule = Literal["one-cycle", "constant"]
OptimizerName = Literal["adamw", "adam"]
WarmupUnit = Literal["steps", "epochs"]
Preset = Literal["scvi", "likelihood", "integration"]
DecoderName = Literal["mlp", "skip", "linear", "split"]
PriorName = Literal["normal", "mixture", "vamp", "flow", "diffusion", "flow_matching", "label_mixture"]
ObjectiveName = Literal["elbo", "iwae", "dreg"]
StartName = Literal["components", "mean", "random"]
SourceName = Literal["resident", "streamed", "mapped", "stored"]
KlSchedule = Literal["linear", "cyclical", "capacity"]
FreeBitsForm = Literal["hard", "soft"]

# name of the modality that every model has, in terms and sums
RNA = "rna"
# with fewer features than this, an encoder drops fewer units: each feature says more
FEW_FEATURES = 1_000


@dataclass(frozen=True)
class PriorConfig:
    """The prior of z: its name, the number of conditions of a conditional prior p(z | condition), and its own options.

    ``options`` is an instance of the ``Options`` of the prior's class; a mapping can be given.
    """

    name: PriorName = option("normal", registry=PRIORS, label="prior")
    n_conditions: int = option(0, low=0, high=1_000_000)
    options: Any = option(Options, of="name", flat=True)

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def of(cls, name: PriorName, n_conditions: int = 0, **options: Any) -> PriorConfig:
        """Build the configuration of a prior with some of its options."""
        return cls(name, n_conditions, options)


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Generic[U]):
    """Options of the network that rarely need a change."""

    dropout: float | U = option(
        0.3,
        """Share of the encoder's hidden units that are dropped in training; 0.1 with ``preset="scvi"``. The default is 0.3,
        which describes held-out cells better, and in proportion less for fewer than 1,000 genes, which say too little about
        a cell to hide some of it.""",
        low=0.0,
        high=0.95,
    )
    thinning: float | U = option(
        0.0,
        """Largest share of a cell's molecules that the encoder does not see in training (binomial thinning). For each
        cell and step, the share is drawn uniformly between 0 and this number, and each molecule is left out with that
        probability. The likelihood still scores all of them, and everything but training uses all of them, so the
        encoder learns to place shallow cells where deep ones of the same kind are. The default is 0.9, and in proportion
        less for fewer than 1,000 genes; 0, no thinning, with ``preset="scvi"``.""",
        low=0.0,
        high=1.0,
        since="0.2.0",
    )
    norm: Norm | U = option(
        "layer",
        """Normalisation after every hidden linear layer: ``"layer"`` (default), ``"batch"`` (with ``preset="scvi"``) or
        ``"none"``. Layer norm uses no statistics of other cells, so cells of a new batch are encoded as those of the
        fit.""",
    )
    encode_covariates: bool | U = option(False, "Whether the encoder also receives the covariates.")
    condition_output: bool | U = option(
        True,
        """Whether the decoder's output layer receives the covariates, in addition to its hidden layers; not with
        ``preset="scvi"``. This gives a factor per gene and category. With ``start="components"``, it starts at the mean
        difference of the category, so that z need not describe it.""",
    )
    covariate_code: CovariateCode | U = option(
        "one-hot",
        """``"one-hot"``, or ``"embedding"``: a learned vector of ``n_embedding`` numbers per category, for covariates
        with many categories.""",
    )
    n_embedding: int | U = option(8, "Length of these vectors.", low=1, high=4_096)
    decoder: DecoderName | U = option(
        "mlp",
        """How the decoder maps z to expression. ``"mlp"`` (default) has hidden layers. ``"skip"`` has them too, and
        every layer and the output also receive z, which makes z harder to ignore (Dieng et al. 2019). ``"linear"`` has
        no hidden layer: its weights are loadings of the genes and are written to ``varm`` (Svensson et al. 2020).
        ``"split"`` has a small network for each latent dimension. Their outputs are added before the softmax, so each
        dimension multiplies expression by its own factors (after Moinfar & Theis 2024). ``n_hidden`` and ``n_layers``
        apply to the first two and to the encoder. Each network of ``"split"`` has ``n_hidden / n_latent`` units per
        layer, at least 8.""",
        registry=DECODERS,
    )
    blocks: tuple[str, ...] | U = option(
        (),
        """Names of further latent variables of each cell, next to z, that were registered with
        :func:`vxpress.extend.register_block`.""",
        registry=BLOCKS,
        own=True,
        since="0.2.0",
    )


@dataclass(frozen=True, kw_only=True)
class Network(NetworkOptions[Never]):
    """What a preset or the user decides about the network; the data decide the rest of :class:`ModelConfig`.

    ``bias_before_norm`` trains the biases that batch norm removes again, as scvi-tools does.
    """

    n_latent: int = option(20, low=1, high=4_096)
    n_hidden: int = option(128, low=1, high=65_536)
    n_layers: int = option(1, low=1, high=64)
    likelihood: LikelihoodName = option("nb", registry=LIKELIHOODS)
    dispersion: Dispersion = "gene"
    norm_momentum: float = option(0.1, low=0.0, high=1.0)
    norm_eps: float = option(1e-5, low=1e-16, high=1.0)
    bias_before_norm: bool = option(False)


@dataclass(frozen=True)
class ModalityConfig:
    """A modality that cells have in addition to RNA: its name, its number of features and its likelihood."""

    name: str
    n_features: int = field(metadata=declares(low=1, high=10_000_000))
    likelihood: str = option("nb", registry=LIKELIHOODS)

    def __post_init__(self) -> None:
        check(self)
        if not str(self.name).isidentifier() or self.name == RNA:
            msg = (
                f"{self.name!r} cannot name a modality in addition to RNA; a name of letters, digits and underscores "
                f"other than {RNA!r} is expected."
            )
            raise ValueError(msg)


@dataclass(frozen=True)
class ModelConfig(Network):
    """The architecture: sizes, likelihood, prior and how covariates enter.

    ``n_categories`` holds the number of categories of each categorical covariate; with ``has_batch``, the
    first one is the batch. ``optional`` holds the positions of those that the networks can also do without: their category
    can be hidden, see :meth:`vxpress.core.covariates.Conditioner.hide`. The networks do not receive the covariates at the
    positions ``left_out``, which have no effect on the counts. ``remainder`` adds the share of molecules from genes outside
    the model. ``decoder_options`` is an instance of the ``Options`` of the decoder's class; a mapping can be given.
    ``n_perturbations`` single perturbations have effects that add up, with ``dose_response`` by doses that differ; see
    :mod:`vxpress.core.perturbations`. ``modalities`` are those that cells have in addition to RNA, or some cells have. In
    training, ``alone_share`` of the cells that have several show the encoders only one of them. ``n_panels`` is the number of sets
    of measured genes, see :mod:`vxpress.core.panels`, 0 if all cells measured all genes.
    """

    n_genes: int = field(metadata=declares(low=1, high=10_000_000))
    _: KW_ONLY
    n_categories: tuple[int, ...] = option((), low=1, high=1_000_000)
    has_batch: bool = False
    n_continuous: int = option(0, low=0, high=100_000)
    n_labels: int = option(0, low=0, high=1_000_000)
    latent_library: bool = False
    remainder: bool = False
    n_readout: int = option(0, low=0, high=10_000_000)
    optional: tuple[int, ...] = option((), low=0, high=1_000_000, since="0.2.0")
    # made when it is needed, because its check imports the priors, which import this module
    prior: PriorConfig = option(PriorConfig)
    decoder_options: Any = option(Options, of="decoder", since="0.2.0")
    left_out: tuple[int, ...] = option((), low=0, high=1_000_000, since="0.2.0")
    n_perturbations: int = option(0, low=0, high=1_000_000, since="0.2.0")
    dose_response: bool = option(False, since="0.2.0")
    modalities: tuple[ModalityConfig, ...] = option((), since="0.2.0")
    alone_share: float = option(0.5, low=0.0, high=1.0, since="0.2.0")
    n_panels: int = option(0, low=0, high=100_000, since="0.2.0")

    def __post_init__(self) -> None:
        check(self)
        n_features = self.n_genes + sum(modality.n_features for modality in self.modalities)
        if self.n_latent > n_features:
            msg = (
                f"n_latent={self.n_latent} exceeds the {n_features} modelled gene(s): a latent space wider than "
                f"the data cannot be identified. Pass n_latent={n_features} or less, or model more genes (mask_var=None)."
            )
            raise ValueError(msg)
        self._check_modalities()
        self._check_panels()
        if self.dispersion == "gene-batch" and not self.has_batch:
            msg = "dispersion='gene-batch' needs batches: pass batch_key=, or use dispersion='gene'."
            raise ValueError(msg)
        if self.dispersion == "gene-label" and self.n_labels == 0:
            msg = "dispersion='gene-label' needs labels: pass labels_key=, or use dispersion='gene'."
            raise ValueError(msg)
        self._check_optional()
        wrong_left_out = [k for k in self.left_out if k >= len(self.n_categories)]
        if wrong_left_out or list(self.left_out) != sorted(set(self.left_out)):
            msg = f"left_out={self.left_out} is not an ascending choice of the {len(self.n_categories)} categorical covariate(s)."
            raise ValueError(msg)
        if self.blocks:
            without = replace(self, blocks=())
            wrong = [name for name in self.blocks if BLOCKS[name].applies(without) or not BLOCKS[name].applies(self)]
            wrong += [name for name in set(self.blocks) if self.blocks.count(name) > 1]
            if wrong:
                msg = f"blocks={self.blocks!r} names {wrong}, which other settings switch on, or twice. Leave them out of blocks=."
                raise ValueError(msg)
            sizes = [name for name, block in BLOCKS.items() if block.infers_library and block.applies(self)]
            if len(sizes) > 1:
                msg = f"{' and '.join(map(repr, sizes))} are latent blocks that infer the size factor of a cell; only one can. Leave one out."
                raise ValueError(msg)

    def _check_panels(self) -> None:
        """Raise ``ValueError`` if a setting suits no cells in which some genes were not measured."""
        if not self.n_panels:
            return
        if not LIKELIHOODS[self.likelihood].output.scalable:
            msg = (
                f"Panels need a likelihood of the shares of genes, and likelihood={self.likelihood!r} describes each gene by itself. "
                "Use likelihood='nb', or model only genes that all cells measured (mask_var=)."
            )
            raise ValueError(msg)
        if self.norm == "batch":
            msg = "norm='batch' averages over cells of all panels. With panels use options=FitOptions(norm='layer')."
            raise ValueError(msg)

    def _check_modalities(self) -> None:
        """Raise ``ValueError`` if names repeat, or a setting suits no cells that lack a modality."""
        names = [modality.name for modality in self.modalities]
        if len(set(names)) < len(names):
            msg = f"The modalities {names} were given; names that differ are expected."
            raise ValueError(msg)
        if names and self.norm == "batch":
            msg = (
                "norm='batch' averages over all cells of a minibatch, also those that lack a modality. With several modalities "
                "use options=FitOptions(norm='layer')."
            )
            raise ValueError(msg)

    def part(self, modality: ModalityConfig) -> PartConfig:
        """Return the settings of the encoder and the decoder of a modality: those of RNA but for its features."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        few = min(1.0, modality.n_features / FEW_FEATURES)
        return PartConfig(
            **settings
            | {
                "n_genes": modality.n_features,
                "likelihood": modality.likelihood,
                "dispersion": "gene",
                "dropout": self.dropout * few,
                "decoder": "mlp",
                "decoder_options": Options(),
                "remainder": False,
                "n_readout": 0,
                "modalities": (),
                "n_panels": 0,
            }
        )

    def _check_optional(self) -> None:
        """Raise ``ValueError`` unless every optional covariate has categories that can be hidden."""
        if len(set(self.optional)) < len(self.optional) or any(k >= len(self.n_categories) for k in self.optional):
            msg = f"optional={self.optional!r} was given; different positions among {len(self.n_categories)} categorical covariates are expected."
            raise ValueError(msg)
        if self.has_batch and 0 in self.optional:
            check_batch_shown(self.dispersion, latent_library=self.latent_library)

    @property
    def received(self) -> list[tuple[int, int]]:
        """Position and number of categories of the categorical covariates that the networks receive.

        One with a single category carries no information and would only shift the bias.
        """
        return [(k, n) for k, n in enumerate(self.n_categories) if n > 1 and k not in self.left_out]

    @property
    def n_batches(self) -> int:
        """Number of batches, 1 without a batch covariate."""
        return self.n_categories[0] if self.has_batch else 1


@dataclass(frozen=True)
class PartConfig(ModelConfig):
    """The settings of the networks of one modality, which may have fewer features than z has dimensions."""

    def __post_init__(self) -> None:
        check(self)


def check_batch_shown(dispersion: Dispersion, *, latent_library: bool) -> None:
    """Raise ``ValueError`` if a model with an optional batch also needs the batch of every cell."""
    if dispersion != "gene-batch" and not latent_library:
        return
    needs = "dispersion='gene-batch'" if dispersion == "gene-batch" else "library='latent'"
    msg = (
        f"{needs} needs the batch of every cell, but optional_covariate_keys= names the batch, which is hidden from the model "
        "in half of the cells. Leave one of the two out."
    )
    raise ValueError(msg)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Generic[U]):
    """Options of the training that rarely need a change."""

    optimizer: OptimizerName | U = option(
        "adamw", '``"adamw"`` (decoupled weight decay; Loshchilov & Hutter 2019) or ``"adam"``.'
    )
    schedule: Schedule | U = option(
        "one-cycle", 'Learning rate schedule: ``"one-cycle"`` (Smith & Topin 2019) or ``"constant"``.'
    )
    learning_rate: float | U = option(
        0.01,
        """Peak learning rate. The default is 0.01 for minibatches of 256 cells and proportional to their size, at most
        0.02 (Goyal et al. 2017); 0.001 with ``preset="scvi"``.""",
        low=1e-12,
        high=10.0,
    )
    weight_decay: float | U = option(1e-4, "Weight decay of the optimizer.", low=0.0, high=10.0)
    adam_eps: float | U = option(1e-8, "Epsilon of the optimizer.", low=1e-16, high=1.0)
    max_grad_norm: float | U = option(
        0.0, "Largest gradient norm: larger gradients are scaled down to it. 0 means no limit.", low=0.0, high=1e12
    )
    patience: int | U = option(
        20,
        "Number of epochs without a better validation objective after which training stops early.",
        low=1,
        high=1_000_000,
    )
    keep_best: bool | U = option(
        True, "Whether to keep the state with the best validation objective instead of the last one."
    )
    n_samples: int | U = option(
        5,
        """Samples per cell of ``objective="iwae"`` and ``"dreg"``; 5 by default. The cost of the decoder grows with
        it.""",
        low=1,
        high=1_000,
        applies=lambda settings: settings.objective != "elbo",
        needs="objective='iwae' or 'dreg'",
    )
    kl_schedule: KlSchedule | U = option(
        "linear",
        """How the KL term changes over the warm-up. With ``"linear"`` (default) its weight rises from 0 to ``beta``.
        With ``"cyclical"`` the weight rises ``kl_cycles`` times, over the first half of each cycle, and stays at
        ``beta`` over the second half (Fu et al. 2019). With ``"capacity"`` the penalty is ``beta`` times the distance
        ``|KL - C|`` of a minibatch's mean divergence from a target C, which rises from 0 to ``kl_capacity`` (Burgess
        et al. 2018). This needs a ``beta`` above 1 to hold the target; 10 usually works.""",
    )
    kl_cycles: int | U = option(
        4,
        "Number of cycles of the cyclical schedule; 4 by default, as in its source.",
        low=1,
        high=1_000,
        applies=lambda settings: settings.kl_schedule == "cyclical",
        needs="options=FitOptions(kl_schedule='cyclical')",
    )
    kl_capacity: float | U = option(
        0.0,
        "Final target of the capacity schedule, in nats per cell. Required with this schedule.",
        low=0.0,
        high=1e4,
        applies=lambda settings: settings.kl_schedule == "capacity",
        needs="options=FitOptions(kl_schedule='capacity')",
    )
    free_bits_form: FreeBitsForm | U = option(
        "soft",
        """``"soft"`` (default) lowers the weight of a dimension by a tenth per step while its divergence is below
        ``free_bits``, and raises it again, up to ``beta``, while it is above (Chen et al. 2017). ``"hard"`` gives
        divergences below ``free_bits`` no gradient (Kingma et al. 2016). Divergences are means over a minibatch of
        training cells, with dropout and thinning; held-out cells show less. A prior that does not factorise over dimensions has a single floor, ``free_bits`` times their number.
        """,
        applies=lambda settings: settings.free_bits != 0,
        needs="free_bits=",
    )
    encoder_steps: int | U = option(
        0,
        """Number of updates of the encoder alone before each step. They continue while the mutual information between
        held-out cells and the latent space grows, and end after three epochs without growth (after He et al. 2019).
        Each update costs as much as a step; 0 by default.""",
        low=0,
        high=1_000,
    )
    start: StartName | U = option(
        "mean",
        """Weights before training. With ``"components"`` (default), z starts as the principal components of the cells and
        the decoder at the mean profile, so that fits with different seeds give similar latent spaces. With ``"mean"``,
        only the decoder starts from the data. ``"random"`` (with ``preset="scvi"``) starts from random weights alone.""",
        since="0.2.0",
    )
    refit_dispersion: bool | U = option(
        True,
        """Whether to refit the dispersions of the genes after training, with the rest of the model fixed (default; not
        with ``preset="scvi"``). Training moves them only so far, and counts of strongly expressed genes would stay too
        noisy. The most likely dispersions are found on up to 4,096 training cells. At least 20 validation cells are
        needed: on them the dispersions of genes of similar expression are shifted together, and the new dispersions are
        kept only if the importance-weighted bound of these cells increases. Latent space and decoded expression do not
        change.""",
    )


@dataclass(frozen=True, kw_only=True)
class Training(TrainingOptions[Never]):
    """What a preset or the user decides about the training."""

    batch_size: int = option(256, low=2, high=10_000_000)
    beta: float = option(1.0, low=0.0, high=1e6)
    kl_warmup: float = 0.3
    warmup_unit: WarmupUnit = "steps"
    early_stopping: bool = True
    objective: ObjectiveName = option("elbo", registry=OBJECTIVES)
    free_bits: float = option(0.0, low=0.0, high=100.0)
    hidden_share: float = option(0.5, low=0.0, high=1.0, since="0.2.0")


@dataclass(frozen=True)
class TrainConfig(Training):
    """How the network is trained; one step is one minibatch.

    ``max_epochs`` is filled in before training. ``kl_warmup`` is the share of all steps over which the KL weight rises
    from 0 to ``beta`` (``warmup_unit="steps"``), or a number of epochs, even if training ends earlier (``"epochs"``,
    the rule of scvi-tools); ``kl_schedule`` sets how it rises. ``free_bits`` are nats per latent dimension. In each
    minibatch the optional covariates of a cell are hidden with probability ``hidden_share``.
    """

    max_epochs: int = field(metadata=declares(low=1, high=1_000_000))

    def __post_init__(self) -> None:
        check_range("kl_warmup", self.kl_warmup, 0.0, 1.0 if self.warmup_unit == "steps" else 1e6)
        check(self)
        self._check_together()

    def _check_together(self) -> None:
        """Raise ``ValueError`` if two choices cannot be combined."""
        capacity, several = self.kl_schedule == "capacity", not OBJECTIVES[self.objective].has_divergence
        if capacity and several:
            msg = (
                f"kl_schedule='capacity' holds the KL term of objective='elbo' at a target; objective={self.objective!r} has "
                "no such term. Pass objective='elbo', or kl_schedule='linear'."
            )
            raise ValueError(msg)
        if capacity and self.kl_capacity == 0:
            msg = "kl_schedule='capacity' needs its target in nats per cell: pass options=FitOptions(kl_schedule='capacity', kl_capacity=10)."
            raise ValueError(msg)
        if capacity and self.beta <= 1:
            msg = (
                f"beta={self.beta:g} cannot hold the divergence at kl_capacity={self.kl_capacity:g}: beta is the weight of the distance "
                "from this target, and at 1 or below it reduces the divergence no further than the plain ELBO does. Pass beta=10, "
                "or more if the divergence stays away from the target."
            )
            raise ValueError(msg)
        if self.kl_schedule == "cyclical" and self.kl_warmup == 0:
            msg = "kl_schedule='cyclical' needs a warm-up for its cycles, but kl_warmup=0. Pass kl_warmup=0.3, or leave kl_warmup out."
            raise ValueError(msg)
        if self.free_bits > 0 and (capacity or several):
            other = "kl_schedule='capacity'" if capacity else f"objective={self.objective!r}"
            msg = (
                f"free_bits={self.free_bits:g} sets a lower limit for the weighted divergence of objective='elbo'; with {other} it has "
                "no meaning. Leave one of the two out."
            )
            raise ValueError(msg)
        if self.free_bits > 0 and self.beta == 0:
            msg = f"free_bits={self.free_bits:g} has no effect with beta=0, which removes the KL term. Leave it out."
            raise ValueError(msg)
