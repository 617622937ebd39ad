"""Generalisation gap: how much better a model describes training cells than held-out cells.

Training and held-out cells differ in depth, and their ELBOs differ mostly for this reason. So the ELBO of training
cells is regressed on quantities that do not depend on the model (depth, number of detected genes, likelihood under the
mean profile). Held-out cells are then compared with the prediction of this regression.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vxpress.core.data import Source, gene_sums, walk
from vxpress.core.inference.importance import log_likelihood
from vxpress.core.model import VAE

MAX_CELLS, MIN_CELLS = 400, 20


@dataclass(frozen=True)
class Generalisation:
    """Gap of held-out to training cells in nats per cell, its standard error, and the held-out ELBO."""

    gap: float
    se: float
    elbo: float

    @property
    def share(self) -> float:
        """The gap as a share of the held-out ELBO."""
        return self.gap / abs(self.elbo)

    @property
    def share_low(self) -> float:
        """Lower 95 % bound of the share."""
        return (self.gap - 1.96 * self.se) / abs(self.elbo)


def generalisation(
    model: VAE, cells: Source, train_n: np.ndarray, held_out_n: np.ndarray, *, seed: int
) -> Generalisation | None:
    """Compare at most 400 cells of each kind, given by row; None if there are fewer than 20 of one.

    Also None for a likelihood that is not discrete.
    """
    if min(len(train_n), len(held_out_n)) < MIN_CELLS or not model.decoder.likelihood.discrete:
        return None
    rng = np.random.default_rng(seed)
    chosen = [np.sort(rng.permutation(rows)[:MAX_CELLS]) for rows in (train_n, held_out_n)]
    n, rows = len(chosen[0]), torch.from_numpy(np.concatenate(chosen))
    some = cells.take(rows)
    elbo_n = log_likelihood(model, some, 1, seed=seed).elbo_n
    known_nf = _known(some, n)
    known_nf = (known_nf - known_nf[:n].mean(0)) / np.maximum(known_nf[:n].std(0), 1e-12)
    known_nf = np.column_stack((np.ones(len(known_nf)), known_nf))
    coefficients = np.linalg.lstsq(known_nf[:n], elbo_n[:n], rcond=1e-8)[0]
    rest_n = elbo_n - known_nf @ coefficients
    held = rest_n[n:]
    se = np.sqrt(held.var(ddof=1) / len(held) + rest_n[:n].var(ddof=known_nf.shape[1]) / n)
    return Generalisation(float(-held.mean()), float(se), float(elbo_n[n:].mean()))


def _known(cells: Source, n_train: int) -> np.ndarray:
    """Compute the regressors of each cell.

    They are molecules and functions of them, detected genes, log p(x | mean profile) and log x! up to constants, and
    log l.
    """
    profile_g = 0.5 + gene_sums(cells, torch.arange(n_train)).numpy()
    log_share_g = np.log(profile_g / profile_g.sum())
    known: list[np.ndarray] = []
    for _, batch in walk(cells, dense=False):
        where, value = (part.numpy() for part in batch.entries())
        (row, gene), value, n = np.divmod(where, cells.n_genes), value.astype(np.float64), len(batch)
        factorial = torch.lgamma(torch.from_numpy(value) + 1.0).numpy()
        total_n = np.bincount(row, value, minlength=n)
        known.append(
            np.column_stack(
                (
                    total_n,
                    total_n * np.log(np.maximum(total_n, 1.0)),
                    np.sqrt(total_n),
                    np.log1p(total_n),
                    np.bincount(row, minlength=n),
                    np.bincount(row, value * log_share_g[gene], minlength=n),
                    np.bincount(row, factorial, minlength=n),
                    batch.log_library_n1[:, 0].double().numpy(),
                )
            )
        )
    return np.concatenate(known)
