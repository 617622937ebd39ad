r"""The posterior of z given several modalities: a product of experts (Hinton 2002; Wu & Goodman 2018).

Each modality has an encoder that returns a normal distribution of z, its expert. The posterior is proportional to the
product of the experts of the modalities that a cell has and a standard normal distribution:

.. math::

    q(z | x) \propto \mathcal{N}(z; 0, I) \prod_m q_m(z | x_m).

A modality that a cell lacks has no factor, so the posterior is wider without it, and a cell with none has the standard
normal distribution.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vxpress.core.normal import DiagonalNormal


def product(experts: Iterable[tuple[DiagonalNormal, Tensor | None]]) -> DiagonalNormal:
    """Multiply normal distributions of cells (n, d), each with the cells it counts for, bool (n,), and a standard one.

    None in place of the cells stands for all.
    """
    precision_nd: Tensor | float = 1.0
    weighted_nd: Tensor | float = 0.0
    for q, observed_n in experts:
        own_nd = q.scale.square().reciprocal()
        if observed_n is not None:
            own_nd = torch.where(observed_n[:, None], own_nd, 0.0)
        precision_nd = precision_nd + own_nd
        weighted_nd = weighted_nd + own_nd * q.loc
    assert isinstance(precision_nd, Tensor)  # noqa: S101 - RNA is always one of them
    variance_nd = precision_nd.reciprocal()
    return DiagonalNormal(weighted_nd * variance_nd, variance_nd.sqrt())
