"""Settings of a model and of its training, as frozen dataclasses.

:class:`ModelConfig` holds everything needed to build the same network again, :class:`TrainConfig` everything needed
to train it in the same way.  Both hold only plain scalars and tuples, so one codec stores them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_type_hints

from vxpress._checks import check_choice, check_range
from vxpress.core.registries import DECODERS, LIKELIHOODS

LikelihoodName = Literal["nb", "zinb", "poisson", "gaussian", "bernoulli"]
Dispersion = Literal["gene", "gene-batch", "gene-label", "gene-cell"]
Norm = Literal["batch", "layer", "none"]
CovariateCode = Literal["one-hot", "embedding"]
Schedule = Literal["one-cycle", "constant"]
OptimizerName = Literal["adamw", "adam"]
WarmupUnit = Literal["steps", "epochs"]
Preset = Literal["scvi", "likelihood"]
DecoderName = Literal["mlp", "skip", "linear", "split"]
PriorName = Literal["normal", "mixture", "vamp", "flow", "diffusion", "flow_matching"]
ObjectiveName = Literal["elbo", "iwae", "dreg"]
KlSchedule = Literal["linear", "cyclical", "capacity"]
FreeBitsForm = Literal["hard", "soft"]
BATCH_SIZES = 2, 10_000_000


def plain(config: Any) -> None:
    """Convert numpy scalars in a frozen dataclass to Python scalars; raise ``ValueError`` if a switch is not a bool."""
    hints = get_type_hints(type(config))
    for f in fields(config):
        value = getattr(config, f.name)
        if hints[f.name] is bool and not isinstance(value, bool):
            msg = f"{f.name}={value!r} was given; True or False is expected."
            raise ValueError(msg)
        for kind in (int, float):
            if hints[f.name] is kind:
                object.__setattr__(config, f.name, kind(value))


@dataclass(frozen=True)
class PriorConfig:
    """The prior of z: its kind, its size, and the number of conditions of a conditional prior p(z | condition).

    ``from_cells`` applies to ``"vamp"`` learned on a frozen model: see :class:`vxpress.core.priors.vamp.Vamp`.
    """

    name: PriorName = "normal"
    n_components: int = 50
    n_conditions: int = 0
    from_cells: bool = False

    def __post_init__(self) -> None:
        check_choice("prior", self.name, PriorName)
        check_range("n_components", self.n_components, 1, 100_000, integer=True)
        check_range("n_conditions", self.n_conditions, 0, 1_000_000, integer=True)
        plain(self)


@dataclass(frozen=True)
class ModelConfig:
    """The architecture: sizes, likelihood, prior and how covariates enter.

    ``bias_before_norm`` trains the biases that batch norm removes again, as scvi-tools does.

    ``n_categories`` holds the number of categories of each categorical covariate; with ``has_batch``, the
    first one is the batch.  ``remainder`` adds the share of molecules from genes outside the model.
    """

    n_genes: int
    n_latent: int = 10
    n_hidden: int = 128
    n_layers: int = 1
    likelihood: LikelihoodName = "nb"
    dispersion: Dispersion = "gene"
    n_categories: tuple[int, ...] = ()
    has_batch: bool = False
    n_continuous: int = 0
    n_labels: int = 0
    covariate_code: CovariateCode = "one-hot"
    n_embedding: int = 8
    encode_covariates: bool = False
    condition_output: bool = False
    norm: Norm = "batch"
    norm_momentum: float = 0.1
    norm_eps: float = 1e-3
    bias_before_norm: bool = False
    dropout: float = 0.1
    latent_library: bool = False
    remainder: bool = False
    n_readout: int = 0
    decoder: DecoderName = "mlp"
    prior: PriorConfig = PriorConfig()

    def __post_init__(self) -> None:
        LIKELIHOODS.check(self.likelihood)
        DECODERS.check(self.decoder)
        check_choice("dispersion", self.dispersion, Dispersion)
        check_choice("norm", self.norm, Norm)
        check_choice("covariate_code", self.covariate_code, CovariateCode)
        check_range("n_genes", self.n_genes, 1, 10_000_000, integer=True)
        check_range("n_latent", self.n_latent, 1, 4_096, integer=True)
        check_range("n_hidden", self.n_hidden, 1, 65_536, integer=True)
        check_range("n_layers", self.n_layers, 1, 64, integer=True)
        check_range("n_embedding", self.n_embedding, 1, 4_096, integer=True)
        check_range("n_readout", self.n_readout, 0, 10_000_000, integer=True)
        check_range("n_continuous", self.n_continuous, 0, 100_000, integer=True)
        check_range("n_labels", self.n_labels, 0, 1_000_000, integer=True)
        for size in self.n_categories:
            check_range("n_categories", size, 1, 1_000_000, integer=True)
        check_range("dropout", self.dropout, 0.0, 0.95)
        check_range("norm_momentum", self.norm_momentum, 0.0, 1.0)
        check_range("norm_eps", self.norm_eps, 1e-16, 1.0)
        if self.n_latent > self.n_genes:
            msg = (
                f"n_latent={self.n_latent} exceeds the {self.n_genes} modelled gene(s): a latent space wider than "
                f"the data cannot be identified. Pass n_latent={self.n_genes} or less, or model more genes (mask_var=None)."
            )
            raise ValueError(msg)
        if self.dispersion == "gene-batch" and not self.has_batch:
            msg = "dispersion='gene-batch' needs batches: pass batch_key=, or use dispersion='gene'."
            raise ValueError(msg)
        if self.dispersion == "gene-label" and self.n_labels == 0:
            msg = "dispersion='gene-label' needs labels: pass labels_key=, or use dispersion='gene'."
            raise ValueError(msg)
        plain(self)

    @property
    def n_batches(self) -> int:
        """Number of batches, 1 without a batch covariate."""
        return self.n_categories[0] if self.has_batch else 1


@dataclass(frozen=True)
class TrainConfig:
    """How the network is trained; one step is one minibatch.

    ``max_epochs`` is filled in before training. ``kl_warmup`` is the share of all steps over which the KL weight rises
    from 0 to ``beta`` (``warmup_unit="steps"``), or a number of epochs, even if training ends earlier (``"epochs"``,
    the rule of scvi-tools); ``kl_schedule`` sets how it rises. ``free_bits`` are nats per latent dimension.
    """

    max_epochs: int
    batch_size: int = 256
    beta: float = 1.0
    kl_warmup: float = 0.3
    warmup_unit: WarmupUnit = "steps"
    optimizer: OptimizerName = "adamw"
    schedule: Schedule = "one-cycle"
    learning_rate: float = 0.01
    weight_decay: float = 1e-4
    adam_eps: float = 1e-8
    max_grad_norm: float = 0.0
    early_stopping: bool = True
    patience: int = 20
    keep_best: bool = True
    objective: ObjectiveName = "elbo"
    n_samples: int = 5
    kl_schedule: KlSchedule = "linear"
    kl_cycles: int = 4
    kl_capacity: float = 0.0
    free_bits: float = 0.0
    free_bits_form: FreeBitsForm = "soft"
    encoder_steps: int = 0
    refit_dispersion: bool = True

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, ObjectiveName)
        check_choice("kl_schedule", self.kl_schedule, KlSchedule)
        check_choice("free_bits_form", self.free_bits_form, FreeBitsForm)
        check_range("n_samples", self.n_samples, 1, 1_000, integer=True)
        check_range("kl_cycles", self.kl_cycles, 1, 1_000, integer=True)
        check_range("kl_capacity", self.kl_capacity, 0.0, 1e4)
        check_range("free_bits", self.free_bits, 0.0, 100.0)
        check_range("encoder_steps", self.encoder_steps, 0, 1_000, integer=True)
        check_choice("optimizer", self.optimizer, OptimizerName)
        check_choice("schedule", self.schedule, Schedule)
        check_choice("warmup_unit", self.warmup_unit, WarmupUnit)
        check_range("max_epochs", self.max_epochs, 1, 1_000_000, integer=True)
        check_range("batch_size", self.batch_size, *BATCH_SIZES, integer=True)
        check_range("patience", self.patience, 1, 1_000_000, integer=True)
        check_range("beta", self.beta, 0.0, 1e6)
        check_range("learning_rate", self.learning_rate, 1e-12, 10.0)
        check_range("weight_decay", self.weight_decay, 0.0, 10.0)
        check_range("adam_eps", self.adam_eps, 1e-16, 1.0)
        check_range("max_grad_norm", self.max_grad_norm, 0.0, 1e12)
        check_range("kl_warmup", self.kl_warmup, 0.0, 1.0 if self.warmup_unit == "steps" else 1e6)
        self._check_together()
        plain(self)

    def _check_together(self) -> None:
        """Raise ``ValueError`` if two choices cannot be combined."""
        capacity, several = self.kl_schedule == "capacity", self.objective != "elbo"
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
