from __future__ import annotations

import pytest
import torch

from vxpress.core.kernels import dense_products
from vxpress.core.kernels.dense_products import times_weights
from vxpress.core.threads import OneThread, decided


@pytest.mark.parametrize("n_out", [16, 31, 48, 203])
@pytest.mark.parametrize("n", [1, 64, 301])
def test_the_product_is_that_in_double_precision(n: int, n_out: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, weight = torch.randn(n, 37, generator=generator), torch.randn(n_out, 37, generator=generator)
    found = []
    for n_threads in (1, 3):
        out = torch.full((n + 1, n_out), torch.nan)
        with OneThread(), decided(n_threads):
            # rows that are not adjacent, as of a part of a matrix
            times_weights(torch.stack((a, a), 1)[:, 0], weight, out[:n])
        found.append(out)
    torch.testing.assert_close(found[0][:n], (a.double() @ weight.double().t()).float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(found[0][:n], found[1][:n])
    assert bool(found[0][n].isnan().all())


def test_only_products_that_gain_are_taken() -> None:
    weight = torch.empty(200, 8)
    assert dense_products.faster(torch.empty(256, 8), weight)
    assert not dense_products.faster(torch.empty(255, 8), weight)
    assert not dense_products.faster(torch.empty(256, 8, dtype=torch.float64), weight.double())
    assert not dense_products.faster(torch.empty(256, 8), torch.empty(15, 8))
