"""Loops of a step as pointers, which :mod:`vxpress.core.kernels.step_rows` takes as arguments.

A compiled function that calls another one contains it, and is compiled with it again. So do the functions that call that
one, so a step of many levels takes several times as long to compile as its loops. What is called through a pointer is
compiled once, and only if a fit uses it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cfunc, types

from vxpress.core.kernels import count_rows, latent_rows, layer_rows, sparse_rows
from vxpress.core.kernels.products import product
from vxpress.core.kernels.team import CACHED
from vxpress.core.kernels.vector import assign, fill

NUMBER, FLAG, INT = types.float32, types.boolean, types.int64
ROW, ROWS, INTS, DRAWS = types.float32[::1], types.float32[:, ::1], types.int64[::1], types.uint16[:, ::1]
GENES = types.int32[::1]
OPTIONS: dict[str, Any] = {"error_model": "numpy", **CACHED}


def _layer_norm(u, gain, shift, eps, random, limit, factor, standard, out, inverse_sd, _mean, _variance):  # type: ignore[no-untyped-def]
    found = layer_rows.layer_forward(u, gain, shift, eps, random, limit, factor, standard, out)
    assign(inverse_sd[: found.size], found)


def _batch_norm(u, gain, shift, eps, random, limit, factor, standard, out, inverse_sd, mean, variance):  # type: ignore[no-untyped-def]
    found = layer_rows.batch_forward(u, gain, shift, eps, random, limit, factor, standard, out, mean, variance)
    assign(inverse_sd[: found.size], found)


def _layer_norm_back(d_out, out, standard, inverse_sd, gain, factor, d_u, d_gain, d_shift):  # type: ignore[no-untyped-def]
    layer_rows.layer_backward(d_out, out, standard, inverse_sd, gain, factor, d_u, d_gain, d_shift)


def _batch_norm_back(d_out, out, standard, inverse_sd, gain, factor, d_u, d_gain, d_shift):  # type: ignore[no-untyped-def]
    layer_rows.batch_backward(d_out, out, standard, inverse_sd[: gain.size], gain, factor, d_u, d_gain, d_shift)


def _encode(first, last, rows, indptr, indices, data, table, bias, out, free, cells, values):  # type: ignore[no-untyped-def]
    sparse_rows.encode_rows(first, last, rows, indptr, indices, data, table, bias, out, True, free, cells, values)  # noqa: FBT003


def _gather(first, last, ends, cells, values, d_u, d_table):  # type: ignore[no-untyped-def]
    for g in range(first, last):
        fill(d_table[g], np.float32(0.0))
        here = slice(ends[g], ends[g + 1])
        sparse_rows.gather(cells[here], values[here], d_u, d_table[g])


def _posterior(out, largest, smallest, eps, scale, z, kl):  # type: ignore[no-untyped-def]
    latent_rows.posterior(out, largest, smallest, eps, scale, z, kl)


def _posterior_gradient(d_z, d_kl, out, largest, smallest, eps, scale, d_out):  # type: ignore[no-untyped-def]
    latent_rows.posterior_gradient(d_z, d_kl, out, largest, smallest, eps, scale, d_out)


def _score(indices, data, log_library, theta, inverse, rising, slope, a, w, memory, d_theta, d_gate, value):  # type: ignore[no-untyped-def]
    value[0], _ = count_rows.score_row(
        indices, data, log_library, theta, inverse, rising, slope, a, w, True, memory, d_theta, d_gate  # noqa: FBT003
    )  # fmt: skip


@functools.cache
def pointers(*, by_cell: bool) -> tuple[Any, ...]:
    """Return whether norms are those of single cells, and pointers to the loops of a step, which are compiled if needed."""
    norm = [ROWS, ROW, ROW, NUMBER, DRAWS, INT, NUMBER, ROWS, ROWS, ROW, ROW, ROW]
    back = [ROWS, ROWS, ROWS, ROW, ROW, NUMBER, ROWS, ROW, ROW]
    encode = [INT, INT, INTS, INTS, GENES, ROW, ROWS, ROW, ROWS, INTS, GENES, ROW]
    memory = types.UniTuple(ROW, 8)
    score = [GENES, ROW, NUMBER, ROW, ROW, ROWS, ROWS, ROW, ROW, memory, ROW, ROW, types.float64[::1]]
    loops: list[tuple[Any, list[Any]]] = [
        (_encode, encode),
        (_gather, [INT, INT, INTS, GENES, ROW, ROWS, ROWS]),
        (_layer_norm if by_cell else _batch_norm, norm),
        (_layer_norm_back if by_cell else _batch_norm_back, back),
        (_posterior, [ROWS, NUMBER, NUMBER, ROWS, ROWS, ROWS, ROWS]),
        (_posterior_gradient, [ROWS, NUMBER, ROWS, NUMBER, NUMBER, ROWS, ROWS, ROWS]),
        (_score, score),
    ]
    # a tuple that does not begin with a pointer: of one that does, numba warns that it is experimental
    return by_cell, product, *(cfunc(types.void(*kinds), **OPTIONS)(loop) for loop, kinds in loops)
