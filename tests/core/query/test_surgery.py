from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from vxpress.core.blocks import NormalBlock
from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells
from vxpress.core.model import VAE, build
from vxpress.core.query.surgery import extend, forget_labels, new_weights

KNOWN, ADDED = (3, 2, 1), (2, 0, 1)
BASE: dict[str, Any] = {
    "n_genes": 20,
    "n_latent": 3,
    "n_hidden": 8,
    "n_layers": 2,
    "n_categories": KNOWN,
    "has_batch": True,
    "n_continuous": 2,
}
CONFIGS = [
    {},
    {"encode_covariates": True, "condition_output": True},
    {"covariate_code": "embedding", "encode_covariates": True},
    {"dispersion": "gene-batch", "latent_library": True, "encode_covariates": True},
    {"likelihood": "zinb", "condition_output": True, "n_readout": 5, "remainder": True},
    {"dispersion": "gene-cell", "condition_output": True},
    {"decoder": "skip", "likelihood": "zinb", "condition_output": True},
    {"decoder": "linear", "condition_output": False, "n_readout": 5},
    {"decoder": "split", "norm": "batch"},
    {"optional": (1, 0), "condition_output": True},
    {"optional": (0,), "covariate_code": "embedding"},
    {"left_out": (0,), "encode_covariates": True, "condition_output": True},
    {"left_out": (0, 1), "covariate_code": "embedding", "encode_covariates": True},
]


def _model(**settings: Any) -> VAE:
    model = build(ModelConfig(**(BASE | settings)), seed=1).eval()
    if model.config.latent_library:
        model.get_buffer("blocks.library.log_mean_b").copy_(torch.tensor([1.0, 2.0, 6.0]))
        model.get_buffer("blocks.library.log_var_b").copy_(torch.tensor([0.1, 0.2, 0.6]))
    return model


def _of(make_cells: Callable[..., Cells], *codes: int) -> Cells:
    cells = make_cells(30)
    columns = torch.tensor(codes).expand(30, 3)
    numbers = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    return replace(cells, covariates=Covariates(columns, numbers))


@torch.no_grad()
def _seen(model: VAE, cells: Cells) -> list[torch.Tensor]:
    """Compute all outputs of a model for some cells."""
    batch = cells.batch(torch.arange(len(cells)))
    q = model.posterior(batch)["z"]
    distribution = model.likelihood({"z": q.loc}, batch.covariates, batch.log_library_n1)
    seen = [q.loc, q.scale, distribution.mean, distribution.variance]
    if model.config.latent_library:
        q_l = model.posterior(batch)["library"]
        seen += [q_l.loc, q_l.scale, *cast("NormalBlock", model.blocks["library"]).prior(batch.covariates)]
    return seen


@pytest.mark.parametrize("settings", CONFIGS)
def test_results_of_known_cells_and_the_model_do_not_change(make_cells: Callable[..., Cells], settings: dict) -> None:
    model = _model(**settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    new = extend(model, ADDED)
    assert new.config.n_categories == (5, 2, 2)
    for codes in ((0, 0, 0), (2, 1, 0)):
        cells = _of(make_cells, *codes)
        for a, b in zip(_seen(model, cells), _seen(new, cells), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("settings", CONFIGS)
def test_new_categories_are_equal_and_one_without_a_column_has_no_effect(
    make_cells: Callable[..., Cells], settings: dict
) -> None:
    new = extend(_model(**settings), ADDED)
    for one, other in (((3, 0, 0), (4, 0, 0)), ((1, 1, 0), (1, 1, 1))):
        for a, b in zip(*(_seen(new, _of(make_cells, *codes)) for codes in (one, other)), strict=True):
            torch.testing.assert_close(a, b)


def test_the_new_weights_are_the_mean_of_the_known_ones() -> None:
    model = _model(dispersion="gene-batch", condition_output=True, latent_library=True)
    new = extend(model, ADDED)
    # [z or hidden, 2 numbers, batch, second covariate] becomes [.., 2 numbers, 5 batches, second, 2 columns of the
    # third]
    for layer in ("decoder.body.linears.0", "decoder.body.linears.1", "decoder.location"):
        old, extended = model.get_parameter(f"{layer}.weight"), new.get_parameter(f"{layer}.weight")
        batches = old[:, -5:-2]
        torch.testing.assert_close(extended[:, -9:-6], batches)
        torch.testing.assert_close(extended[:, -6:-4], batches.mean(1, keepdim=True).expand(-1, 2))
        torch.testing.assert_close(extended[:, -4:-2], old[:, -2:])
        assert not extended[:, -2:].any()
    torch.testing.assert_close(new.decoder.log_dispersion[3:], model.decoder.log_dispersion.mean(0).expand(2, -1))
    torch.testing.assert_close(new.get_buffer("blocks.library.log_mean_b")[3:], torch.full((2,), 3.0))
    # mean of the variances and variance of the means 1, 2 and 6
    torch.testing.assert_close(new.get_buffer("blocks.library.log_var_b")[3:], torch.full((2,), 0.3 + 14 / 3))


def test_the_mean_is_of_the_learned_categories() -> None:
    learned = [np.array(mask) for mask in ([True, False, True], [True, True], [True])]
    model = _model(dispersion="gene-batch", latent_library=True)
    new = extend(model, ADDED, learned)
    old, extended = (m.get_parameter("decoder.body.linears.0.weight") for m in (model, new))
    batches = old[:, -5:-2]
    torch.testing.assert_close(extended[:, -9:-6], batches)
    torch.testing.assert_close(extended[:, -6:-4], batches[:, ::2].mean(1, keepdim=True).expand(-1, 2))
    of_theta = model.decoder.log_dispersion[::2].mean(0)
    torch.testing.assert_close(new.decoder.log_dispersion[3:], of_theta.expand(2, -1))
    # batches 0 and 2: log means 1 and 6, variances 0.1 and 0.6
    torch.testing.assert_close(new.get_buffer("blocks.library.log_mean_b")[3:], torch.full((2,), 3.5))
    torch.testing.assert_close(new.get_buffer("blocks.library.log_var_b")[3:], torch.full((2,), 0.35 + 6.25))
    known = (model := _model(covariate_code="embedding")).get_parameter("conditioner.embeddings.0.weight")
    embedded = extend(model, ADDED, learned).get_parameter("conditioner.embeddings.0.weight")
    torch.testing.assert_close(embedded[3:], known[::2].mean(0).expand(2, -1))


def test_the_new_embedding_is_the_mean_of_the_known_ones() -> None:
    model = _model(covariate_code="embedding")
    new = extend(model, ADDED)
    known, extended = (m.get_parameter("conditioner.embeddings.0.weight") for m in (model, new))
    torch.testing.assert_close(extended[3:], known.mean(0).expand(2, -1))
    assert not new.get_parameter("conditioner.embeddings.2.weight").any()


@pytest.mark.parametrize("settings", CONFIGS)
def test_weights_of_new_categories_affect_only_their_cells(make_cells: Callable[..., Cells], settings: dict) -> None:
    new = extend(_model(**settings), ADDED)
    known, unknown = _of(make_cells, 2, 1, 0), _of(make_cells, 4, 1, 1)
    before = _seen(new, known), _seen(new, unknown)
    masks = new_weights(new, ADDED)
    assert masks
    with torch.no_grad():
        for name, mask in masks.items():
            new.get_parameter(name)[mask] += torch.randn(int(mask.sum()), generator=torch.Generator().manual_seed(0))
    for a, b in zip(before[0], _seen(new, known), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(before[1][2], _seen(new, unknown)[2], rtol=1e-3)
    # the output for genes outside the model is fitted separately
    assert not any("readout" in name for name in masks)


def test_a_model_without_labels_has_the_mean_dispersion(make_cells: Callable[..., Cells]) -> None:
    model = _model(dispersion="gene-label", n_labels=4)
    without = forget_labels(model)
    cells = _of(make_cells, 0, 0, 0)
    assert cells.covariates.label_n is None
    assert all(bool(torch.isfinite(value).all()) for value in _seen(without, cells))
    torch.testing.assert_close(without.decoder.log_dispersion[0], model.decoder.log_dispersion.mean(0))
