"""Choice between implementations: a pure function of device, shapes, density and settings.

Nothing here measures time, so a repeated run makes the same choices and gives the same bits.  The limits are based on
the timings of ``benchmarks/kernels.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# below these sizes, the conversion to bfloat16 costs as much as the product saves
MIN_BFLOAT16_ROWS, MIN_BFLOAT16_WIDTH, MIN_BFLOAT16_GENES = 32, 64, 256
# counts below this are read from tables, provided that all tables cost less than this share of the minibatch
TABLE_COUNTS, TABLE_SHARE = 16, 0.25
# multiplications of a decoding from which on it is compiled: about a second of other code
MIN_DECODED_TERMS = 2**34
COMPILED_LIKELIHOODS = ("nb", "zinb")
# least compute capability of GPUs that multiply bfloat16 and TensorFloat32 natively
TENSOR_CORES = (8, 0)

_plain = False


@contextmanager
def plain() -> Iterator[None]:
    """Within this block, use the plain implementations: the reference of tests and benchmarks."""
    global _plain  # noqa: PLW0603 - one switch per process, not meant for users
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def compiled_likelihood(distribution: str, dispersion: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the compiled loops compute the likelihood: NB and ZINB in float32 on a CPU, without a theta per cell."""
    return (
        not _plain
        and device.type == "cpu"
        and dtype == torch.float32
        and distribution in COMPILED_LIKELIHOODS
        and dispersion != "gene-cell"
    )


def dense_likelihood(distribution: str, device: torch.device) -> bool:
    """Whether NB and ZINB use their closed-form gradient in torch: on any device except a CPU."""
    return not _plain and device.type != "cpu" and distribution in COMPILED_LIKELIHOODS


def compiled_shares(device: torch.device, dtype: torch.dtype, n_terms: int) -> bool:
    """Whether softmax, product and sum of decoded shares run in one compiled pass: in float32 on a CPU, for large products.

    ``n_terms`` is the number of multiplications. Below the limit, compiling takes longer than it saves.
    """
    return not _plain and device.type == "cpu" and dtype == torch.float32 and n_terms >= MIN_DECODED_TERMS


def sparse_input(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the first layer of the encoder reads CSR rows, which is faster than a dense product at any density."""
    return not _plain and device.type == "cpu" and dtype == torch.float32


def compiled_hidden(device: torch.device, dtype: torch.dtype, *, has_norm: bool, training: bool) -> bool:
    """Whether norm, ReLU and dropout of a hidden layer run in one compiled pass: with batch or layer norm, in training."""
    return not _plain and device.type == "cpu" and dtype == torch.float32 and has_norm and training


def compiled_optimizer(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the optimizer's pass over the weights is compiled."""
    return not _plain and device.type == "cpu" and dtype == torch.float32


def product_dtype(n: int, width: int, n_genes: int, *, training: bool) -> torch.dtype:
    """Choose the precision of the products of the decoder's output layer on a CPU.

    It is bfloat16 if the CPU multiplies it natively, the product is large, and the result is a gradient step, whose
    noise is far larger. It is float32 for all numbers that are reported.
    """
    large = n >= MIN_BFLOAT16_ROWS and width >= MIN_BFLOAT16_WIDTH and n_genes >= MIN_BFLOAT16_GENES
    return torch.bfloat16 if training and large and native_bfloat16() else torch.float32


def table_length(n: int, n_theta_rows: int) -> int:
    """Return how many small counts, from 0, are read from tables."""
    return int(min(TABLE_COUNTS, max(2.0, TABLE_SHARE * n / n_theta_rows)))


@functools.cache
def native_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 products."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def captured_step(device: torch.device) -> bool:
    """Whether a training step is captured and replayed as a CUDA graph, which launches all its kernels at once."""
    return not _plain and device.type == "cuda"


def tensor_float32(capability: tuple[int, int], dtype: torch.dtype, *, training: bool) -> bool:
    """Whether float32 products on a GPU may round to TensorFloat32: only in gradient steps, if the GPU supports it."""
    return not _plain and training and dtype == torch.float32 and capability >= TENSOR_CORES


def output_dtype(capability: tuple[int, int], dtype: torch.dtype, *, training: bool) -> torch.dtype:
    """Choose the precision of the products of the decoder's output layer on a GPU.

    For CPUs see :func:`product_dtype`.
    """
    reduced = not _plain and training and dtype == torch.float32 and capability >= TENSOR_CORES
    return torch.bfloat16 if reduced else dtype
