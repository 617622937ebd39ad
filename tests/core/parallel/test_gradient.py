"""The gradient of a minibatch that is divided among processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vxpress.core.parallel import GradientSum, Requests, World
from vxpress.core.parallel.gradient import n_extra


class Recorded(World):
    """A world of two in which the other process sends a known message."""

    rank, size = 0, 2

    def __init__(self, of_other: Tensor) -> None:
        self.of_other = of_other

    def sum_(self, values: Tensor) -> Tensor:
        self.sent = values.clone()
        return values.add_(self.of_other)


def _message(of_gradient: Tensor, running: Tensor) -> Tensor:
    return torch.cat((of_gradient, torch.zeros(n_extra([running]))))


def _as_sent(gradient: Tensor, running: Tensor, loss: float, n_cells: int, requests: Requests = Requests()) -> Tensor:
    """What the second process sends of its part of 5 cells."""
    world, message = Recorded(torch.zeros(())), _message(gradient, running)
    whole = GradientSum(world, message, [running])
    whole.requests, whole.n_cells = requests, 5
    whole(torch.tensor(loss), n_cells)
    return world.sent


@pytest.mark.parametrize("n_here", [1, 2, 4])
def test_the_parts_of_a_minibatch_give_its_gradient_loss_and_statistics(n_here: int) -> None:
    value_nd, weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.ones(3, requires_grad=True)

    def loss_of(x: Tensor) -> Tensor:
        return (x @ weight).square().mean()

    (expected,) = torch.autograd.grad(loss_of(value_nd), weight)
    here, there = value_nd[:n_here], value_nd[n_here:]
    of_there = _as_sent(
        torch.autograd.grad(loss_of(there), weight)[0], there.mean(0), float(loss_of(there).detach()), len(there)
    )
    running = here.mean(0)
    message = _message(torch.autograd.grad(loss_of(here), weight)[0], running)
    whole = GradientSum(Recorded(of_there), message, [running])
    whole.n_cells = 5
    loss = whole(loss_of(here).detach(), n_here)
    torch.testing.assert_close(message[:3], expected)
    torch.testing.assert_close(loss, loss_of(value_nd).detach())
    # the running statistics themselves are changed, not copies
    torch.testing.assert_close(running, value_nd.mean(0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_part_that_is_not_finite_makes_the_whole_not_finite(bad: float) -> None:
    running = torch.zeros(2)
    of_there = _as_sent(torch.zeros(3), running.clone(), bad, 2)
    whole = GradientSum(Recorded(of_there), _message(torch.zeros(3), running), [running])
    whole.n_cells = 5
    assert not torch.isfinite(whole(torch.tensor(1.0), 3))


def test_a_request_of_any_process_reaches_all_of_them_once() -> None:
    running = torch.zeros(1)
    of_there = _as_sent(torch.zeros(3), running.clone(), 0.0, 2, Requests(save=True))
    world = Recorded(of_there)
    whole = GradientSum(world, _message(torch.zeros(3), running), [running])
    whole.n_cells = 5
    whole.requests = Requests(stop=True)
    whole(torch.tensor(0.0), 3)
    assert whole.requested == Requests(stop=True, save=True)
    # a second exchange of the same step, and then the next step
    world.of_other = _as_sent(torch.zeros(3), running.clone(), 0.0, 2)
    whole(torch.tensor(0.0), 3)
    assert whole.requested == Requests(stop=True, save=True)
    whole.requested = Requests()
    whole(torch.tensor(0.0), 3)
    assert whole.requested == Requests()


def test_a_loss_that_is_no_mean_over_cells_gets_the_mean_of_the_whole_minibatch() -> None:
    value, scale = torch.arange(1.0, 6.0), torch.tensor(2.0, requires_grad=True)

    def loss_of(mean: Tensor) -> Tensor:
        return (mean - 3.0).abs() ** 1.5

    (expected,) = torch.autograd.grad(loss_of((scale * value).mean()), scale)
    parts = value[:2], value[2:]
    sums = [(2.0 * part).mean() * len(part) / 5 for part in parts]
    gradients = []
    for part, of_other in zip(parts, reversed(sums), strict=True):
        whole = GradientSum(Recorded(of_other), torch.zeros(n_extra([])), [])
        whole.n_cells = 5
        mean = whole.mean((scale * part).mean(), len(part))
        assert float(mean.detach()) == pytest.approx(float(2.0 * value.mean()))
        gradients.append(torch.autograd.grad(loss_of(mean), scale)[0] * len(part) / 5)
    torch.testing.assert_close(sum(gradients), expected)
