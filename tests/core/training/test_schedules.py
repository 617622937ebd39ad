"""Schedules of weight and target over training."""

from __future__ import annotations

import numpy as np
import pytest

from vxpress.core.config import TrainConfig
from vxpress.core.training.schedules import kl_target, kl_weight, settled


@pytest.mark.parametrize("cycles", [1, 3, 4])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_a_cyclical_weight_rises_over_half_of_each_cycle_and_ends_at_beta(cycles: int, beta: float) -> None:
    n_steps, length = 2400 * cycles, 1200 * cycles
    config = TrainConfig(max_epochs=1, beta=beta, kl_schedule="cyclical", kl_cycles=cycles, kl_warmup=0.5)
    weights = np.array([kl_weight(config, step, 0, n_steps) for step in range(n_steps)])
    # at step s, s + 1 steps count as complete
    at = (np.arange(1, length) / 1200) % 1.0
    np.testing.assert_allclose(weights[: length - 1], beta * np.minimum(1.0, 2 * at), atol=1e-9)
    assert (weights[length - 1 :] == beta).all()
    assert (np.diff(weights) < -beta / 2).sum() == cycles - 1
    assert weights.max() == beta


def test_one_cycle_is_linear_over_half_the_time() -> None:
    once = TrainConfig(max_epochs=1, kl_schedule="cyclical", kl_cycles=1, kl_warmup=0.6)
    linear = TrainConfig(max_epochs=1, kl_warmup=0.3)
    for step in range(100):
        assert kl_weight(once, step, 0, 100) == pytest.approx(kl_weight(linear, step, 0, 100))


def test_a_capacity_rises_linearly_under_a_constant_weight() -> None:
    config = TrainConfig(max_epochs=1, beta=20.0, kl_schedule="capacity", kl_capacity=8.0, kl_warmup=0.4)
    assert [kl_weight(config, step, 0, 100) for step in (0, 50, 99)] == [20.0] * 3
    targets = [kl_target(config, step, 0, 100) for step in (0, 9, 39, 40, 99)]
    assert targets == pytest.approx([0.2, 2.0, 8.0, 8.0, 8.0])


@pytest.mark.parametrize("schedule", ["linear", "cyclical", "capacity"])
@pytest.mark.parametrize("warmup", [0.01, 0.3, 1.0])
def test_weight_and_target_are_constant_once_settled(schedule: str, warmup: float) -> None:
    config = TrainConfig(max_epochs=1, beta=3.0, kl_schedule=schedule, kl_capacity=5.0, kl_warmup=warmup)  # type: ignore[arg-type]
    now = [(kl_weight(config, s, 0, 97), kl_target(config, s, 0, 97), settled(config, s, 0, 97)) for s in range(97)]
    first = next(i for i, (*_, done) in enumerate(now) if done)
    assert all(done for *_, done in now[first:])
    assert {weight for weight, *_ in now[first:]} == {3.0}
    if schedule == "capacity":
        assert {target for _, target, _ in now[first:]} == {5.0}


def test_without_a_divergence_the_schedule_is_settled() -> None:
    assert settled(TrainConfig(max_epochs=1, beta=0.0), 0, 0, 100)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"kl_schedule": "capacity", "beta": 10.0}, "kl_capacity=10"),
        ({"kl_schedule": "capacity", "kl_capacity": 5.0}, "beta=1 cannot hold"),
        (
            {"kl_schedule": "capacity", "kl_capacity": 5.0, "beta": 9.0, "objective": "iwae"},
            "objective='iwae' has no such term",
        ),
        ({"kl_schedule": "capacity", "kl_capacity": 5.0, "beta": 9.0, "free_bits": 0.1}, "free_bits=0.1"),
        ({"free_bits": 0.1, "objective": "dreg"}, "objective='dreg'"),
        ({"free_bits": 0.1, "beta": 0.0}, "beta=0"),
        ({"kl_schedule": "cyclical", "kl_warmup": 0.0}, "kl_warmup=0.3"),
        ({"free_bits": -0.1}, "free_bits=-0.1"),
        ({"n_samples": 0}, "n_samples=0"),
        ({"kl_cycles": 2.5}, "kl_cycles=2.5"),
        ({"encoder_steps": -1}, "encoder_steps=-1"),
        ({"kl_schedule": "sigmoid"}, "cyclical"),
        ({"objective": "elbow"}, "dreg"),
        ({"free_bits_form": "weak"}, "soft"),
    ],
)
def test_settings_that_cannot_be_combined_are_refused(settings: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TrainConfig(max_epochs=1, **settings)
