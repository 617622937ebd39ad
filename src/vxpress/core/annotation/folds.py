"""Folds of labelled cells for cross-fitting."""

from __future__ import annotations

import torch
from torch import Tensor


def by_label(code_n: Tensor, n_folds: int, generator: torch.Generator) -> Tensor:
    """Return the fold of each cell, int64 (n,): each label is divided evenly, so that two cells of a label are in two folds."""
    order = torch.randperm(len(code_n), generator=generator)
    # cells of a label are neighbours in this order
    order = order[code_n[order].argsort(stable=True)]
    fold_n = torch.empty_like(code_n)
    fold_n[order] = torch.arange(len(code_n)) % n_folds
    return fold_n


def by_group(group_n: Tensor, n_folds: int, generator: torch.Generator) -> Tensor:
    """Return folds that keep groups of cells together: the largest group first, each to the smallest fold."""
    codes, sizes = group_n.unique(return_counts=True)
    shuffled = torch.randperm(len(codes), generator=generator)
    order = shuffled[sizes[shuffled].argsort(descending=True, stable=True)]
    filled = torch.zeros(min(n_folds, len(codes)), dtype=torch.int64)
    fold_n = torch.empty_like(group_n)
    for i in order.tolist():
        fold = int(filled.argmin())
        fold_n[group_n == codes[i]] = fold
        filled[fold] += sizes[i]
    return fold_n
