"""Sums of decoded values over draws of z."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vxpress.core.likelihoods.layers import Layers
from vxpress.core.threads import share

# entries of one block of decoded cells (2 MB), and its least number of rows
BLOCK_ENTRIES, MIN_BLOCK = 2**19, 32


class Sums:
    """Sums over draws of the decoded values of requested genes, for chunks of at most ``n`` cells.

    A draw passes through the output layers one block of cells at a time, in reused memory that fits the caches of the
    processor. ``inside`` and ``outside`` are the requested columns of the modelled genes and of the readout (None: all).
    In this class the value of a gene is a function, ``value``, of its own output; outputs of other genes are not computed.
    """

    def __init__(
        self,
        layers: Layers,
        n: int,
        inside: Tensor | None,
        outside: Tensor | None,
        value: Callable[[Tensor], Tensor] = lambda outputs: outputs,
    ) -> None:
        self.model_layers, self.value = layers, value
        self.columns = {"location": inside, "readout": outside}
        readout = layers.readout
        n_inside = layers.n_genes if inside is None else len(inside)
        n_outside = 0 if readout is None else readout.out_features if outside is None else len(outside)
        wanted: dict[str, tuple[Tensor, Tensor]] = {}
        if self.needs_location(n_inside, n_outside):
            wanted["location"] = self.wanted("location", layers.location)
        if readout is not None and self.needs_readout(n_inside, n_outside):
            wanted["readout"] = self.wanted("readout", readout)
        widest = max((len(bias) for _, bias in wanted.values()), default=1)
        self.block = max(MIN_BLOCK, min(n, BLOCK_ENTRIES // widest))
        device = layers.location.weight.device
        self.layers = {
            name: (weight, bias, *torch.empty(2, self.block, len(bias), device=device))
            for name, (weight, bias) in wanted.items()
        }
        # copies whose memory no thread uses at present
        self.idle: list[Sums] = []
        self.inside = torch.empty(n, n_inside, device=device)
        self.outside = None if readout is None else torch.empty(n, n_outside, device=device)

    def needs_location(self, n_inside: int, n_outside: int) -> bool:
        """Whether the outputs of the location are needed for so many requested genes."""
        return n_inside > 0

    def needs_readout(self, n_inside: int, n_outside: int) -> bool:
        """Whether the outputs of the readout are needed for so many requested genes."""
        return n_outside > 0

    def wanted(self, name: str, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        """Return the weight and bias of the outputs to compute: those of the requested genes."""
        weight, bias, columns = layer.weight.detach(), layer.bias.detach(), self.columns[name]
        return (weight, bias) if columns is None else (weight[columns], bias[columns])

    def prepare(self, n_decoded: int) -> None:
        """Prepare for decoding so many cells, each draw of a cell counted; a subclass may do something once for all of them."""

    def again(self, n: int) -> Sums:
        """Return the same sums for another ``n`` cells, at zero and with their own memory; any thread may use them."""
        other = self.with_own_memory()
        other.inside = self.inside.new_zeros(n, self.inside.shape[1])
        other.outside = None if self.outside is None else self.outside.new_zeros(n, self.outside.shape[1])
        return other

    def add(self, f_nf: Tensor) -> None:
        """Add a draw of every cell of the chunk, given the decoder's features."""
        n = len(f_nf)
        parts = [slice(start, min(start + self.block, n)) for start in range(0, n, self.block)]

        def add_block(i: int) -> None:
            try:
                one: Sums = self.idle.pop()
            except IndexError:
                one = self.with_own_memory()
            one.add_block(f_nf[parts[i]], parts[i])
            self.idle.append(one)

        share(add_block, len(parts), f_nf.device)

    def with_own_memory(self) -> Sums:
        """Return the same sums with other memory for the outputs of a block, for another thread."""
        other = copy.copy(self)
        other.idle = []
        other.layers = {
            name: (weight, bias, torch.empty_like(out), torch.empty_like(more))
            for name, (weight, bias, out, more) in self.layers.items()
        }
        return other

    def add_block(self, f_nf: Tensor, part: slice) -> None:
        """Add a draw of some cells of the chunk."""
        if "location" in self.layers:
            self.inside[part].add_(self.value(self.outputs("location", f_nf)))
        if self.outside is not None and "readout" in self.layers:
            self.outside[part].add_(self.value(self.outputs("readout", f_nf)))

    def outputs(self, name: str, f_nf: Tensor) -> Tensor:
        """Apply a linear map to the features of a block; the memory of the result is reused by the next block."""
        weight, bias, out, _ = self.layers[name]
        return torch.addmm(bias, f_nf, weight.t(), out=out[: len(f_nf)])

    def mean(self, n: int, n_draws: int) -> tuple[Tensor, Tensor | None]:
        """Return means over draws of the ``n`` cells of the chunk."""
        inside = self.inside[:n].div_(n_draws)
        return inside, None if self.outside is None else self.outside[:n].div_(n_draws)
