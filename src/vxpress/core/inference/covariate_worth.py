"""What knowing a categorical covariate is worth: the held-out likelihood it adds, and whether it adds any.

Each held-out cell is scored under its own category and under those of other held-out cells that agree with it in all other
categorical covariates. If the covariate says nothing about the counts beyond the others, the categories of these cells are
exchangeable, so a permutation test is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from vxpress.core.data import Source, walk
from vxpress.core.inference.importance import MAX_ROWS, MIN_ROWS, PASS_ENTRIES
from vxpress.core.inference.permutation import Exchange, Permuted, compare
from vxpress.core.model import VAE
from vxpress.core.noise import Noise
from vxpress.core.objectives import elbo

# held-out cells of a covariate, and pairs of a cell and a category over all covariates, that are decoded at most: 2 % of a fit
MAX_CELLS, MAX_PAIRS = 512, 4_096
# categories are exchanged in groups of cells, of this size unless their categories would be too many, and of at least 4 cells
GROUP, LEAST_GROUP = 128, 4


@dataclass(frozen=True)
class Groups:
    """Cells in groups within which categories are exchanged.

    ``rows`` (n,) are the cells, group by group; ``group_n`` (n,) is the group of each; ``category_hm`` (groups, m) the
    distinct categories of each group, the first one repeated where there are fewer; and ``column_n`` (n,) the column with
    the category of each cell.
    """

    rows: np.ndarray
    group_n: np.ndarray
    category_hm: np.ndarray
    column_n: np.ndarray

    @classmethod
    def of(cls, codes_nk: np.ndarray, k: int, rng: np.random.Generator, max_cells: int, max_pairs: int) -> Groups:
        """Group cells with the same other categories at random; groups with a single category are left out.

        With many categories, groups are as small as needed to use ``max_cells`` cells with ``max_pairs`` pairs of a cell and
        a category. If there are more, some groups are kept.
        """
        order = rng.permutation(len(codes_nk))
        _, stratum_n = np.unique(np.delete(codes_nk, k, axis=1)[order], axis=0, return_inverse=True)
        by_stratum = np.argsort(stratum_n.reshape(-1), kind="stable")
        columns = max_pairs // max(1, min(max_cells, len(codes_nk)))
        few = len(np.unique(codes_nk[:, k])) <= columns
        size = GROUP if few else max(LEAST_GROUP, columns)
        parts = []
        for rows in np.split(order[by_stratum], np.cumsum(np.bincount(stratum_n.reshape(-1)))[:-1]):
            parts += np.array_split(rows, max(1, -(-len(rows) // size)))
        parts = [part for part in parts if len(np.unique(codes_nk[part, k])) > 1]
        return cls._chosen([parts[i] for i in rng.permutation(len(parts))], codes_nk[:, k], max_cells, max_pairs)

    @classmethod
    def _chosen(cls, parts: Sequence[np.ndarray], code_n: np.ndarray, max_cells: int, max_pairs: int) -> Groups:
        """Keep the first groups, at least one, within the limits."""
        kept: list[np.ndarray] = []
        width = n = 0
        for part in parts:
            wider = max(width, len(np.unique(code_n[part])))
            if kept and (n + len(part) > max_cells or (n + len(part)) * wider > max_pairs):
                break
            kept.append(part)
            width, n = wider, n + len(part)
        category_hm = np.zeros((len(kept), width), dtype=np.int64)
        columns = []
        for h, part in enumerate(kept):
            category, column = np.unique(code_n[part], return_inverse=True)
            category_hm[h] = category[0]
            category_hm[h, : len(category)] = category
            columns.append(column.reshape(-1))
        none = np.zeros(0, dtype=np.int64)
        group_n = np.repeat(np.arange(len(kept)), [len(part) for part in kept])
        return cls(np.concatenate([none, *kept]), group_n, category_hm, np.concatenate([none, *columns]))


def covariate_worth(model: VAE, cells: Source, held_out_n: np.ndarray, *, seed: int) -> list[Permuted]:
    """Compute the worth of every categorical covariate, in nats per held-out cell.

    ``held_out_n`` are rows of ``cells``. See :func:`vxpress.core.inference.permutation.compare` for the numbers; they are NaN
    if no two held-out cells differ in a covariate but in no other.
    """
    model.eval()
    codes_nk = cells.covariates.categorical_nk.cpu().numpy()[held_out_n]
    n_covariates = codes_nk.shape[1]
    found = []
    for k in range(n_covariates):
        rng = np.random.default_rng([seed, k])
        groups = Groups.of(codes_nk, k, rng, MAX_CELLS, MAX_PAIRS // n_covariates)
        score_nm = _scores(model, cells, k, held_out_n[groups.rows], groups.category_hm[groups.group_n], seed)
        found.append(compare(score_nm, Exchange(groups.column_n, groups.group_n), rng))
    return found


@torch.no_grad()
def _scores(model: VAE, cells: Source, k: int, rows: np.ndarray, category_nm: np.ndarray, seed: int) -> np.ndarray:
    """Compute the ELBO of every cell under each of its categories of covariate ``k``, (n, m), with the same noise.

    The encoder runs again for each category, because some posteriors depend on it.
    """
    score_nm = np.empty(category_nm.shape)
    noise = Noise(seed, cells.device)
    rows_per_pass = max(MIN_ROWS, min(MAX_ROWS, PASS_ENTRIES // model.config.n_genes))
    at = torch.from_numpy(rows).to(cells.device)
    for part, batch in walk(cells, at, rows_per_pass, stage="judging covariates"):
        eps = noise.normal_like(torch.empty(len(batch), model.n_noise, device=cells.device))
        for j in range(category_nm.shape[1]):
            code_n = torch.from_numpy(category_nm[part, j]).to(cells.device)
            tried = replace(batch, covariates=batch.covariates.with_category(k, code_n))
            score_nm[part, j] = elbo(model, tried, noise, eps).value().double().cpu().numpy()
    return score_nm
