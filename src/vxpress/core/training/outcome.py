"""The record of a training: history per epoch, epoch of the kept state, and the reason why training ended."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vxpress.core.objectives import Means

HISTORY = (
    "elbo_train",
    "elbo_validation",
    "objective_validation",
    "reconstruction_train",
    "reconstruction_validation",
    "kl_train",
    "kl_validation",
    "kl_weight",
    "lr",
)
# values of Outcome.stopped
STOPPED = BUDGET, EARLY, INTERRUPTED = "budget", "early", "interrupted"


@dataclass
class Outcome:
    """Record of a training: history per epoch, epoch of the kept state, and the reason why training ended.

    ``dispersion_gain`` is the gain of refitting the dispersions, in nats of the importance-weighted bound per
    validation cell.
    """

    history: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in HISTORY})
    best_epoch: int = 0
    stopped: str = BUDGET
    n_voided: int = 0
    n_steps: int = 0
    dispersion_gain: float = 0.0

    @property
    def interrupted(self) -> bool:
        """Whether the user interrupted the fit."""
        return self.stopped == INTERRUPTED

    @property
    def n_epochs(self) -> int:
        """Number of recorded epochs."""
        return len(self.history["lr"])

    def note(self, name: str, value: Any) -> None:
        """Add the value of an epoch to a column of the history."""
        self.history.setdefault(name, []).append(value)

    def note_means(self, part: str, means: Means | None, columns: Mapping[str, str]) -> None:
        """Add the means of an epoch; ``columns`` are names of the divergences of latent blocks. None is recorded as NaN."""
        values = dict.fromkeys(("reconstruction", "elbo", *columns.values()), math.nan)
        if means is not None:
            values |= {"reconstruction": sum(means.reconstruction.values()), "elbo": means.elbo}
            values |= {column: means.kl[name] for name, column in columns.items()}
            if len(means.reconstruction) > 1:
                values |= {f"reconstruction_{name}": value for name, value in means.reconstruction.items()}
        for column, value in values.items():
            self.note(f"{column}_{part}", value)

    def interrupt(self) -> None:
        """Record that the user ended the training; an epoch that was not recorded completely is dropped."""
        self.stopped = INTERRUPTED
        n_epochs = min(map(len, self.history.values()))
        self.history = {name: values[:n_epochs] for name, values in self.history.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the record as numbers, strings, lists and dicts."""
        return copy.deepcopy(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a stored record."""
        vars(self).update(copy.deepcopy(state))
