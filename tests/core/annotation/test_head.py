"""Folds, and the classifier that pools latent position and expression."""

from __future__ import annotations

import numpy as np
import torch

from vxpress.core.annotation import folds
from vxpress.core.annotation.annotator import Annotator, Task, _balanced_rows
from vxpress.core.annotation.head import learn
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts


def test_folds_divide_each_label_and_keep_groups_together() -> None:
    code = torch.tensor([0] * 23 + [1] * 2 + [2] * 11)
    fold = folds.by_label(code, 5, torch.Generator().manual_seed(0))
    for label, most in ((0, 5), (1, 1), (2, 3)):
        assert int(torch.bincount(fold[code == label]).max()) <= most
    group = torch.arange(40) % 7
    by_group = folds.by_group(group, 3, torch.Generator().manual_seed(0))
    assert len(by_group.unique()) == 3
    for g in range(7):
        assert len(by_group[group == g].unique()) == 1


def test_rare_labels_keep_all_their_cells() -> None:
    code = torch.tensor([0] * 100 + [1] * 3 + [2] * 40)
    kept = _balanced_rows(code, 50, torch.Generator().manual_seed(0))
    assert len(kept) <= 50
    assert int((code[kept] == 1).sum()) == 3
    counts = torch.bincount(code[kept])
    assert int(counts[0]) == int(counts[2]) == 23


def test_the_pool_trusts_the_features_that_predict_held_out_cells() -> None:
    rng = np.random.default_rng(0)
    code = torch.from_numpy(rng.integers(3, size=150))
    good = torch.from_numpy((4.0 * np.eye(3)[code] + rng.normal(size=(150, 3))).astype(np.float32))
    noise = torch.from_numpy(rng.normal(size=(150, 10)).astype(np.float32))
    fold = folds.by_label(code, 5, torch.Generator().manual_seed(0))
    found = learn(good, noise, code, 3, fold)
    assert found.head.pool[0] > 1.3 * found.head.pool[1]
    assert bool(found.known_n.all())
    held_out = float((found.held_out_nc.argmax(-1) == code).float().mean())
    assert held_out > 0.9
    # confidence of held-out cells agrees with how often they are right
    assert abs(float(found.held_out_nc.exp().max(-1).values.mean()) - held_out) < 0.05


def test_missing_genes_are_predicted_from_the_latent_position() -> None:
    rng = np.random.default_rng(0)
    code = rng.integers(2, size=300)
    z = torch.from_numpy((np.array([[-2.0], [2.0]])[code] + 0.5 * rng.normal(size=(300, 1))).astype(np.float32))
    x = torch.from_numpy(rng.poisson(np.where(code[:, None] == np.arange(20) % 2, 8.0, 1.0)).astype(np.float32))
    none = torch.zeros(300, 0)
    cells = Cells(Counts.from_dense(x), x.sum(1, keepdim=True).log(), Covariates(none.long(), none))
    rows = torch.arange(300)
    task = Task(z, cells, rows, rows[:200], torch.from_numpy(code[:200]), 2, torch.zeros(200, dtype=torch.int64))
    found = Annotator.learn(task, seed=0)
    observed = torch.arange(20) < 4
    dark = Cells(Counts.from_dense(x * observed), cells.log_library_n1, cells.covariates)
    library = x.sum(1)
    full = found.log_prob(z, cells, library)
    partly = found.log_prob(z, dark, library, observed)
    as_zeros = found.log_prob(z, dark, library)
    assert (full.argmax(1) == code).mean() > 0.98
    assert (partly.argmax(1) == code).mean() > 0.98
    assert np.abs(partly - full).mean() < np.abs(as_zeros - full).mean()
