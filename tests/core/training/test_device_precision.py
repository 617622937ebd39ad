"""Reduced precision on a device: only in gradient steps."""

from __future__ import annotations

from dataclasses import replace

import torch

from vxpress.core import rule
from vxpress.core.config import ModelConfig
from vxpress.core.model import build
from vxpress.core.training.device import rounded_outputs, tensor_float32

CPU = torch.device("cpu")
CONFIG = ModelConfig(n_genes=20, n_latent=3, n_hidden=16)


def test_precision_is_lowered_only_in_training_and_on_hardware_that_supports_it() -> None:
    for capability in ((7, 5), (8, 0), (9, 0), (12, 0)):
        native = capability >= (8, 0)
        assert rule.tensor_float32(capability, torch.float32, training=True) == native
        expected = torch.bfloat16 if native else torch.float32
        assert rule.output_dtype(capability, torch.float32, training=True) == expected
        for dtype, mode in ((torch.float32, False), (torch.float64, True), (torch.float64, False)):
            assert not rule.tensor_float32(capability, dtype, training=mode)
            assert rule.output_dtype(capability, dtype, training=mode) == dtype
        with rule.plain():
            assert not rule.tensor_float32(capability, torch.float32, training=True)
            assert rule.output_dtype(capability, torch.float32, training=True) == torch.float32


def test_only_a_gpu_captures_steps() -> None:
    assert not rule.captured_step(CPU)
    assert rule.captured_step(torch.device("cuda"))
    with rule.plain():
        assert not rule.captured_step(torch.device("cuda:1"))


def test_the_flag_of_torch_is_restored() -> None:
    flags = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(flags, "fp32_precision") else "allow_tf32"
    before = getattr(flags, name)
    with tensor_float32():
        assert getattr(flags, name) in {"tf32", True}
    assert getattr(flags, name) == before


def test_output_layers_are_rounded_only_within_the_block() -> None:
    decoder = build(replace(CONFIG, likelihood="zinb"), 0).decoder
    f_nf = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    layers = [decoder.location, decoder.heads["gate"]]
    exact = [layer(f_nf) for layer in layers]
    with rounded_outputs(decoder, torch.bfloat16):
        rounded = [layer(f_nf) for layer in layers]
    for layer, value, reference in zip(layers, rounded, exact, strict=True):
        assert value.dtype == torch.float32
        assert not torch.equal(value, reference)
        torch.testing.assert_close(value, reference, rtol=0.02, atol=0.02)
        assert torch.equal(layer(f_nf), reference)
        gradients = [torch.autograd.grad(v.square().sum(), (f_nf, *layer.parameters())) for v in (value, reference)]
        for mine, theirs in zip(*gradients, strict=True):
            assert mine.dtype == torch.float32
            assert float((mine - theirs).norm() / theirs.norm()) < 0.02
