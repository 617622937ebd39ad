"""Score the same cells under several fits, and rank the fits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from vxpress._unset import Unset
from vxpress.bridge.ask.comparable import check_enough, check_library
from vxpress.bridge.ask.compared_fits import Candidate, groups
from vxpress.bridge.fits.query import read_scored
from vxpress.bridge.read.joint import cells_at
from vxpress.core.data import Source, have_counts
from vxpress.core.inference.comparison import LEVEL, Scores, difference, ranking, verdict
from vxpress.core.inference.importance import Bound, log_likelihoods
from vxpress.core.progress import stage

# the level of the intervals is part of the record of a comparison
__all__ = ["LEVEL", "ScoredCells", "read_cells", "score_fits", "table_of"]

ScoredCells = tuple[Source, np.ndarray]


def score_fits(
    candidates: list[Candidate],
    scored: list[ScoredCells],
    n_samples: tuple[int, int],
    *,
    seed: int,
    device: torch.device,
) -> list[tuple[Bound, ...]]:
    """Compute the bounds of every fit with both numbers of samples, on the same cells with the same noise."""
    found = []
    for candidate, (cells, counted) in zip(candidates, scored, strict=True):
        model = candidate.fit.model.to(device)
        rows = torch.from_numpy(counted).to(device)
        with stage(f"fit {candidate.name!r}"):
            found.append(log_likelihoods(model, cells.to(device), n_samples, seed=seed, rows=rows))
        model.cpu()
    return found


def read_cells(
    adata: AnnData, candidates: list[Candidate], rows: np.ndarray, layer: str | Unset | None
) -> list[ScoredCells]:
    """Read the cells as each fit needs them; also return which of them have counts."""
    part = cells_at(adata, rows)
    scored: list[ScoredCells] = []
    for candidate in candidates:
        cells = read_scored(part, candidate.fit, layer)
        counted = np.flatnonzero(have_counts(cells).numpy())
        if not scored:
            used_n = np.zeros(adata.n_obs, dtype=bool)
            used_n[rows[counted]] = True
            check_enough(candidates, used_n)
        elif not candidate.fit.model.infers_library:
            sizes = [c.log_library_n1.numpy()[counted, 0] for c in (scored[0][0], cells)]
            check_library(candidates[0], candidate, *sizes)
        scored.append((cells, counted))
    return scored


def table_of(candidates: list[Candidate], found: list[tuple[Bound, ...]]) -> pd.DataFrame:
    """Build the table: one row per model, the best first."""
    models = groups(candidates)
    scores = [
        Scores(*(np.stack([found[i][which].log_likelihood_n for i in members]) for which in (1, 0)))
        for members in models.values()
    ]
    order = ranking(scores)
    names, best = list(models), scores[order[0]]
    rows = []
    for rank, position in enumerate(order, start=1):
        members, score = models[names[position]], scores[position]
        config = candidates[members[0]].fit.params.model
        to_best = None if rank == 1 else difference(score, best)
        rows.append(
            {
                "rank": rank,
                "n_fits": len(members),
                "fits": ", ".join(candidates[i].name for i in members),
                "likelihood": config.likelihood,
                "n_latent": config.n_latent,
                "prior": config.prior.name,
                "log_likelihood": score.mean,
                "se": score.se(),
                "log_likelihood_fewer": score.fewer,
                "ess_median": float(np.median(np.concatenate([found[i][1].ess_n for i in members]))),
                "difference": 0.0 if to_best is None else to_best.estimate,
                "ci_low": 0.0 if to_best is None else to_best.low,
                "ci_high": 0.0 if to_best is None else to_best.high,
                "gap": score.gap if to_best is None else to_best.gap,
                "verdict": verdict(to_best),
            }
        )
    return pd.DataFrame(rows, index=pd.Index([names[i] for i in order], name="model"))
