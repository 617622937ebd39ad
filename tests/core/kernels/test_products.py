"""Products as vector instructions, compared with numpy in float64 and with torch's bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from vxpress.core.kernels import products
from vxpress.core.kernels.products import PAIRED, padded, product

# types of an intrinsic are those of its definition, which has one argument more
address: Any = products.address


@njit
def _multiply(multiply, a, b, c, keep, paired):
    multiply(
        address(a), 4 * a.shape[1], 4, address(b), 4 * b.shape[1], address(c), 4 * c.shape[1],
        len(a), b.shape[1], a.shape[1], keep, paired,
    )  # fmt: skip


@njit
def _multiply_transposed(multiply, a, b, c):
    """Compute a^T b."""
    multiply(
        address(a), 4, 4 * a.shape[1], address(b), 4 * b.shape[1], address(c), 4 * c.shape[1],
        a.shape[1], b.shape[1], len(a), np.int64(0), np.bool_(0),
    )  # fmt: skip


SHAPES = [(1, 1, 16), (7, 3, 80), (8, 20, 48), (13, 128, 64), (33, 5, 144), (3, 0, 16)]


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_products_of_floats_are_those_of_numpy(m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(m + k + n)
    a, b, c = (rng.normal(size=shape).astype(np.float32) for shape in ((m, k), (k, n), (m, n)))
    expected, added = a.astype(float) @ b, c + a.astype(float) @ b
    out = np.full((m, n), np.nan, np.float32)
    _multiply(product, a, b, out, np.int64(0), np.bool_(0))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    _multiply(product, a, b, c, np.int64(1), np.bool_(0))
    np.testing.assert_allclose(c, added, rtol=1e-5, atol=1e-5)
    turned = np.full((m, n), np.nan, np.float32)
    _multiply_transposed(product, np.ascontiguousarray(a.T), b, turned)
    np.testing.assert_array_equal(turned, out)


@pytest.mark.skipif(not PAIRED, reason="this processor has no instruction for bfloat16")
@pytest.mark.parametrize(("m", "k", "n"), [(1, 2, 16), (13, 128, 64), (9, 6, 112)])
def test_products_of_pairs_are_those_of_bfloat16(m: int, k: int, n: int) -> None:
    generator = torch.Generator().manual_seed(k)
    a, b = (torch.randn(shape, generator=generator).bfloat16() for shape in ((m, k), (k, n)))
    words = a.view(torch.int16).numpy().view(np.int32)
    right = b.view(torch.int16).numpy().reshape(k // 2, 2, n).transpose(0, 2, 1)
    out = np.empty((m, n), np.float32)
    _multiply(product, words, np.ascontiguousarray(right).view(np.int32)[..., 0], out, np.int64(0), np.bool_(1))
    # products of two bfloat16 are exact in float32, only their sum is rounded
    np.testing.assert_allclose(out, (a.double() @ b.double()).numpy(), rtol=1e-5, atol=1e-5)


def test_columns_are_padded() -> None:
    assert [padded(n) for n in (0, 1, 16, 17)] == [0, 16, 16, 32]
