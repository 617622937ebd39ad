"""Choice between implementations: a pure function of device, shapes, density and settings.

Nothing here measures time, so a repeated run makes the same choices and gives the same bits.  The limits are based on
the timings of ``benchmarks/kernels.py``.

Three implementations give the same numbers up to rounding: compiled loops, torch operations with a gradient in closed form, and the
*plain* one, by autograd. A call for few counts uses nothing that is compiled, because compilation, once per installation,
would take longer than the call.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

# below these sizes, the conversion to bfloat16 costs as much as the product saves
MIN_BFLOAT16_ROWS, MIN_BFLOAT16_WIDTH, MIN_BFLOAT16_GENES = 32, 64, 256
# counts below this are read from tables, provided that all tables cost less than this share of the minibatch
TABLE_COUNTS, TABLE_SHARE = 16, 0.25
# multiplications of a decoding from which on it is compiled: about a second of other code
MIN_DECODED_TERMS = 2**34
# larger counts are thinned by an algorithm of numpy that takes the same time for any count
LARGE_COUNT = 256
COMPILED_LIKELIHOODS = ("nb", "zinb")
# cells x genes up to which a call is small
SMALL = 1 << 20
# least compute capability of GPUs that multiply bfloat16 and TensorFloat32 natively
TENSOR_CORES = (8, 0)

_plain = False


@dataclass
class _Call:
    """The largest product of cells and genes of a call so far; 0 before it has read counts."""

    size: int = 0


_call: ContextVar[_Call | None] = ContextVar("call", default=None)


@contextmanager
def call() -> Iterator[None]:
    """Within this block, the size of the counts that :func:`reads` reports decides whether loops are compiled."""
    token = _call.set(_Call())
    try:
        yield
    finally:
        _call.reset(token)


def reads(n_cells: int, n_genes: int) -> None:
    """Report that the current call reads such counts."""
    current = _call.get()
    if current is not None:
        current.size = max(current.size, n_cells * n_genes)


def size() -> int:
    """Return the largest product of cells and genes that the current call has read; 0 if it has read no counts."""
    current = _call.get()
    return 0 if current is None else current.size


def small() -> bool:
    """Whether the current call has read counts, and so few that nothing is compiled for it."""
    return 0 < size() <= SMALL


def _compiled(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether loops may be compiled: for float32 on a CPU."""
    return not _plain and not small() and device.type == "cpu" and dtype == torch.float32


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
    return _compiled(device, dtype) and distribution in COMPILED_LIKELIHOODS and dispersion != "gene-cell"


def dense_likelihood(distribution: str, device: torch.device) -> bool:
    """Whether NB and ZINB use their closed-form gradient in torch: on any device except a CPU, and in small calls."""
    return not _plain and (device.type != "cpu" or small()) and distribution in COMPILED_LIKELIHOODS


def compiled_shares(device: torch.device, dtype: torch.dtype, n_terms: int) -> bool:
    """Whether softmax, product and sum of decoded shares run in one compiled pass: in float32 on a CPU, for large products.

    ``n_terms`` is the number of multiplications. Below the limit, compiling takes longer than it saves.
    """
    return not _plain and device.type == "cpu" and dtype == torch.float32 and n_terms >= MIN_DECODED_TERMS


def sparse_input(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the first layer of the encoder reads CSR rows, which is faster than a dense product at any density."""
    return _compiled(device, dtype)


def compiled_hidden(device: torch.device, dtype: torch.dtype, *, has_norm: bool, training: bool) -> bool:
    """Whether norm, ReLU and dropout of a hidden layer run in one compiled pass: with batch or layer norm, in training."""
    return _compiled(device, dtype) and has_norm and training


def compiled_optimizer(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the optimizer's pass over the weights is compiled."""
    return _compiled(device, dtype)


def compiled_thinning() -> bool:
    """Whether counts on a CPU are thinned in a compiled loop."""
    return not small()


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
