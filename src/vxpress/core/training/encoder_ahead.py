"""Updates of the encoder alone before each step, while they add information to the latent space (He et al. 2019).

Early in training the encoder lags behind the true posterior, which changes with the decoder.  If the decoder learns to
ignore z in the meantime, the encoder has nothing left to learn.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vxpress.core.aggregate import information
from vxpress.core.blocks import Z
from vxpress.core.data import Source, walk
from vxpress.core.model import VAE
from vxpress.core.parallel import SINGLE, World

# epochs without growth: a random encoder distinguishes cells by chance, and the first epochs undo this
PATIENCE = 3
MAX_CELLS = 2_000
CHUNK = 512


class EncoderAhead:
    """Number of encoder updates before each step, and the cells used in them.

    After every epoch the information I_q(x; z) of held-out cells (of training cells if none is held out) is
    estimated. Once it has not grown for :data:`PATIENCE` epochs, the updates end for the rest of the training.
    """

    def __init__(self, n_steps: int, train_rows: Tensor, validation_rows: Tensor, seed: int) -> None:
        self.n_steps, self.train_rows = n_steps, train_rows
        self.generator = torch.Generator().manual_seed(seed)
        judged = validation_rows if len(validation_rows) else train_rows
        order = torch.randperm(len(judged), generator=self.generator)[:MAX_CELLS]
        self.judged_rows = judged[order.to(judged.device)]
        self.best, self.waited = -math.inf, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates, the best information so far, the epochs without growth, and the generator."""
        generator = self.generator.get_state()
        return {"n_steps": self.n_steps, "best": self.best, "waited": self.waited, "generator": generator}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after a stored state; the cells that are judged follow from the seed."""
        self.n_steps, self.best, self.waited = state["n_steps"], state["best"], state["waited"]
        self.generator.set_state(state["generator"].cpu())

    def rows(self, n: int) -> Tensor:
        """Draw training cells for one update."""
        at = torch.randint(len(self.train_rows), (n,), generator=self.generator)
        return self.train_rows[at.to(self.train_rows.device)]

    def judge(self, model: VAE, source: Source, world: World = SINGLE) -> None:
        """Estimate the information after an epoch and end the updates if it no longer grows, in all processes."""
        if self.n_steps == 0:
            return
        information = world.once(lambda: held_out_information(model, source, self.judged_rows))
        # NaN counts as no growth
        self.waited = 0 if information > self.best else self.waited + 1
        self.best = max(self.best, information)
        if self.waited >= PATIENCE:
            self.n_steps = 0


@torch.no_grad()
def held_out_information(model: VAE, source: Source, rows: Tensor) -> float:
    """Estimate I_q(x; z) of some cells in nats: E log q(z|x) - E log q(z).

    q(z) is the mean of their posteriors, so the information is at most log n. Every call uses the same noise, so that
    values are comparable.
    """
    model.eval()
    parts = [model.posterior(batch)[Z] for _, batch in walk(source, rows, CHUNK)]
    mean_nd, scale_nd = (
        torch.cat([getattr(q, name) for q in parts]).double().cpu().numpy() for name in ("loc", "scale")
    )
    eps_nd = torch.randn(mean_nd.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    # a model that diverged gives NaN, which its caller expects
    with np.errstate(all="ignore"):
        return information(mean_nd, scale_nd**2, eps_nd)
