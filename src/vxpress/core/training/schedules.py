"""Schedules of the KL term: it grows to its final value over a share of all steps, or over a number of epochs."""

from __future__ import annotations

from vxpress.core.config import TrainConfig


def warmup_share(config: TrainConfig, step: int, epoch: int, n_steps: int) -> float:
    """Compute the share of the warm-up that is complete at a step, from 0 to 1."""
    done, length = (
        (step + 1, config.kl_warmup * n_steps) if config.warmup_unit == "steps" else (epoch, config.kl_warmup)
    )
    return min(1.0, done / length) if length > 0 else 1.0


def kl_weight(config: TrainConfig, step: int, epoch: int, n_steps: int) -> float:
    """Compute the weight of the divergence at a step: linear from 0 to beta, cyclical, or beta throughout.

    In a cycle the weight rises over the first half and stays at beta over the second (Fu et al. 2019). After the last
    cycle it stays at beta.  With a capacity it is the weight of the distance from :func:`kl_target`.
    """
    share = warmup_share(config, step, epoch, n_steps)
    if config.kl_schedule == "capacity":
        return config.beta
    if config.kl_schedule == "cyclical" and share < 1.0:
        return config.beta * min(1.0, 2.0 * (share * config.kl_cycles % 1.0))
    return config.beta * share


def kl_target(config: TrainConfig, step: int, epoch: int, n_steps: int) -> float:
    """Compute the target of the divergence in nats for the capacity schedule: linear from 0 (Burgess et al. 2018)."""
    return config.kl_capacity * warmup_share(config, step, epoch, n_steps)


def settled(config: TrainConfig, step: int, epoch: int, n_steps: int) -> bool:
    """Whether weight and target keep their final values from this step on."""
    share = warmup_share(config, step, epoch, n_steps)
    rest = 0.5 / config.kl_cycles if config.kl_schedule == "cyclical" else 0.0
    return share >= 1.0 - rest or (config.beta == 0.0 and config.kl_schedule != "capacity")
