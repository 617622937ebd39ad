"""The product of :mod:`vxpress.core.kernels.products` for tensors, called without a compiled function around it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vxpress.core.kernels.products import COLUMNS, padded, product
from vxpress.core.threads import share

# rows from which on the product saves more than the copy of the weights costs, and of a part that one thread computes
MIN_ROWS, PART = 256, 64


def faster(a: Tensor, weight: Tensor) -> bool:
    """Whether :func:`times_weights` is faster than torch, which depends on shapes and types alone."""
    return a.dtype == weight.dtype == torch.float32 and len(a) >= MIN_ROWS and weight.shape[0] >= COLUMNS


def times_weights(a: Tensor, weight: Tensor, out: Tensor) -> None:
    """Compute ``a @ weight.t()`` into ``out``, in float32, in parts of rows that several threads compute."""
    n, n_terms, n_out = len(a), a.shape[1], weight.shape[0]
    a, columns = a.contiguous(), F.pad(weight.detach().t(), (0, padded(n_out) - n_out)).contiguous()
    step, whole = 4 * columns.shape[1], n_out // COLUMNS * COLUMNS
    last = torch.empty(n, COLUMNS)

    def multiply(i: int) -> None:
        first, rows = i * PART, min(PART, n - i * PART)
        left, right = (a.data_ptr() + 4 * n_terms * first, 4 * n_terms, 4), columns.data_ptr()
        place = out.data_ptr() + 4 * n_out * first
        product.ctypes(*left, right, step, place, 4 * n_out, rows, whole, n_terms, 0, False)  # noqa: FBT003 - a pointer
        if whole < n_out:
            place = last.data_ptr() + 4 * COLUMNS * first
            product.ctypes(*left, right + 4 * whole, step, place, 4 * COLUMNS, rows, COLUMNS, n_terms, 0, False)  # noqa: FBT003
            out[first : first + rows, whole:] = last[first : first + rows, : n_out - whole]

    share(multiply, -(-n // PART))
