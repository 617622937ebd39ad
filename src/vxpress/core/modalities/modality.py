"""One modality in addition to RNA: its encoder, the expert of the posterior, and its decoder with one likelihood."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vxpress.core.blocks import DecoderInputs
from vxpress.core.config import ModalityConfig, ModelConfig
from vxpress.core.data import Batch, Source
from vxpress.core.likelihoods import Layers, Likelihood
from vxpress.core.networks import Decoder, Encoder
from vxpress.core.noise import Noise
from vxpress.core.normal import DiagonalNormal

# log variance of the posterior of a modality at the start, wide, so that RNA places the cells first
START_LOG_VARIANCE = 2.0


class Modality(nn.Module):
    """The networks of a modality. They are those of RNA, with the features and the likelihood of the modality.

    The size factor of its counts is that of its own source.
    """

    def __init__(self, config: ModelConfig, modality: ModalityConfig, n_condition: int, n_encoded: int) -> None:
        super().__init__()
        self.name, self.config = modality.name, config.part(modality)
        self.encoder = Encoder(self.config, n_encoded, config.n_latent)
        self.decoder = Decoder(self.config, n_condition)
        with torch.no_grad():
            self.encoder.log_variance.bias.fill_(START_LOG_VARIANCE)

    @property
    def layers(self) -> Layers:
        """The output layers of the decoder."""
        return self.decoder.layers({})

    def encode(self, batch: Batch, condition_nc: Tensor | None, noise: Noise | None) -> DiagonalNormal:
        """Return what the modality alone says about z, (n, d); meaningless for cells that lack it."""
        return self.encoder(batch, condition_nc, noise)

    def likelihood(self, inputs: DecoderInputs, log_library_n1: Tensor, noise: Noise | None = None) -> Likelihood:
        """Return the distribution of the counts of cells with these size factors."""
        return self.decoder(inputs.z_nd, inputs.condition_nc, inputs.covariates, log_library_n1, noise)

    def log_likelihood(self, inputs: DecoderInputs, batch: Batch, noise: Noise | None = None) -> Tensor:
        """Compute the log likelihood of each cell, (n,), 0 for cells that lack the modality."""
        value_n = self.decoder.log_likelihood(inputs.z_nd, inputs.condition_nc, batch, batch.log_library_n1, noise)
        return masked(value_n, batch.observed_n)

    def start_from(self, source: Source, rows: Tensor) -> None:
        """Start the decoder from the data of cells that have the modality."""
        self.decoder.output.start(self.layers, self.decoder.likelihood, source, rows)


def masked(value_n: Tensor, observed_n: Tensor | None) -> Tensor:
    """Return the values of the cells that have a modality, and 0 for the others."""
    return value_n if observed_n is None else torch.where(observed_n, value_n, 0.0)


def start_modalities(modalities: Iterable[Modality], source: Source, rows: Tensor) -> None:
    """Start the decoders of all modalities from those of the cells ``rows`` that have them."""
    for modality in modalities:
        modality.start_from(source.further[modality.name], source.having(modality.name, rows))
