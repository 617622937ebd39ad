"""What the location of a decoder means, and all that follows from it.

A likelihood names its output. Built-in ones are :class:`~vxpress.core.likelihoods.shares.Shares`, for counts whose
location is the log share of each gene in the molecules of a cell, and :class:`~vxpress.core.likelihoods.levels.Levels`,
for values of each gene by itself. A likelihood of another kind brings its own subclass, which decides how the decoder
starts from data, what decoded expression is, and how genes that are not modelled or not measured are treated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vxpress.core.data import Batch, Source
from vxpress.core.likelihoods.layers import Layers
from vxpress.core.likelihoods.sums import Sums

if TYPE_CHECKING:
    from vxpress.core.likelihoods.base import Likelihood


@dataclass(frozen=True)
class ToReadOut:
    """Data from which the readout of genes outside the model is fitted.

    ``cells`` holds the counts of the modelled genes, ``outside`` those of the others, of the same cells. ``features``
    returns what the frozen decoder passes to its output layers at the posterior means of a batch, (n, features),
    and ``judged_features`` at draws from the posteriors. ``panels`` says which genes each panel measured, of those in ``cells``
    and of those in ``outside``, each (panels, genes); the cells then have the code of their panel.
    """

    cells: Source
    outside: Source
    features: Callable[[Batch], Tensor]
    judged_features: Callable[[Batch], Tensor]
    train_rows: Tensor
    validation_rows: Tensor
    seed: int
    panels: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Measured:
    """Cells in which only some of the modelled genes were measured, ``genes_g`` (boolean); other counts are zero.

    With ``inside``, the library of ``batch`` counts the measured modelled genes only. Otherwise it counts all genes but
    the missing ones. ``read_out`` returns the outputs of the readout at the cells' present position, (n, genes), if the
    library of the model also includes genes outside the model; else it is None.
    """

    genes_g: Tensor
    batch: Batch
    inside: bool
    read_out: Callable[[], Tensor] | None = None


class Output(ABC):
    """How the location of a decoder is read; one object without state serves all models.

    ``scale`` names the scale of decoded expression in the parameters of a fit. With ``scalable``, decoded expression is
    a share of the molecules of a cell: it can be scaled to any total, and times the library size it is an expected count.
    With ``nonnegative`` it is never below 0. With ``has_remainder``, the location may have one more output for the
    molecules outside the modelled genes.
    """

    scale: ClassVar[str]
    scalable: ClassVar[bool] = False
    nonnegative: ClassVar[bool] = False
    has_remainder: ClassVar[bool] = False

    def width(self, n_genes: int, *, remainder: bool) -> int:
        """Return the number of outputs of the location layer."""
        return n_genes + (remainder and self.has_remainder)

    def kept(self, n_readout: int) -> dict[str, Tensor]:
        """Return the initial values of further tensors that are stored with the weights, by name."""
        return {}

    def locate(self, location: Tensor, n_genes: int) -> tuple[Tensor, Tensor | None]:
        """Return the location of the modelled genes, and the log share of the remainder if there is one."""
        return location, None

    def log_counted(self, location: Tensor, measured_ng: Tensor) -> Tensor:
        """Return the log share of a cell's molecules that its size factor counts, (n, 1).

        ``location`` are outputs of the location for cells in which only some genes were measured, bool (n, g). The size factor counts
        these and the remainder. It is 0 for values of each gene by itself.
        """
        return torch.zeros_like(location[:, :1])

    @abstractmethod
    def start(self, layers: Layers, likelihood: type[Likelihood], cells: Source, rows: Tensor) -> None:
        """Start the output layers from the data of some cells, in place."""

    def sums(self, layers: Layers, n: int, inside: Tensor | None, outside: Tensor | None) -> Sums:
        """Return an object that sums decoded expression over draws of z, see :class:`Sums`."""
        return Sums(layers, n, inside, outside, self.value)

    def value(self, outputs: Tensor) -> Tensor:
        """Compute decoded expression from outputs of the location or the readout, each gene by itself."""
        return outputs

    @abstractmethod
    def expected_counts(self, layers: Layers, values_ng: Tensor, log_library_n1: Tensor) -> Tensor:
        """Compute the expected counts of modelled genes from their decoded expression."""

    @abstractmethod
    def fit_readout(self, layers: Layers, data: ToReadOut) -> None:
        """Fit ``layers.readout`` in place."""

    def change(self, before_ng: Tensor, after_ng: Tensor) -> Tensor:
        """Measure how much the decoded expression of the modelled genes changes, (n,): the mean absolute change."""
        return (after_ng - before_ng).abs().mean(-1)

    @abstractmethod
    def measured_share(self, distribution: Likelihood, measured: Measured) -> Tensor:
        """Estimate the share of a cell's molecules that its library includes, (n, 1).

        ``distribution`` is that of the modelled genes in cells of one molecule.
        """
