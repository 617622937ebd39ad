"""The best state of a training, and when to stop without gain."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from vxpress.core.config import TrainConfig
from vxpress.core.model import VAE


class Keeper:
    """Keeps the state with the best validation objective after the warm-up and decides when to stop.

    Before the end of the warm-up it keeps the latest state.  Without validation cells it is not ``active``.
    """

    def __init__(self, config: TrainConfig, *, active: bool) -> None:
        self.keep = active and config.keep_best
        self.patience = config.patience if active and config.early_stopping else math.inf
        self.best, self.best_epoch = -math.inf, -1
        self.state: dict[str, Tensor] = {}

    def update(self, model: VAE, epoch: int, objective: float, *, warm: bool) -> bool:
        """Record an epoch; return True if patience is exhausted."""
        if math.isnan(objective):
            return False
        if not warm or objective > self.best:
            state = copied(model.state_dict()) if self.keep else {}
            # one statement: an interrupt must not separate the state from its epoch
            self.best, self.best_epoch, self.state = objective if warm else -math.inf, epoch, state
        return epoch - self.best_epoch >= self.patience

    def restore(self, model: VAE, last: int) -> int:
        """Restore the best state and return its epoch."""
        if not self.state:
            return last
        model.load_state_dict(self.state)
        return self.best_epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the best objective, its epoch and its state."""
        return {"best": self.best, "best_epoch": self.best_epoch, "state": copied(self.state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a stored best state."""
        self.best, self.best_epoch, self.state = state["best"], state["best_epoch"], copied(state["state"])


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy weights."""
    return {name: value.detach().clone() for name, value in state.items()}
