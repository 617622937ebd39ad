"""What a unit is scored with: settings, predictions, and genes ranked by the measured change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats

from vxpress.core.evaluation.change import Floats, Ints, top_genes, weights_of

# false discovery rate of genes that count as changed
FDR = 0.05


@dataclass(frozen=True)
class Settings:
    """Sizes of the sets of genes, and numbers of resamples, splits of the controls, halves and cells for distances."""

    n_top: tuple[int, ...]
    n_draws: int
    n_splits: int
    n_halves: int
    max_cells: int
    shared_controls: bool

    @property
    def sets(self) -> list[str]:
        return ["all", *(f"top{k}" for k in self.n_top)]


@dataclass(frozen=True)
class Cells:
    """Predicted cells, log values (m, g), and the row of the control cell of each, if known.

    ``change_g`` is the change of the mean that the method states; without it, the change is that of the cells, which are
    drawn, and whose noise is that of their number.
    """

    name: str
    x_mg: sparse.csr_matrix
    source_m: Ints | None = None
    change_g: Floats | None = None

    def change(self, control: sparse.csr_matrix) -> Floats:
        """Return the predicted change of the mean from the control cells of the predicted cells, (g,)."""
        if self.change_g is not None:
            return self.change_g
        base = control if self.source_m is None else control[self.source_m]
        return _mean(self.x_mg) - _mean(base)


@dataclass(frozen=True)
class Change:
    """A predicted change of the mean of log values, (g,), which moves every control cell alike."""

    name: str
    change_g: Floats

    def change(self, _: sparse.csr_matrix) -> Floats:
        """Return the change."""
        return self.change_g


Prediction = Cells | Change


def _mean(x_ng: sparse.csr_matrix) -> Floats:
    return np.asarray(x_ng.mean(0), dtype=np.float64).reshape(-1)


@dataclass(frozen=True)
class Genes:
    """Measured genes: t, standard error, their order, and the weights of the sets: all, top, weighted, significant."""

    t_g: Floats
    error_g: Floats
    order_g: Ints
    weight_gs: Floats

    @classmethod
    def of(cls, t_g: Floats, error_g: Floats, n_top: Sequence[int]) -> Genes:
        n_genes = len(t_g)
        order = top_genes(np.abs(t_g), n_genes)
        columns = [np.full(n_genes, 1.0 / n_genes)]
        for k in n_top:
            column = np.zeros(n_genes)
            column[order[:k]] = 1.0 / min(k, n_genes)
            columns.append(column)
        p_g = 2.0 * stats.norm.sf(np.abs(t_g))
        called = stats.false_discovery_control(p_g) <= FDR
        share = called / called.sum() if called.any() else np.full(n_genes, np.nan)
        return cls(t_g, error_g, order, np.stack([*columns, weights_of(t_g), share], 1))

    @property
    def plain_gs(self) -> Floats:
        """Weights of the sets without the significant genes, which may be none."""
        return self.weight_gs[:, :-1]
