from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit

from vxpress.core.kernels.vector import exp32, from_bfloat16, log1p32, to_bfloat16


@njit(error_model="numpy")
def _exp(x: np.ndarray, out: np.ndarray) -> None:
    for i in range(x.size):
        out[i] = exp32(x[i])


@njit(error_model="numpy")
def _log1p(x: np.ndarray, out: np.ndarray) -> None:
    for i in range(x.size):
        out[i] = log1p32(x[i])


@njit(error_model="numpy")
def _round_trip(x: np.ndarray, bits: np.ndarray, out: np.ndarray) -> None:
    for i in range(x.size):
        bits[i] = to_bfloat16(x[i])  # type: ignore[call-arg]
        out[i] = from_bfloat16(bits[i])  # type: ignore[call-arg]


def test_exp_is_accurate_to_the_last_digits() -> None:
    x = np.linspace(-87, 88, 100_001, dtype=np.float32)
    out = np.empty_like(x)
    _exp(x, out)
    np.testing.assert_allclose(out, np.exp(x.astype(np.float64)), rtol=2e-7)


def test_exp_beyond_its_range_stays_finite_and_keeps_nan() -> None:
    x = np.array([-np.inf, -1e9, 1e9, np.inf, np.nan], np.float32)
    out = np.empty_like(x)
    _exp(x, out)
    np.testing.assert_allclose(out[:4], np.exp([-87.0, -87.0, 88.0, 88.0]), rtol=1e-6)
    assert np.isnan(out[4])


def test_log1p_is_accurate_near_zero_and_far_from_it() -> None:
    x = np.concatenate((np.geomspace(1e-30, 1e37, 100_000), np.linspace(0, 4, 100_000))).astype(np.float32)
    out = np.empty_like(x)
    _log1p(x, out)
    np.testing.assert_allclose(out, np.log1p(x.astype(np.float64)), rtol=3e-7)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_bfloat16_rounds_as_torch_does(scale: float) -> None:
    x = (np.random.default_rng(0).normal(size=10_001) * scale).astype(np.float32)
    bits, out = np.empty(len(x), np.int16), np.empty_like(x)
    _round_trip(x, bits, out)
    expected = torch.from_numpy(x).bfloat16()
    np.testing.assert_array_equal(bits, expected.view(torch.int16).numpy())
    np.testing.assert_array_equal(out, expected.float().numpy())
