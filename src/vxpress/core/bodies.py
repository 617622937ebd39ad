"""The hidden layers of encoder and decoder.

The body of a decoder maps z to the features that its output layers receive. A new one is a subclass of :class:`Body`
and one entry in :data:`DECODERS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vxpress.core import registry, rule
from vxpress.core.config import ModelConfig
from vxpress.core.noise import BITS, NO_BITS, Noise
from vxpress.core.option import Options as NoOptions

# least number of hidden units of the network of one latent dimension
MIN_SPLIT_WIDTH = 8


def join(*parts: Tensor | None) -> Tensor:
    """Concatenate the parts that are not None along the last axis."""
    there = [part for part in parts if part is not None]
    return there[0] if len(there) == 1 else torch.cat(there, dim=-1)


def differences(d: int, like: Tensor) -> Tensor:
    """Return the map from the units relu(u), relu(-u) to u, (d, 2d)."""
    eye = torch.eye(d, dtype=like.dtype, device=like.device)
    return torch.cat((eye, -eye), dim=1)


class Body(nn.Module):
    """Base class of the bodies of decoders; every body is built as ``Body(config, n_condition)``.

    ``n_condition`` is the width of the condition vector. ``n_features`` is the number of values per cell that
    :meth:`forward` returns. If ``receives_condition`` is False, the body does not receive the condition vector, which then
    enters at the output layers.
    """

    Options: ClassVar[type[NoOptions]] = NoOptions
    """The options of this body, a frozen dataclass; ``config.decoder_options`` holds them."""
    receives_condition: ClassVar[bool] = True
    has_loadings: ClassVar[bool] = False
    """Whether the features are z itself, so that the weights of the output layer are loadings of the genes."""
    n_features: int

    def conditioned(self) -> Iterator[str]:
        """Yield the names of the weights whose last columns belong to the condition vector."""
        yield from ()

    def start_linear(self, d: int) -> Tensor | None:
        """Make some features linear in the first ``d`` dimensions of z, up to norms, for a start at components.

        Returns the map from the first features to these dimensions, (d, features), or None if the body has no such start.
        """
        return None

    def forward(self, z_nd: Tensor, s_nc: Tensor | None, noise: Noise | None) -> Tensor:
        """Return the features of each cell, (n, features)."""
        raise NotImplementedError


class MLP(nn.Module):
    """Hidden layers (linear, norm, ReLU, dropout), each of which also receives the condition vector.

    With ``skip``, every layer and the output layers also receive the input (Dieng et al. 2019).
    """

    def __init__(self, n_in: int, n_condition: int, config: ModelConfig, dropout: float, *, skip: bool = False) -> None:
        super().__init__()
        self.skip, again = skip, n_in if skip else 0
        widths = [n_in] + [config.n_hidden] * config.n_layers
        self.linears = nn.ModuleList(
            nn.Linear(a + (again if i else 0) + n_condition, b) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(_norm(config) for _ in self.linears)
        self.n_features = config.n_hidden + again
        _freeze_biases(config, self.linears)
        self.dropout = dropout

    def conditioned(self) -> Iterator[str]:
        """Names of the weights whose last columns belong to the condition vector."""
        yield from (f"linears.{i}.weight" for i in range(len(self.linears)))

    def forward(self, x: Tensor, s_nc: Tensor | None, noise: Noise | None) -> Tensor:
        h = self.after_first(self.linears[0](join(x, s_nc)), s_nc, noise, x if self.skip else None)
        return join(h, x) if self.skip else h

    def pass_on(self, d: int) -> None:
        """Let the first 2d units of every layer after the first be those of the layer before."""
        for linear in cast("list[nn.Linear]", list(self.linears)[1:]):
            linear.weight[: 2 * d] = 0.0
            linear.bias[: 2 * d] = 0.0
            linear.weight[: 2 * d, : 2 * d] = torch.eye(2 * d, device=linear.weight.device)

    def after_first(self, x: Tensor, s_nc: Tensor | None, noise: Noise | None, again: Tensor | None = None) -> Tensor:
        """Apply the remaining layers to the output of the first linear layer."""
        for i, norm in enumerate(self.norms):
            if i > 0:
                x = self.linears[i](join(x, again, s_nc))
            x = _activate(x, norm, self.dropout if self.training and noise is not None else 0.0, noise)
        return x


class MLPBody(MLP, Body):
    """Hidden layers without dropout."""

    with_skips: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, n_condition: int) -> None:
        super().__init__(config.n_latent, n_condition, config, dropout=0.0, skip=self.with_skips)

    def start_linear(self, d: int) -> Tensor:
        first = cast("nn.Linear", self.linears[0])
        first.weight[: 2 * d] = 0.0
        first.bias[: 2 * d] = 0.0
        read = differences(d, first.weight)
        first.weight[: 2 * d, :d] = read.t()
        self.pass_on(d)
        return read


class Skip(MLPBody):
    """Hidden layers that all receive z as well, as do the output layers (Dieng et al. 2019)."""

    with_skips = True


class Direct(Body):
    """No hidden layer: the output layers receive z itself (Svensson et al. 2020)."""

    receives_condition = False
    has_loadings = True

    def __init__(self, config: ModelConfig, n_condition: int) -> None:
        super().__init__()
        self.n_features = config.n_latent

    def start_linear(self, d: int) -> Tensor:
        return torch.eye(d)

    def forward(self, z_nd: Tensor, s_nc: Tensor | None, noise: Noise | None) -> Tensor:
        return z_nd


class Split(Body):
    """A separate small network for each latent dimension, which receives no other dimension.

    The output layer adds their outputs, so logits are sums of one function per dimension (given the condition), as in
    the additive decoder of Moinfar & Theis (2024).
    """

    def __init__(self, config: ModelConfig, n_condition: int) -> None:
        super().__init__()
        d, width = config.n_latent, max(MIN_SPLIT_WIDTH, config.n_hidden // config.n_latent)
        ins = [1] + [width] * (config.n_layers - 1)
        self.linears = nn.ModuleList(_Blocks(d, n_in, n_condition, width) for n_in in ins)
        self.norms = nn.ModuleList(_norm(config, width=width, groups=d) for _ in self.linears)
        self.n_features = d * width
        _freeze_biases(config, self.linears)

    def conditioned(self) -> Iterator[str]:
        """Names of the weights whose last columns belong to the condition vector."""
        yield from (f"linears.{i}.weight" for i in range(len(self.linears)))

    def forward(self, z_nd: Tensor, s_nc: Tensor | None, noise: Noise | None) -> Tensor:
        x = z_nd
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = _activate(linear(join(x, s_nc)), norm, 0.0, None)
        return x


class _Blocks(nn.Linear):
    """Parallel linear maps: each receives its block of the input, and all receive the condition after the blocks."""

    own: Tensor

    def __init__(self, n_blocks: int, n_in: int, n_condition: int, n_out: int) -> None:
        super().__init__(n_blocks * n_in + n_condition, n_blocks * n_out)
        blocks = torch.block_diag(*[torch.ones(n_out, n_in)] * n_blocks)
        own = torch.cat((blocks, torch.ones(n_blocks * n_out, n_condition)), dim=1)
        # determined by the sizes, so it is not stored
        self.register_buffer("own", own.to(self.weight.device), persistent=False)
        with torch.no_grad():
            # each output has few inputs, which sets the range of its initial weights
            bound = 1.0 / math.sqrt(n_in + n_condition)
            self.weight.uniform_(-bound, bound).mul_(self.own)
            self.bias.uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.own, self.bias)


def _norm(config: ModelConfig, *, width: int | None = None, groups: int = 1) -> nn.Module:
    """Build the norm of a hidden layer of ``groups`` x ``width`` units; layer norm treats each group separately."""
    width = config.n_hidden if width is None else width
    if config.norm == "batch":
        return nn.BatchNorm1d(groups * width, momentum=config.norm_momentum, eps=config.norm_eps)
    if config.norm == "layer" and groups > 1:
        return nn.GroupNorm(groups, groups * width, eps=config.norm_eps)
    if config.norm == "layer":
        return nn.LayerNorm(width, eps=config.norm_eps)
    return nn.Identity()


def _freeze_biases(config: ModelConfig, linears: nn.ModuleList) -> None:
    if config.norm == "batch" and not config.bias_before_norm:
        # batch norm removes these biases again: their gradients are rounding noise, which Adam would amplify
        for linear in linears:
            linear.bias.requires_grad = False


def _activate(x: Tensor, norm: nn.Module, dropout: float, noise: Noise | None) -> Tensor:
    """Compute dropout(relu(norm(x))), in one compiled pass where that is faster."""
    has_norm = isinstance(norm, nn.BatchNorm1d | nn.LayerNorm)
    if rule.compiled_hidden(x.device, x.dtype, has_norm=has_norm, training=norm.training):
        from vxpress.core.kernels.hidden_layer import norm_relu_dropout

        bits, limit = (NO_BITS, BITS) if noise is None else noise.dropout_bits(x, dropout)
        return norm_relu_dropout(x, cast("nn.BatchNorm1d | nn.LayerNorm", norm), bits, limit)
    x = F.relu(norm(x))
    return x if noise is None or dropout == 0.0 else x * noise.dropout(x, 1.0 - dropout)


DECODERS: registry.Registry[type[Body]] = registry.DECODERS
DECODERS.register("mlp", MLPBody)
DECODERS.register("skip", Skip)
DECODERS.register("linear", Direct)
DECODERS.register("split", Split)
