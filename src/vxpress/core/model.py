"""The model: latent blocks, among them z, with posteriors and priors, and p(x | z, s, l) (Kingma & Welling 2014)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from vxpress._signals import interrupts_held
from vxpress.core.blocks import Block, Blocks, DecoderInputs, Point, Posterior, Z
from vxpress.core.blocks.state import State
from vxpress.core.config import RNA, ModelConfig
from vxpress.core.covariates import Conditioner, Covariates
from vxpress.core.data import Batch, Source
from vxpress.core.isolation import on_device, seeded
from vxpress.core.likelihoods import Layers, Likelihood
from vxpress.core.modalities import Modality, average_unmeasured, partly_shown, product, start_modalities
from vxpress.core.modalities.modality import masked
from vxpress.core.networks import Decoder, Encoder
from vxpress.core.noise import Noise
from vxpress.core.normal import DiagonalNormal
from vxpress.core.panels import Panels
from vxpress.core.perturbations import shifted
from vxpress.core.priors import Prior
from vxpress.core.thinning import Space, thinned
from vxpress.core.threads import same_bits


class VAE(nn.Module):
    """A conditional variational autoencoder of counts.

    ``blocks`` holds the latent variables of a cell by name: ``"z"`` and those that the settings switch on. ``further``
    holds the networks of the modalities that cells have in addition to RNA, see :mod:`vxpress.core.modalities`.
    Buffers are those that the output of the likelihood keeps, such as ``outside_share``, see
    :class:`vxpress.core.likelihoods.shares.Shares`.
    """

    blocks: Blocks
    modalities: tuple[str, ...] = (RNA,)
    """Names of the observed modalities, those of the terms of :meth:`log_likelihood`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.conditioner = Conditioner(config)
        width = self.conditioner.width
        self.blocks = Blocks(config, self.conditioner.encoder_width)
        self.decoder = Decoder(config, width)
        for block in self.blocks.values():
            block.add_prior()
        self.prior.bind(self.encode_average, torch.tensor(config.n_categories, dtype=torch.float32))
        for name, value in self.decoder.output.kept(config.n_readout).items():
            self.register_buffer(name, value)
        self.panels = Panels(config) if config.n_panels else None
        # numbered in files, so that any name is possible
        self.further = nn.ModuleList(
            Modality(config, modality, width, self.conditioner.encoder_width) for modality in config.modalities
        )
        if config.modalities:
            self.modalities = (RNA, *(modality.name for modality in config.modalities))

    # latent blocks

    @property
    def state(self) -> State:
        """The block of z."""
        return cast("State", self.blocks[Z])

    @property
    def prior(self) -> Prior:
        """The prior of z; ``model.state.prior = ...`` replaces it."""
        return self.state.prior

    @property
    def encoder(self) -> Encoder:
        """The encoder of z."""
        return self.state.encoder

    @property
    def others(self) -> dict[str, Modality]:
        """The networks of the modalities other than RNA, by name."""
        return {modality.name: modality for modality in cast("list[Modality]", list(self.further))}

    def of(self, name: str) -> VAE:
        """Return a model that decodes the modality ``name`` from the same latent space; it shares the weights of this one.

        Analyses that decode stored posteriors work on it as on a model of RNA: draws, decoded values, log likelihoods at a
        point. Posteriors are those of this model, which sees all modalities. Size factors are those of the modality. Panels
        are those of RNA, so the view has none.
        """
        if name == RNA:
            return self
        modality = self.others[name]
        view = copy.copy(self)
        view._modules = self._modules | {"decoder": modality.decoder, "further": nn.ModuleList(), "panels": None}
        view._buffers = dict[str, Tensor | None]()
        view.config, view.modalities = modality.config, (name,)
        return view

    @property
    def n_noise(self) -> int:
        """Number of columns of noise for one draw of all blocks."""
        return sum(block.n_noise for block in self.blocks.values())

    @property
    def weighted(self) -> tuple[str, ...]:
        """Names of the blocks whose divergence has the weight beta."""
        return tuple(name for name, block in self.blocks.items() if block.weighted)

    @property
    def infers_library(self) -> bool:
        """Whether a block infers the size factor of a cell; otherwise it has to be given."""
        return any(block.infers_library for block in self.blocks.values())

    @property
    def decoded_blocks(self) -> dict[str, Block]:
        """The blocks from which stored cells are decoded, z first: all but one that infers the size factor, which is given."""
        return {name: block for name, block in self.blocks.items() if not block.infers_library}

    def sample_log_library(self, covariates: Covariates, eps_n1: Tensor) -> Tensor:
        """Draw log size factors from the prior of the block that infers them, (n, 1), with standard noise."""
        (block,) = (block for block in self.blocks.values() if block.infers_library)
        return block.sample_prior(covariates, eps_n1)

    def sample_others(self, covariates: Covariates, generator: torch.Generator) -> Point:
        """Draw the blocks other than z and the size factor from their priors, for every cell of ``covariates``."""
        n = len(covariates.continuous_nc)
        return {
            name: block.sample_prior(covariates, torch.randn(n, block.n_noise, generator=generator))
            for name, block in self.decoded_blocks.items()
            if name != Z
        }

    def posterior(self, batch: Batch, noise: Noise | None = None) -> Posterior:
        """Return the posterior of a minibatch, q(block | x, s) for each latent block.

        With ``noise``, units are dropped out, counts are thinned, and some cells show only one of their modalities, as in
        training.
        """
        seen = batch if noise is None else self.thinned(batch, noise)
        if self.panels is not None:
            seen = self.panels.filled(seen, self.config.alone_share, noise)
            batch = self.panels.filled(batch, 0.0, None) if len(self.blocks) > 1 else batch
        found = Posterior(
            {
                name: block.encode(seen if block.thinned else batch, self.encoder_condition(batch.covariates), noise)
                for name, block in self.blocks.items()
            }
        )
        if self.further:
            found = found.replaced(z=self.of_all(found[Z], batch, noise))
        return self.basal(found, batch.covariates)

    def of_all(self, of_rna: DiagonalNormal, batch: Batch, noise: Noise | None = None) -> DiagonalNormal:
        """Return the posterior of z given all modalities of each cell, from what its RNA alone says about z."""
        shown = batch if noise is None else partly_shown(batch, self.config.alone_share, noise)
        condition_nc = self.encoder_condition(batch.covariates)
        experts = [(of_rna, shown.observed_n)]
        for name, modality in self.others.items():
            part = shown.further[name]
            experts.append((modality.encode(part, condition_nc, noise), part.observed_n))
        return product(experts)

    def basal(self, posterior: Posterior, covariates: Covariates) -> Posterior:
        """Return what encoders say of cells with the effects of their perturbations taken out of z."""
        shift_nd = self.conditioner.shift(covariates)
        return posterior if shift_nd is None else posterior.replaced(z=shifted(posterior[Z], -shift_nd))

    def thinned(self, batch: Batch, noise: Noise, space: Space | None = None) -> Batch:
        """Return the counts that the encoder of z sees in training: the minibatch itself, or a part of its molecules."""
        return thinned(batch, self.config.thinning, noise, space) if self.config.thinning else batch

    def encoder_condition(self, covariates: Covariates) -> Tensor | None:
        """Return the condition vector of the encoders, or None if they receive none."""
        if not self.conditioner.encoder_width:
            return None
        return self.conditioner.for_encoder(self.conditioner(covariates))

    def encode_average(self, log_x_kg: Tensor, known_k: Tensor) -> DiagonalNormal:
        """Return q(z) of log1p counts without dropout, with norms in evaluation mode and covariates at their average.

        The average is over the first ``known_k`` categories of each covariate.
        """
        encoder, training = self.encoder, self.encoder.training
        encoder.eval()
        try:
            s_kc: Tensor | None = None
            if self.conditioner.encoder_width:
                s_c = self.conditioner.for_encoder(self.conditioner.average(known_k))
                assert s_c is not None  # noqa: S101 - it has columns
                s_kc = s_c.to(log_x_kg).expand(len(log_x_kg), -1)
            found = encoder.after_first(encoder.product_of(log_x_kg, s_kc), s_kc)
            return product([(found, None)]) if self.further else found
        finally:
            encoder.train(training)

    def inference_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the posteriors."""
        of_blocks = [p for block in self.blocks.values() for p in block.inference_parameters()]
        return [*of_blocks, *(p for modality in self.others.values() for p in modality.encoder.parameters())]

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that training changes: condition, posteriors, decoder without readout, and priors."""
        of_posteriors = self.inference_parameters()
        known = set(map(id, of_posteriors))
        decoder = [p for name, p in self.decoder.named_parameters() if not name.startswith("readout")]
        decoder += [p for modality in self.others.values() for p in modality.decoder.parameters()]
        others = [p for p in self.blocks.parameters() if id(p) not in known]
        return [p for p in (*self.conditioner.parameters(), *of_posteriors, *decoder, *others) if p.requires_grad]

    # decoder

    def inputs(self, point: Point, covariates: Covariates, log_library_n1: Tensor) -> DecoderInputs:
        """Return the inputs of the decoder at a point (n, columns); blocks that are not in it are at their prior mean.

        ``log_library_n1`` is used unless the point has a block that infers it.
        """
        inputs = DecoderInputs(point[Z], self.conditioner(covariates), covariates, log_library_n1)
        for name, block in self.blocks.items():
            inputs = block.enter(inputs, point[name]) if name in point else block.enter_unknown(inputs)
        shift_nd = self.conditioner.shift(covariates)
        return inputs if shift_nd is None else replace(inputs, z_nd=inputs.z_nd + shift_nd)

    def log_library(self, point: Point, covariates: Covariates, log_library_n1: Tensor) -> Tensor:
        """Return the log size factor that the decoder receives at a point if cells have this one, (n, 1)."""
        return self.inputs(point, covariates, log_library_n1).log_library_n1

    def likelihood(
        self, point: Point, covariates: Covariates, log_library_n1: Tensor, noise: Noise | None = None
    ) -> Likelihood:
        """Return the distribution p(x | point, s, l); see :meth:`inputs`.

        Of a gene that the panel of a cell lacks, it is the distribution of the counts that the cell would have.
        """
        inputs = self.inputs(point, covariates, log_library_n1)
        return self.decoder(
            inputs.z_nd,
            inputs.condition_nc,
            inputs.covariates,
            inputs.log_library_n1,
            noise,
            measured_ng=self.measured(covariates),
        )

    def features(self, point: Point, covariates: Covariates) -> Tensor:
        """Return the input of the output layers, (n, features), which does not depend on the size factor."""
        inputs = self.inputs(point, covariates, torch.zeros_like(point[Z][:, :1]))
        return self.decoder.features(inputs.z_nd, inputs.condition_nc)

    def log_likelihood(self, point: Point, batch: Batch, noise: Noise | None = None) -> dict[str, Tensor]:
        """Compute log p(x | point, s, l) of a minibatch, summed over genes, (n,), for each observed modality.

        It is 0 for a cell that lacks the modality.
        """
        inputs = self.inputs(point, batch.covariates, batch.log_library_n1)
        value_n = self.decoder.log_likelihood(
            inputs.z_nd,
            inputs.condition_nc,
            batch,
            inputs.log_library_n1,
            noise,
            measured_ng=self.measured(batch.covariates),
        )
        found = {RNA: masked(value_n, batch.observed_n)}
        for name, modality in self.others.items():
            found[name] = modality.log_likelihood(inputs, batch.further[name], noise)
        return found

    def dispersion_gradient(self, point: Point, batch: Batch, *, keep: bool = False) -> Callable[[], Tensor]:
        """Return a function that differentiates the summed log likelihood with respect to the log dispersions, (rows, genes).

        See :meth:`vxpress.core.networks.Decoder.dispersion_gradient`.
        """
        inputs = self.inputs(point, batch.covariates, batch.log_library_n1)
        return self.decoder.dispersion_gradient(
            inputs.z_nd,
            inputs.condition_nc,
            batch,
            inputs.log_library_n1,
            measured_ng=self.measured(batch.covariates),
            keep=keep,
        )

    def measured(self, covariates: Covariates) -> Tensor | None:
        """Return which genes were measured in each cell, bool (n, g), or None if all were."""
        return None if self.panels is None else self.panels.measured(covariates)

    # start

    @same_bits
    def start_blocks(self, source: Source, rows: Tensor, generator: torch.Generator) -> None:
        """Initialise the latent blocks from training cells."""
        for block in self.blocks.values():
            block.start_from(source, rows, generator)

    @property
    def layers(self) -> Layers:
        """The output layers of the decoder, with the tensors that the output of the likelihood keeps in the model."""
        kept = self.decoder.output.kept(self.config.n_readout)
        anchored = self.panels is not None and self.config.n_readout > 0
        return self.decoder.layers({name: self.get_buffer(name) for name in kept}, anchored=anchored)

    @same_bits
    def start_from(self, source: Source, rows: Tensor) -> None:
        """Start the decoder from the data, typically at the mean profile.

        Otherwise the decoder would spend a large share of its steps on learning the mean profile.
        """
        self.decoder.output.start(self.layers, self.decoder.likelihood, source, source.having(RNA, rows))
        start_modalities(self.others.values(), source, rows)
        if self.panels is not None and source.covariates.panel_n is not None:
            location_g = self.panels.start_from(source, source.having(RNA, rows))
            with torch.no_grad():
                self.decoder.location.bias[: len(location_g)] = location_g

    def average_unmeasured(self, source: Source, rows: Tensor) -> None:
        """Decode batches without a modality as the mean of those that have it; ``rows`` are the training cells."""
        for name in self.modalities if self.further else ():
            having = source.having(name, rows)
            decoder = self.decoder if name == RNA else self.others[name].decoder
            average_unmeasured(self.conditioner, decoder, source.covariates.categorical_nk[having])


def build(config: ModelConfig, seed: int) -> VAE:
    """Build a newly initialised model from a seed; no global random state is read or changed."""
    with interrupts_held(), seeded(seed):
        return VAE(config)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight of such a model, without allocating them."""
    # seeded, because some modules draw random numbers on the CPU even on the meta device;
    # interrupts are held, because a Ctrl-C on entry or exit could leave torch creating meta tensors in this process
    with interrupts_held(), seeded(0), on_device("meta"):
        return {name: tuple(value.shape) for name, value in VAE(config).state_dict().items()}
