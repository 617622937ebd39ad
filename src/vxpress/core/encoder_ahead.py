"""Updates of the encoder alone before each step, as long as they teach the latent anything (He et al. 2019).

Early in training the encoder lags behind the posterior of a decoder that changes under it; a decoder that meanwhile
learns to do without z leaves it nothing to catch up with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vxpress.core.counts import Cells
from vxpress.core.priors import DiagonalNormal
from vxpress.core.vae import VAE

# epochs without growth: a random encoder tells cells apart by chance, which the first epochs unlearn
PATIENCE = 3
MAX_CELLS = 2_000
CHUNK = 512


class EncoderAhead:
    """How many such updates precede a step now, and on which cells.

    After every epoch the information I_q(x; z) of held-out cells (of training cells where none is held out) is
    estimated; once that has not grown for :data:`PATIENCE` epochs the updates end for good.
    """

    def __init__(self, n_steps: int, train_rows: Tensor, validation_rows: Tensor, seed: int) -> None:
        self.n_steps, self.train_rows = n_steps, train_rows
        self.generator = torch.Generator().manual_seed(seed)
        judged = validation_rows if len(validation_rows) else train_rows
        order = torch.randperm(len(judged), generator=self.generator)[:MAX_CELLS]
        self.judged_rows = judged[order.to(judged.device)]
        self.best, self.waited = -math.inf, 0

    def rows(self, n: int) -> Tensor:
        """Training cells for one update."""
        at = torch.randint(len(self.train_rows), (n,), generator=self.generator)
        return self.train_rows[at.to(self.train_rows.device)]

    def judge(self, model: VAE, cells: Cells) -> None:
        """Take note of an epoch."""
        if self.n_steps == 0:
            return
        information = held_out_information(model, cells, self.judged_rows)
        # not a number is no growth either
        self.waited = 0 if information > self.best else self.waited + 1
        self.best = max(self.best, information)
        if self.waited >= PATIENCE:
            self.n_steps = 0


@torch.no_grad()
def held_out_information(model: VAE, cells: Cells, rows: Tensor) -> float:
    """I_q(x; z) of some cells in nats: E log q(z|x) - E log q(z), q(z) the mean of their posteriors; at most log n.

    The same noise at every call, so that calls compare.
    """
    model.eval()
    parts = [model.posterior(cells.batch(part)) for part in rows.split(CHUNK)]
    loc, scale = (torch.cat([getattr(q, name) for q in parts]).double() for name in ("loc", "scale"))
    eps = torch.randn(loc.shape, generator=torch.Generator().manual_seed(0), dtype=loc.dtype).to(loc.device)
    q = DiagonalNormal(loc, scale)
    z_nd, precision_nd = q.rsample(eps), scale.pow(-2)
    # the square of z - loc, multiplied out, so that no array has cells x cells x dimensions
    constant_n = (loc.square() * precision_nd + 2.0 * scale.log() + math.log(2 * math.pi)).sum(-1)
    aggregate_n = []
    for z in z_nd.split(CHUNK):
        distance = z.square() @ precision_nd.T - 2.0 * z @ (loc * precision_nd).T + constant_n
        aggregate_n.append((-0.5 * distance).logsumexp(-1) - math.log(len(rows)))
    return float((q.log_prob(z_nd) - torch.cat(aggregate_n)).mean())
