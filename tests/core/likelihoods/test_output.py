"""What the built-in outputs make of a location."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vxpress.core.config import ModelConfig
from vxpress.core.likelihoods import LIKELIHOODS, Layers, Levels, NegativeBinomial, Shares
from vxpress.core.model import build


def _layers(n_outputs: int = 3) -> Layers:
    return Layers(3, nn.Linear(2, n_outputs), {})


def test_expected_counts_of_levels_are_the_counts() -> None:
    x, library = torch.tensor([[0.0, 1.0, 7.0], [3.0, 0.0, 400.0]]), torch.tensor([[8.0], [900.0]])
    levels = Levels().level(x, library)
    torch.testing.assert_close(Levels().expected_counts(_layers(), levels, library.log()), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("remainder", [False, True])
def test_shares_sum_to_one_with_the_remainder(remainder: bool) -> None:
    output, n_outputs = Shares(), Shares().width(3, remainder=remainder)
    log_rho, log_rest = output.locate(torch.randn(5, n_outputs, generator=torch.Generator().manual_seed(0)), 3)
    assert log_rho.shape == (5, 3)
    assert (log_rest is not None) == remainder
    total = log_rho.exp().sum(-1) + (0.0 if log_rest is None else log_rest.exp().sum(-1))
    torch.testing.assert_close(total, torch.ones(5))
    expected = output.expected_counts(_layers(n_outputs), log_rho.exp(), torch.full((5, 1), 100.0).log())
    torch.testing.assert_close(expected, 100.0 * log_rho.exp())


def test_levels_have_no_remainder() -> None:
    assert Levels().width(3, remainder=True) == 3


def test_a_class_that_replaces_a_built_in_one_is_used() -> None:
    class Mine(NegativeBinomial):
        pass

    built_in = LIKELIHOODS["nb"]
    LIKELIHOODS.register("nb", Mine, replace=True)
    try:
        decoder = build(ModelConfig(3, n_latent=2), 0).decoder
    finally:
        LIKELIHOODS.register("nb", built_in, replace=True)
    assert decoder.likelihood is Mine
    # not the compiled likelihood of the built-in class
    assert not decoder.compiled_likelihood(torch.zeros(1))
    assert build(ModelConfig(3, n_latent=2), 0).decoder.compiled_likelihood(torch.zeros(1))
