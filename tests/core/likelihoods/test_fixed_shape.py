"""The form of a likelihood with fixed shapes, as used on GPUs, compared with the one that gathers non-zeros."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

from vxpress.core.likelihoods import NegativeBinomial, Poisson, ZeroInflated, counted


def _hostile(dtype: torch.dtype, *, zeros: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return all combinations of extreme and intermediate counts, log means and log thetas."""
    counts = [0.0, 1.0, 2.0, 17.0, 1e3, 1e6] if zeros else [1.0, 2.0, 17.0, 1e3, 1e6]
    means, thetas = torch.logspace(-8, 5, 9, dtype=dtype), torch.logspace(-3, 6, 10, dtype=dtype)
    grid = torch.cartesian_prod(torch.tensor(counts, dtype=dtype), means.log(), thetas.log())
    x, log_mean, log_theta = grid.t()
    return x[None], log_mean[None].contiguous(), log_theta[None].contiguous()


def _evaluate(
    monkeypatch: pytest.MonkeyPatch,
    form: Callable[..., Tensor],
    distribution: Callable[..., Distribution],
    x: Tensor,
    parameters: list[Tensor],
) -> list[Tensor]:
    """Compute values and gradients of a likelihood with one of the two forms."""
    monkeypatch.setattr(counted, "gathered", form)
    leaves = [parameter.clone().requires_grad_() for parameter in parameters]
    value = distribution(*leaves).log_prob(x)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


def _zinb(log_mean: Tensor, log_theta: Tensor, gate: Tensor) -> ZeroInflated:
    return ZeroInflated(NegativeBinomial(log_mean, log_theta), gate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["nb", "zinb", "poisson"])
def test_both_forms_give_the_same_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, name: str
) -> None:
    x, log_mean, log_theta = _hostile(dtype, zeros=True)
    distributions: dict[str, tuple[Callable[..., Distribution], list[Tensor]]] = {
        "nb": (NegativeBinomial, [log_mean, log_theta]),
        "zinb": (_zinb, [log_mean, log_theta, torch.linspace(-30, 30, x.shape[1], dtype=dtype)[None]]),
        "poisson": (Poisson, [log_mean]),
    }
    distribution, parameters = distributions[name]
    gathered = _evaluate(monkeypatch, counted.gathered, distribution, x, parameters)
    selected = _evaluate(monkeypatch, counted.selected, distribution, x, parameters)
    for mine, reference in zip(selected, gathered, strict=True):
        assert bool(torch.isfinite(mine).all())
        # the operations are the same, but a CPU may round differently at the end of a vector
        torch.testing.assert_close(mine, reference, rtol=100 * torch.finfo(dtype).eps, atol=1e-5)


def test_a_dispersion_per_gene_is_shared_by_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.poisson(rng.gamma(0.2, 5.0, (50, 8)))).float()
    parameters = [torch.from_numpy(rng.normal(size=(50, 8))).float(), torch.from_numpy(rng.normal(size=(1, 8))).float()]
    forms = counted.gathered, counted.selected
    gathered, selected = (_evaluate(monkeypatch, form, NegativeBinomial, x, parameters) for form in forms)
    for mine, reference in zip(selected, gathered, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


def test_fractional_counts_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    x, zero = torch.tensor([[0.0, 0.25, 1.5]], dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    forms = counted.gathered, counted.selected
    gathered, selected = (_evaluate(monkeypatch, form, NegativeBinomial, x, [zero, zero]) for form in forms)
    torch.testing.assert_close(selected[0], gathered[0])
