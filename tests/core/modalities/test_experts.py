"""The product of experts against the formula of two normal densities, and cells that lack a modality."""

from __future__ import annotations

import torch
from torch.distributions import Normal

from vxpress.core.modalities import product
from vxpress.core.normal import DiagonalNormal

GENERATOR = torch.Generator().manual_seed(0)
FIRST, SECOND = (
    DiagonalNormal(torch.randn(3, 2, generator=GENERATOR), torch.rand(3, 2, generator=GENERATOR) + 0.5)
    for _ in range(2)
)


def test_the_log_density_of_the_product_is_the_sum_of_those_of_its_factors_up_to_a_constant() -> None:
    found = product([(FIRST, None), (SECOND, None)])
    a, b = torch.randn(2, 3, 2, generator=GENERATOR)
    factors = [Normal(0.0, 1.0), *(Normal(q.loc, q.scale) for q in (FIRST, SECOND))]
    expected = sum(factor.log_prob(a) - factor.log_prob(b) for factor in factors)
    density = Normal(found.loc, found.scale)
    torch.testing.assert_close(density.log_prob(a) - density.log_prob(b), expected)


def test_a_modality_that_a_cell_lacks_has_no_factor() -> None:
    has_n = torch.tensor([True, False, True])
    found, without, both = (
        product(parts)
        for parts in (
            [(FIRST, None), (SECOND, has_n)],
            [(FIRST, None)],
            [(FIRST, None), (SECOND, None)],
        )
    )
    for part in ("loc", "scale"):
        expected = torch.where(has_n[:, None], getattr(both, part), getattr(without, part))
        torch.testing.assert_close(getattr(found, part), expected)


def test_a_cell_without_any_modality_is_at_the_standard_normal_distribution() -> None:
    none_n = torch.zeros(3, dtype=torch.bool)
    found = product([(FIRST, none_n), (SECOND, none_n)])
    torch.testing.assert_close(found.loc, torch.zeros(3, 2))
    torch.testing.assert_close(found.scale, torch.ones(3, 2))
