"""Training that cannot continue: when it fails, and what the error says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vxpress.core.data import Source, walk
from vxpress.core.model import VAE
from vxpress.core.noise import Noise
from vxpress.core.objectives import elbo

# training fails after an epoch in which more than this share of the steps was not finite,
MAX_VOIDED = 0.5
# or after this many epochs in a row with any such step or with a validation objective that is not finite
MAX_TROUBLED_EPOCHS = 5
MAX_NAMED = 5


class TrainingError(RuntimeError):
    """Training cannot continue; the message names the likely cause."""


class Trouble:
    """Counts the last epochs in a row with trouble."""

    def __init__(self, n_minibatches: int) -> None:
        self.n_minibatches, self.n_epochs = n_minibatches, 0

    def failed(self, voided: int, *, finite: bool) -> bool:
        """Record the discarded steps of an epoch and whether its validation was finite; return whether training failed."""
        self.n_epochs = self.n_epochs + 1 if voided or not finite else 0
        return voided > MAX_VOIDED * self.n_minibatches or self.n_epochs >= MAX_TROUBLED_EPOCHS

    def state_dict(self) -> dict[str, int]:
        """Return the number of epochs in a row with trouble."""
        return {"n_epochs": self.n_epochs}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue to count."""
        self.n_epochs = state["n_epochs"]

    @torch.no_grad()
    def error(
        self, model: VAE, source: Source, rows: Tensor, voided: int, describe: Callable[[Tensor], str]
    ) -> TrainingError:
        """Return the error: which cells cannot be evaluated, and what to do."""
        model.eval()
        noise, bad = Noise(0, rows.device), []
        for _, batch in walk(source, rows):
            value = elbo(model, batch, noise).value()
            bad.append(batch.rows[~torch.isfinite(value)])
        suspects = torch.cat(bad)
        if len(suspects) == 0:
            # no cell diverges at the current weights: the largest libraries are the most likely cause
            suspects = rows[source.log_library_n1[rows, 0].argsort(descending=True)[:MAX_NAMED]]
        return TrainingError(
            f"Loss or gradient was repeatedly NaN or infinite ({voided} of {self.n_minibatches} steps of the last epoch, which were "
            f"discarded). Likely cause: {describe(suspects)}. Remove or check them, or lower the learning rate "
            "(options=FitOptions(learning_rate=...))."
        )
