"""The small training loop: which state is kept, and when it ends."""

from __future__ import annotations

import math

import pytest
import torch

from vxpress.core.loop import copies, keep_best, put, shuffled


def _run(losses: list[float], **settings: object) -> tuple[object, list[int]]:
    """Run over scripted losses; the state is the number of steps taken."""
    taken: list[int] = []
    script = iter(losses)
    kept = keep_best(
        range(len(losses)),
        lambda step, _: taken.append(step),
        lambda: next(script),
        lambda: len(taken),
        **settings,  # type: ignore[arg-type]
    )
    return kept, taken


def test_the_state_with_the_lowest_loss_is_kept() -> None:
    kept, taken = _run([3.0, 1.0, 2.0, math.nan, 1.0])
    assert (kept.state, kept.loss, kept.step, kept.n_steps) == (2, 1.0, 2, 5)  # type: ignore[attr-defined]
    assert taken == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("losses", [[2.0, 3.0], [math.nan], []])
def test_without_gain_the_initial_state_is_kept(losses: list[float]) -> None:
    kept, taken = _run(losses, start=2.0)
    assert (kept.state, kept.loss, kept.step, kept.n_steps) == (0, 2.0, 0, len(losses))  # type: ignore[attr-defined]
    assert len(taken) == len(losses)


@pytest.mark.parametrize(("patience", "n_steps"), [(1, 3), (2, 4), (3, 7), (math.inf, 7)])
def test_it_ends_after_steps_without_gain(patience: float, n_steps: int) -> None:
    kept, taken = _run([5.0, 4.0, 4.5, 4.5, 3.0, 3.5, 3.5], patience=patience)
    assert len(taken) == kept.n_steps == n_steps  # type: ignore[attr-defined]


def test_losses_are_computed_when_they_are_due() -> None:
    # steps 3 and 6 are judged
    kept, taken = _run([2.0, 1.0, 9.0, 9.0, 9.0, 9.0, 9.0], due=lambda step: step % 3 == 0)
    assert len(taken) == 7
    assert (kept.state, kept.loss, kept.step) == (6, 1.0, 6)  # type: ignore[attr-defined]


def test_an_interrupt_ends_the_loop() -> None:
    def step(number: int, _: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_best(range(3), step, lambda: 0.0, lambda: None)


def test_copies_are_put_back() -> None:
    weight = torch.nn.Parameter(torch.arange(3.0))
    held = copies([weight])
    weight.data.add_(1.0)
    assert held[0].tolist() == [0.0, 1.0, 2.0]
    put([weight], held)
    assert weight.tolist() == [0.0, 1.0, 2.0]


def test_shuffled_rows_are_the_rows_in_the_order_of_the_generator() -> None:
    rows = torch.tensor([7, 3, 9, 4])
    first, again = (shuffled(rows, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert sorted(first.tolist()) == [3, 4, 7, 9]
