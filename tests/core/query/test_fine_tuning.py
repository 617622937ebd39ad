from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from vxpress.core.config import ModelConfig
from vxpress.core.data import Cells, Counts
from vxpress.core.model import VAE, build
from vxpress.core.query.fine_tuning import Completed, fine_tune
from vxpress.core.query.surgery import extend, new_weights

ADDED = (1,)
CONFIGS = [
    {},
    {"encode_covariates": True, "norm": "batch"},
    {"covariate_code": "embedding", "condition_output": True},
    {"dispersion": "gene-batch", "latent_library": True},
]


def _start(make_cells: Callable[..., Cells], **settings: Any) -> tuple[VAE, Cells]:
    """Return a model of two batches extended by a third, and cells of the third with tripled first genes."""
    cells = make_cells(200, n_batches=2)
    settings = {"norm": "layer", "condition_output": True} | settings
    model = build(ModelConfig(20, n_latent=2, n_hidden=8, n_categories=(2,), has_batch=True, **settings), 0)
    model.start_from(cells, torch.arange(200))
    x = cells.counts.dense(torch.arange(200)).numpy()
    x[:, :8] *= 3
    library = torch.tensor(x.sum(1, keepdims=True)).log()
    covariates = replace(cells.covariates, categorical_nk=torch.full((200, 1), 2))
    return extend(model, ADDED), Cells(Counts.from_scipy(sparse.csr_matrix(x)), library, covariates)


def _run(model: VAE, cells: Cells, **arguments: Any) -> Any:
    rows = torch.arange(len(cells))
    return fine_tune(model, cells, ADDED, rows[:160], rows[160:], max_epochs=15, seed=0, **arguments)


@pytest.mark.parametrize("settings", CONFIGS)
def test_only_the_new_weights_change_and_the_bound_improves(
    make_cells: Callable[..., Cells], global_noise_untouched: Callable[[], AbstractContextManager[None]], settings: dict
) -> None:
    model, cells = _start(make_cells, **settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    required = {name: value.requires_grad for name, value in model.named_parameters()}
    with global_noise_untouched():
        outcome = _run(model, cells)
    assert outcome.after > outcome.before + 0.05
    masks, moved = new_weights(model, ADDED), 0
    for name, value in model.state_dict().items():
        changed = value != before[name]
        moved += int(changed.sum())
        assert not (changed & ~masks.get(name, torch.zeros_like(changed))).any(), name
    assert moved > 0
    assert {name: value.requires_grad for name, value in model.named_parameters()} == required
    assert all(value.grad is None for value in model.parameters())


def test_results_repeat_with_the_seed(make_cells: Callable[..., Cells]) -> None:
    states = []
    for _ in range(2):
        model, cells = _start(make_cells, encode_covariates=True)
        _run(model, cells)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_without_gain_nothing_is_changed(make_cells: Callable[..., Cells]) -> None:
    model, cells = _start(make_cells)
    _run(model, cells)
    tuned = {name: value.clone() for name, value in model.state_dict().items()}
    # held-out cells that training cells have no information about
    x = cells.counts.dense(torch.arange(200)).numpy()
    x[160:, :8], x[160:, 8:] = 0, x[160:, 8:] * 50
    other = replace(cells, counts=Counts.from_scipy(sparse.csr_matrix(x)))
    outcome = _run(model, other)
    if outcome.after == outcome.before:
        assert all(torch.equal(value, tuned[name]) for name, value in model.state_dict().items())
    else:
        assert outcome.after > outcome.before


def test_unmeasured_genes_do_not_affect_the_result(make_cells: Callable[..., Cells]) -> None:
    model, cells = _start(make_cells, dispersion="gene-batch")
    observed = torch.from_numpy(np.arange(20) % 2 == 0)
    x = cells.counts.dense(torch.arange(200)).numpy() * observed.numpy()
    hidden = replace(cells, counts=Counts.from_scipy(sparse.csr_matrix(x)))
    before = model.decoder.log_dispersion.detach().clone()
    _run(model, hidden, completed=Completed(observed, torch.zeros(200, 8)))
    changed = (model.decoder.log_dispersion != before)[2]
    assert changed[observed].any()
    assert not changed[~observed].any()
