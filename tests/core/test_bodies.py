"""Decoder bodies: shapes, slopes and sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from vxpress.core import rule
from vxpress.core.bodies import DECODERS as REGISTRY
from vxpress.core.bodies import MIN_SPLIT_WIDTH, Body, join
from vxpress.core.config import DecoderName, LikelihoodName, ModelConfig, Norm, TrainConfig
from vxpress.core.data import Cells, gene_sums
from vxpress.core.model import VAE, build
from vxpress.core.noise import Noise
from vxpress.core.query.surgery import new_weights
from vxpress.core.training import train

MakeCells = Callable[..., Cells]
G, D, H = 20, 3, 8
DECODERS, LIKELIHOODS = get_args(DecoderName), get_args(LikelihoodName)


def _model(decoder: str, **settings: Any) -> VAE:
    known: dict[str, Any] = {"n_genes": G, "n_latent": D, "n_hidden": H, "n_categories": (2,), "has_batch": True}
    known |= {"norm": "layer", "condition_output": True}
    model = build(ModelConfig(**known | settings, decoder=decoder), 0)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(3)
    for name, value in model.named_buffers():
        # as after training
        if "running_mean" in name:
            value.copy_(torch.randn(value.shape, generator=draw) * 0.1)
        elif "running_var" in name:
            value.copy_(torch.rand(value.shape, generator=draw) + 0.5)
    return model.eval()


def _z(n: int = 7) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1)) * 2


def _logits(model: VAE, z_nd: Tensor, batch: int = 1) -> Tensor:
    s_nc = torch.eye(2)[batch].expand(len(z_nd), 2)
    with torch.no_grad():
        return model.decoder.location(model.decoder.features(z_nd, s_nc))


@pytest.mark.parametrize("remainder", [False, True])
@pytest.mark.parametrize("condition_output", [False, True])
def test_weights_of_a_linear_decoder_are_slopes(remainder: bool, condition_output: bool) -> None:
    model = _model("linear", remainder=remainder, condition_output=condition_output)
    z_nd, step = _z(), 0.7
    for d in range(D):
        for batch in (0, 1):
            slope = (_logits(model, z_nd + step * torch.eye(D)[d], batch) - _logits(model, z_nd, batch)) / step
            expected = model.decoder.location.weight[:, d].detach().expand_as(slope)
            torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-5)
    # covariates enter linearly, independent of condition_output
    shift = _logits(model, z_nd, 1) - _logits(model, z_nd, 0)
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=1e-3, atol=1e-5)
    assert float(shift.abs().max()) > 1e-3
    assert not list(model.decoder.body.parameters())


@pytest.mark.parametrize("norm", get_args(Norm))
@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_a_split_decoder_adds_functions_of_each_dimension(norm: Norm, n_layers: int) -> None:
    model = _model("split", norm=norm, n_layers=n_layers)
    z_nd, zero = _z(), torch.zeros(7, D)
    alone = [_logits(model, z_nd * torch.eye(D)[d]) - _logits(model, zero) for d in range(D)]
    torch.testing.assert_close(_logits(model, z_nd), _logits(model, zero) + sum(alone), rtol=1e-4, atol=1e-5)
    assert all(float(part.abs().max()) > 1e-3 for part in alone)
    # the function is not linear
    assert not torch.allclose(_logits(model, 2 * z_nd), 2 * _logits(model, z_nd) - _logits(model, zero), atol=1e-3)
    assert model.decoder.location.in_features == D * MIN_SPLIT_WIDTH + 2


@pytest.mark.parametrize("norm", get_args(Norm))
def test_training_keeps_the_dimensions_separate(make_cells: MakeCells, norm: Norm) -> None:
    model = _model("split", norm=norm, n_layers=2).train()
    cells = make_cells(40, G, n_batches=2)
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        batch = cells.batch(torch.arange(40))
        (-model.log_likelihood({"z": _z(40)}, batch)["rna"].mean()).backward()
        optimizer.step()
    model.eval()
    one = _z(1).expand(D, D).clone()
    moved = one + torch.eye(D)
    with torch.no_grad():
        h = [model.decoder.body(z, torch.eye(2)[[0] * D], None).view(D, D, -1) for z in (one, moved)]
    change = (h[0] - h[1]).abs().amax(-1)
    # a change of dimension d changes the units of network d and no others
    assert bool((change.diagonal() > 0).any())
    torch.testing.assert_close(change - torch.diag(change.diagonal()), torch.zeros(D, D))


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_a_skip_decoder_receives_z_in_every_layer_and_at_the_output(n_layers: int) -> None:
    model = _model("skip", n_layers=n_layers, condition_output=True, likelihood="zinb", n_readout=4)
    decoder = model.decoder
    widths = [linear.weight.shape[1] for linear in decoder.body.linears]  # type: ignore[union-attr]
    assert widths == [D + 2] + [H + D + 2] * (n_layers - 1)
    assert decoder.readout is not None
    assert {layer.in_features for layer in (decoder.location, decoder.readout, decoder.heads["gate"])} == {H + D + 2}  # type: ignore[union-attr]
    features = decoder.features(_z(), torch.zeros(7, 2))
    assert torch.equal(features[:, H : H + D], _z())
    # with the hidden units cut off, z still reaches the genes, and linearly
    with torch.no_grad():
        decoder.location.weight[:, :H] = 0.0
    change = _logits(model, _z() + 1.0) - _logits(model, _z())
    expected = decoder.location.weight[:, H : H + D].detach().sum(1).expand_as(change)
    torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_columns_of_the_condition_are_named(decoder: str) -> None:
    """Weights named by ``conditioned`` have the condition in their last columns.

    All other weights do not depend on it.
    """
    model = _model(decoder, n_layers=2, condition_output=decoder == "split", likelihood="zinb")
    names = set(model.decoder.conditioned())
    s_nc = torch.zeros(7, 2, requires_grad=True)
    with torch.no_grad():
        for name, value in model.decoder.named_parameters():
            if name in names:
                value[:, -2:] = 0.0
    f_nf = model.decoder.features(_z(), s_nc)
    out = model.decoder.location(f_nf).sum() + sum(head(f_nf).sum() for head in model.decoder.heads.values())
    (gradient,) = torch.autograd.grad(out, s_nc, allow_unused=True, materialize_grads=True)
    assert not bool(gradient.any())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_compiled_and_plain_likelihood_agree(
    make_cells: MakeCells, decoder: str, likelihood: LikelihoodName, training: bool
) -> None:
    model = _model(decoder, likelihood=likelihood, norm="batch", n_layers=2).train(training)
    cells = make_cells(40, G, n_batches=2)
    batch, z_nd = cells.batch(torch.arange(40)), _z(40)
    twin = _model(decoder, likelihood=likelihood, norm="batch", n_layers=2).train(training)
    ours = model.log_likelihood({"z": z_nd}, batch)["rna"]
    with rule.plain():
        plain = twin.log_likelihood({"z": z_nd}, batch)["rna"]
        distribution = twin.eval().likelihood({"z": z_nd}, batch.covariates, batch.log_library_n1)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-3)
    if not training:
        torch.testing.assert_close(plain, distribution.log_prob(batch.x_ng).sum(-1))
    ours.sum().backward()
    plain.sum().backward()
    for (name, p), q in zip(model.decoder.named_parameters(), twin.decoder.parameters(), strict=True):
        if p.requires_grad:
            assert p.grad is not None, name
            scale = 1e-3 * float(q.grad.abs().max()) + 1e-4  # type: ignore[union-attr]
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-2, atol=scale)


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_initial_decoder_returns_the_mean_profile(make_cells: MakeCells, decoder: str) -> None:
    cells, model = make_cells(100, G, n_batches=2), _model(decoder, norm="batch")
    start = model.decoder.location.bias.detach().clone()
    model.start_from(cells, torch.arange(100))
    profile = (gene_sums(cells) / cells.log_library_n1.exp().double().sum()).float()
    torch.testing.assert_close(model.decoder.location.bias.exp(), profile, rtol=1e-4, atol=1e-6)
    assert not torch.equal(start, model.decoder.location.bias)


def test_the_other_settings_do_not_change() -> None:
    config = ModelConfig(n_genes=G, n_latent=D, decoder="split")
    assert replace(config, decoder="mlp") == ModelConfig(n_genes=G, n_latent=D)
    with pytest.raises(ValueError, match="decoder='deep'"):
        replace(config, decoder="deep")  # type: ignore[arg-type]


class Waves(Body):
    """Features that are sines of z, shifted by the condition."""

    def __init__(self, config: ModelConfig, n_condition: int) -> None:
        super().__init__()
        self.n_features = config.n_hidden
        self.linear = torch.nn.Linear(config.n_latent + n_condition, config.n_hidden)

    def conditioned(self) -> Iterator[str]:
        yield "linear.weight"

    def forward(self, z_nd: Tensor, s_nc: Tensor | None, noise: Noise | None) -> Tensor:
        return torch.sin(self.linear(join(z_nd, s_nc)))


def test_a_registered_body_is_built_and_trained(make_cells: MakeCells) -> None:
    cells, rows = make_cells(60, G, n_batches=2), torch.arange(60)
    REGISTRY.register("waves", Waves)
    try:
        model = _model("waves", norm="batch")
    finally:
        REGISTRY.remove("waves")
    assert type(model.decoder.body) is Waves
    start = model.decoder.body.linear.weight.detach().clone()
    outcome = train(model, cells, rows[:50], rows[50:], TrainConfig(max_epochs=2, batch_size=25), seed=0)
    assert not torch.equal(start, model.decoder.body.linear.weight)
    assert bool(np.isfinite(outcome.history["elbo_train"]).all())
    # fine-tuning finds the weights of the condition by the names that the body yields
    assert new_weights(model, (1,))["decoder.body.linear.weight"].sum() == H


def test_an_unknown_body_is_an_error() -> None:
    config = ModelConfig(n_genes=G)
    object.__setattr__(config, "decoder", "deep")
    with pytest.raises(ValueError, match="decoder='deep' is not known; choose one of 'mlp', 'skip', 'linear', 'split'"):
        build(config, 0)
