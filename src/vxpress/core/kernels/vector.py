"""exp and log of float32 that LLVM can vectorise, and bfloat16 stored in integers.

Numba calls the scalar exp and log of the C library, and its integer arithmetic widens to 64 bits; both prevent
vectorisation.  The polynomials here (coefficients of Moshier's Cephes, 1 to 2 units in the last place), with 32-bit
bit casts and shifts written as LLVM instructions, vectorise on AVX2, AVX-512 and NEON.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from vxpress.core.kernels.team import INNER

_I32, _F32, _I16 = ir.IntType(32), ir.FloatType(), ir.IntType(16)


@intrinsic
def bits32(typingctx, x):
    """Return the bits of a float32 as int32."""
    return types.int32(types.float32), lambda context, builder, signature, args: builder.bitcast(args[0], _I32)


@intrinsic
def _from_bits(typingctx, i):
    """Return the float32 with these bits."""
    return types.float32(types.int32), lambda context, builder, signature, args: builder.bitcast(args[0], _F32)


@intrinsic
def _exponent(typingctx, i):
    """Compute the exponent k such that x / 2^k is in [sqrt(1/2), sqrt(2)), from the bits of x > 0."""

    def generate(context, builder, signature, args):
        above = builder.sub(args[0], ir.Constant(_I32, 0x3F3504F3))
        return builder.ashr(above, ir.Constant(_I32, 23))

    return types.int32(types.int32), generate


@intrinsic
def _without_exponent(typingctx, i, k):
    """Compute the bits of x / 2^k from the bits of x."""

    def generate(context, builder, signature, args):
        return builder.sub(args[0], builder.shl(args[1], ir.Constant(_I32, 23)))

    return types.int32(types.int32, types.int32), generate


@intrinsic
def _power_of_two(typingctx, k):
    """Compute 2^k for a whole float32 k in [-126, 127]."""

    def generate(context, builder, signature, args):
        whole = builder.fptosi(args[0], _I32)
        biased = builder.add(whole, ir.Constant(_I32, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(_I32, 23)), _F32)

    return types.float32(types.float32), generate


@intrinsic
def from_bfloat16(typingctx, b):
    """Convert a bfloat16 stored in an int16 to float32."""

    def generate(context, builder, signature, args):
        return builder.bitcast(builder.shl(builder.zext(args[0], _I32), ir.Constant(_I32, 16)), _F32)

    return types.float32(types.int16), generate


@intrinsic
def to_bfloat16(typingctx, x):
    """Round a finite float32 to the nearest bfloat16 (ties to even), stored in an int16."""

    def generate(context, builder, signature, args):
        bits = builder.bitcast(args[0], _I32)
        odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
        rounded = builder.add(bits, builder.add(odd, ir.Constant(_I32, 0x7FFF)))
        return builder.trunc(builder.lshr(rounded, ir.Constant(_I32, 16)), _I16)

    return types.int16(types.float32), generate


@intrinsic
def pair_bfloat16(typingctx, low, high):
    """Round two finite float32 to bfloat16 and store them in one int32, the first in the lower half."""

    def rounded(builder, x):
        bits = builder.bitcast(x, _I32)
        odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
        return builder.add(bits, builder.add(odd, ir.Constant(_I32, 0x7FFF)))

    def generate(context, builder, signature, args):
        first = builder.lshr(rounded(builder, args[0]), ir.Constant(_I32, 16))
        second = builder.and_(rounded(builder, args[1]), ir.Constant(_I32, 0xFFFF0000))
        return builder.or_(first, second)

    return types.int32(types.float32, types.float32), generate


_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_LARGEST = np.float32(88.0)
_SMALLEST = np.float32(-87.0)
_E5, _E4, _E3, _E2, _E1, _E0 = (
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)
_L8, _L7, _L6, _L5, _L4, _L3, _L2, _L1, _L0 = (
    np.float32(c)
    for c in (
        7.0376836292e-2,
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    )
)
_ONE, _HALF = np.float32(1.0), np.float32(0.5)
# only contraction to fused multiply-add is allowed: reordering would lose digits
_EXACT = {"contract"}


@njit(fastmath=_EXACT, error_model="numpy", forceinline=True)
def exp32(x):
    """Compute exp(x), clipped to exp(-87) = 1.6e-38 and exp(88) = 1.7e38; NaN stays NaN."""
    x = _LARGEST if x > _LARGEST else x
    x = _SMALLEST if x < _SMALLEST else x
    k = np.floor(x * _LOG2_E + _HALF)
    r = x - k * _LN2_HIGH - k * _LN2_LOW
    p = ((((_E5 * r + _E4) * r + _E3) * r + _E2) * r + _E1) * r + _E0
    return (p * (r * r) + r + _ONE) * _power_of_two(k)


@njit(fastmath=_EXACT, error_model="numpy", forceinline=True)
def log1p32(t):
    """Compute log(1 + t) for 0 <= t < 3e38; below sqrt(2) - 1 no digit of t is lost."""
    bits = bits32(_ONE + t)
    k = _exponent(bits)
    f = t if k == 0 else _from_bits(_without_exponent(bits, k)) - _ONE
    return _log_polynomial(f, np.float32(k))


@njit(fastmath=_EXACT, error_model="numpy", forceinline=True)
def _log_polynomial(f, k):
    """Compute k log 2 + log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1)."""
    z = f * f
    p = (((((((_L8 * f + _L7) * f + _L6) * f + _L5) * f + _L4) * f + _L3) * f + _L2) * f + _L1) * f + _L0
    y = f * z * p + k * _LN2_LOW - _HALF * z
    return f + y + k * _LN2_HIGH


@njit(error_model="numpy")
def fill(out, value):
    """Set all entries in a loop: a slice assignment would also compile error messages, which takes seconds."""
    for i in range(out.size):
        out[i] = value


@njit(error_model="numpy")
def assign(out, values):
    """Copy values elementwise, without checks."""
    for i in range(out.size):
        out[i] = values[i]


@njit(**INNER)
def narrow(row, out):
    """Round a row to bfloat16."""
    for j in range(row.size):
        out[j] = to_bfloat16(row[j])


@njit(**INNER)
def add_to(total, row):
    """Add a row to ``total``, of the same size."""
    for j in range(total.size):
        total[j] += row[j]


@njit(**INNER)
def add_scaled(total, factor, row):
    """Add ``factor`` times a row to the first elements of ``total``."""
    for j in range(row.size):
        total[j] += factor * row[j]
