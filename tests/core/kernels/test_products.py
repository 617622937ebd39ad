"""Products as vector instructions, compared with numpy in float64 and with torch's bfloat16."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from vxpress.core.kernels import products
from vxpress.core.kernels.products import PAIRED, padded, product

HERE = Path(__file__).resolve()
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


@njit
def _multiply_inside(multiply, a, b, c):
    """Compute a b in the first rows and columns of c."""
    multiply(
        address(a), 4 * a.shape[1], 4, address(b), 4 * b.shape[1], address(c), 4 * c.shape[1],
        len(a), b.shape[1], a.shape[1], np.int64(0), np.bool_(0),
    )  # fmt: skip


@pytest.mark.parametrize("n", [16, 32, 48, 64, 80, 128])
@pytest.mark.parametrize("m", [1, 4, 11])
def test_products_write_nothing_beyond_their_rows_and_columns(m: int, n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((m, 6), (6, n)))
    out = np.full((m + 2, n + 32), 7.0, np.float32)
    _multiply_inside(product, a, b, out)
    np.testing.assert_allclose(out[:m, :n], a.astype(float) @ b, rtol=1e-5, atol=1e-5)
    assert (out[m:] == 7).all()
    assert (out[:, n:] == 7).all()


# processors without AVX-512, as numba's target: name, instructions and floats per vector
TARGETS = {"avx2": ("haswell", "+avx2,+fma", 8), "sse": ("generic", "", 4)}


def _on(target: str, *command: str) -> subprocess.CompletedProcess[str]:
    name, features, _ = TARGETS[target]
    environment = os.environ | {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=HERE.parents[2], check=False, capture_output=True, text=True
    )


@pytest.mark.skipif(platform.machine().lower() not in {"x86_64", "amd64"}, reason="targets of another processor")
@pytest.mark.parametrize("target", TARGETS)
def test_products_on_processors_with_shorter_vectors(target: str) -> None:
    code = "from vxpress.core.kernels import products; print(products.WIDTH, products.PAIRED)"
    assert _on(target, "-c", code).stdout.split() == [str(TARGETS[target][2]), "False"]
    done = _on(target, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE), "-k", "numpy or beyond")
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine().lower() not in {"x86_64", "amd64"}, reason="targets of another processor")
def test_fits_on_processors_with_shorter_vectors() -> None:
    tests = HERE.parents[1] / "training" / "test_closed_form.py"
    done = _on("avx2", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), "-k", "zinb or covariates")
    assert done.returncode == 0, done.stdout[-2000:]


def test_columns_are_padded() -> None:
    assert [padded(n) for n in (0, 1, 16, 17)] == [0, 16, 16, 32]
