"""All that is needed to annotate cells, without the cells that it was learned from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vxpress.core.annotation import folds
from vxpress.core.annotation.features import (
    MAX_CELLS,
    LatentFeatures,
    expected_expression,
    log_expression,
    some_rows,
)
from vxpress.core.annotation.head import N_FOLDS, Head, learn
from vxpress.core.annotation.novelty import Labelled
from vxpress.core.data import Source, walk

# most labelled cells that the classifier is learned from, and most entries of their dense expression
MAX_LABELLED, MAX_ENTRIES = 10_000, 50_000_000


@dataclass(frozen=True)
class Task:
    """What an annotator is learned from: all cells of a fit, and which of them have a label.

    ``z_nd`` are latent positions, ``rows_m`` the rows of the labelled cells, ``code_m`` the codes of their labels.
    ``batch_m`` are the codes of their batches, which ``by_batch`` are held out as a whole, because others have no labels at all.
    """

    z_nd: Tensor
    source: Source
    rows_n: Tensor
    rows_m: Tensor
    code_m: Tensor
    n_labels: int
    batch_m: Tensor
    by_batch: bool = False


@dataclass(frozen=True)
class Annotator:
    """A classifier, what held-out labelled cells were predicted to be, and where labelled cells are.

    ``held_out_mc`` are the log probabilities of the labels of the labelled cells, by classifiers learned without their fold, and
    ``met_m`` are the cells whose label occurred in other folds. ``expected_fg`` predicts expression from latent features.
    """

    features: LatentFeatures
    head: Head
    expected_fg: Tensor
    labelled: Labelled
    held_out_mc: np.ndarray
    met_m: np.ndarray

    @property
    def n_labels(self) -> int:
        """Number of labels."""
        return self.held_out_mc.shape[1]

    @classmethod
    def learn(cls, task: Task, seed: int) -> Annotator:
        """Learn from the labelled cells; all cells of the fit say where clusters are."""
        generator = torch.Generator().manual_seed(seed)
        most = min(MAX_LABELLED, max(task.n_labels, MAX_ENTRIES // task.source.n_genes))
        kept = _balanced_rows(task.code_m, most, generator)
        rows_m, code_m = task.rows_m[kept], task.code_m[kept]
        features = LatentFeatures.of(task.z_nd[task.rows_n], generator)
        batch_m = task.batch_m[kept]
        by_group, by_label = folds.by_group, folds.by_label
        fold_m = by_group(batch_m, N_FOLDS, generator) if task.by_batch else by_label(code_m, N_FOLDS, generator)
        expression_mg = expression(task.source, rows_m)
        found = learn(features(task.z_nd[rows_m]), expression_mg, code_m, task.n_labels, fold_m)
        some = task.rows_n[some_rows(len(task.rows_n), min(MAX_CELLS, most), generator)]
        expected_fg = expected_expression(features(task.z_nd[some]), expression(task.source, some))
        held_out_mc = found.held_out_nc.numpy()
        labelled = Labelled(
            task.z_nd[rows_m].numpy(), code_m.numpy(), fold_m.numpy(), batch_m.numpy(), held_out_mc.argmax(1)
        )
        return cls(features, found.head, expected_fg, labelled, held_out_mc, found.known_n.numpy())

    @torch.no_grad()
    def log_prob(self, z_nd: Tensor, source: Source, library_n: Tensor, observed_g: Tensor | None = None) -> np.ndarray:
        """Compute the log probabilities of the labels, (n, labels).

        Genes that are not ``observed_g`` have their expected expression given z.
        """
        out = np.empty((len(z_nd), self.n_labels), dtype=np.float32)
        for part, batch in walk(source):
            latent_nf = self.features(z_nd[part])
            x_ng = log_expression(batch.x_ng, library_n[part])
            if observed_g is not None:
                expected_ng = self.expected_fg[0] + latent_nf @ self.expected_fg[1:]
                x_ng = torch.where(observed_g, x_ng, expected_ng)
            out[part] = self.head.log_prob(latent_nf, x_ng).numpy()
        return out


def expression(source: Source, rows: Tensor) -> Tensor:
    """Return the log expression of some cells of a source on the CPU, dense."""
    out = torch.empty(len(rows), source.n_genes)
    for part, batch in walk(source, rows):
        out[part] = log_expression(batch.x_ng, batch.log_library_n1[:, 0].exp())
    return out


def _balanced_rows(code_m: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Return at most about ``most`` positions, in order; all cells of rare labels are kept, and as many of each common one."""
    size_c = torch.bincount(code_m)
    if len(code_m) <= most:
        return torch.arange(len(code_m))
    each = _largest(lambda cap: int(size_c.clamp_max(cap).sum()) <= most, int(size_c.max()))
    order = torch.randperm(len(code_m), generator=generator)
    order = order[code_m[order].argsort(stable=True)]
    start_c = torch.cumsum(size_c, 0) - size_c
    place = torch.arange(len(code_m)) - start_c[code_m[order]]
    return order[place < each].sort().values


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """Return the largest whole number from 1 to ``most`` for which a decreasing condition holds, at least 1."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
