"""Formulas of counts that are evaluated only where the count is not zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Formula = Callable[..., Tensor]


def where_counted(at_zero: Tensor, value: Tensor, formula: Formula, *parameters: Tensor) -> Tensor:
    """Return ``at_zero`` where x = 0, and ``formula(x, *parameters)`` where x > 0."""
    form = gathered if value.device.type == "cpu" else selected
    return form(at_zero, value, formula, *parameters)


def gathered(at_zero: Tensor, value: Tensor, formula: Formula, *parameters: Tensor) -> Tensor:
    """Evaluate the formula at the non-zeros only: gamma functions are expensive and most counts are zero."""
    # numpy's, because that of torch imports its compiler
    shape = np.broadcast_shapes(at_zero.shape, value.shape)
    at = torch.nonzero(value.expand(shape).reshape(-1), as_tuple=True)[0]
    x, *at_x = (tensor.expand(shape).reshape(-1)[at] for tensor in (value, *parameters))
    return at_zero.expand(shape).reshape(-1).index_put((at,), formula(x.to(at_zero.dtype), *at_x)).view(shape)


def selected(at_zero: Tensor, value: Tensor, formula: Formula, *parameters: Tensor) -> Tensor:
    """Evaluate the formula everywhere: shapes do not depend on the counts, so there is no wait for a GPU.

    Zeros are replaced by ones first, where formula and gradient are finite: an infinite gradient would pass
    ``torch.where`` as 0 * inf.
    """
    counted = value != 0
    x = torch.where(counted, value, 1.0).to(at_zero.dtype)
    return torch.where(counted, formula(x, *parameters), at_zero)
