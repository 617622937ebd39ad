from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import cast

import pytest
import torch

from vxpress.core.blocks import NormalBlock
from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Batch, Cells, gene_sums
from vxpress.core.model import build

CONFIG = ModelConfig(n_genes=20, n_latent=4, n_hidden=16, n_categories=(3,), has_batch=True)
MakeCells = Callable[..., Cells]


def _moved(batch: Batch, code: int) -> Batch:
    return replace(batch, covariates=batch.covariates.with_batch(code))


def test_the_same_seed_gives_the_same_bits_and_does_not_change_the_global_state(
    global_noise_untouched: Callable[[], AbstractContextManager[None]],
) -> None:
    with global_noise_untouched():
        first = build(CONFIG, 3).state_dict()
    torch.manual_seed(77)
    again, other = build(CONFIG, 3).state_dict(), build(CONFIG, 4).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["decoder.location.weight"], other["decoder.location.weight"])


def test_the_encoder_receives_covariates_only_if_requested(make_cells: MakeCells) -> None:
    batch = make_cells(8, n_batches=3).batch(torch.arange(8))
    blind, seeing = build(CONFIG, 0).eval(), build(replace(CONFIG, encode_covariates=True), 0).eval()
    assert torch.equal(blind.posterior(_moved(batch, 0))["z"].loc, blind.posterior(_moved(batch, 2))["z"].loc)
    assert not torch.allclose(seeing.posterior(_moved(batch, 0))["z"].loc, seeing.posterior(_moved(batch, 2))["z"].loc)


def test_the_posterior_ignores_the_observed_library(make_cells: MakeCells) -> None:
    batch = make_cells(8).batch(torch.arange(8))
    model = build(CONFIG, 0).eval()
    deeper = replace(batch, log_library_n1=batch.log_library_n1 + 3)
    assert torch.equal(model.posterior(batch)["z"].loc, model.posterior(deeper)["z"].loc)


def test_the_library_prior_is_the_one_of_the_batch() -> None:
    model = build(replace(CONFIG, latent_library=True), 0)
    model.get_buffer("blocks.library.log_mean_b").copy_(torch.tensor([1.0, 2.0, 3.0]))
    model.get_buffer("blocks.library.log_var_b").copy_(torch.tensor([0.1, 0.2, 0.3]))
    mean_n1, var_n1 = cast("NormalBlock", model.blocks["library"]).prior(
        Covariates(torch.tensor([[2], [0], [1]]), torch.zeros(3, 0))
    )
    assert mean_n1.tolist() == [[3.0], [1.0], [2.0]]
    torch.testing.assert_close(var_n1, torch.tensor([[0.3], [0.1], [0.2]]))


def test_a_library_prior_without_batches() -> None:
    model = build(ModelConfig(n_genes=20, latent_library=True, n_categories=(2,)), 0)
    model.get_buffer("blocks.library.log_mean_b").fill_(6.0)
    # the first covariate is not a batch here, so its codes are not used as an index
    mean_n1, var_n1 = cast("NormalBlock", model.blocks["library"]).prior(
        Covariates(torch.tensor([[1], [0]]), torch.zeros(2, 0))
    )
    assert mean_n1.tolist() == [[6.0], [6.0]]
    assert var_n1.tolist() == [[1.0], [1.0]]


def test_an_observed_library_has_no_posterior(make_cells: MakeCells) -> None:
    assert list(build(CONFIG, 0).posterior(make_cells(4).batch(torch.arange(4)))) == ["z"]


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli"])
@pytest.mark.parametrize("remainder", [False, True])
def test_training_starts_at_the_mean_profile(make_cells: MakeCells, likelihood: str, remainder: bool) -> None:
    cells = make_cells()
    rows = torch.arange(0, len(cells), 2)
    sums_g = gene_sums(cells, rows).clamp_min(0.5)
    if remainder:  # two of three molecules are from genes outside the model
        library_n1 = 3 * cells.counts.dense(torch.arange(len(cells))).sum(1, keepdim=True)
        cells = replace(cells, log_library_n1=library_n1.log())
    model = build(replace(CONFIG, likelihood=likelihood, remainder=remainder), 0).eval()  # type: ignore[arg-type]
    model.start_from(cells, rows)
    torch.nn.init.zeros_(model.decoder.location.weight)
    log_rho_ng, log_rest_n1 = model.decoder.locate(torch.zeros(1, model.decoder.location.in_features))
    share = 1 / 3 if remainder else 1.0
    torch.testing.assert_close(log_rho_ng[0].exp(), (share * sums_g / sums_g.sum()).float(), rtol=1e-3, atol=1e-6)
    if log_rest_n1 is not None:
        assert float(log_rest_n1.detach().exp()) == pytest.approx(2 / 3, rel=1e-3)


def test_a_gaussian_starts_at_mean_and_variance_of_the_log_values(make_cells: MakeCells) -> None:
    cells = make_cells()
    rows = torch.arange(len(cells))
    model = build(replace(CONFIG, likelihood="gaussian"), 0).eval()
    model.start_from(cells, rows)
    torch.nn.init.zeros_(model.decoder.location.weight)
    batch = cells.batch(rows)
    y_ng = torch.log1p(1e4 * batch.x_ng / batch.log_library_n1.exp())
    distribution = model.likelihood({"z": torch.zeros(len(cells), 4)}, batch.covariates, batch.log_library_n1)
    torch.testing.assert_close(distribution.mean[0], y_ng.mean(0))
    torch.testing.assert_close(distribution.variance[0], y_ng.var(0), rtol=0.02, atol=2e-3)


def test_a_gene_without_counts_has_finite_initial_values(make_cells: MakeCells) -> None:
    cells = make_cells()
    silent = replace(cells.counts, n_genes=21)
    model = build(replace(CONFIG, n_genes=21), 0)
    model.start_from(replace(cells, counts=silent), torch.arange(len(cells)))
    bias = model.decoder.location.bias
    assert torch.isfinite(bias).all()
    assert int(bias.argmin()) == 20
