"""Decoded expression of groups, compared with plain means of decoded cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.inference.group_expression import count_overdispersion, decode_units, subsample
from vxpress.core.inference.posterior import Encoded
from vxpress.core.model import VAE, build


def model_of(**settings: object) -> VAE:
    return build(
        ModelConfig(n_genes=7, n_latent=3, n_hidden=8, n_categories=(2,), has_batch=True, **settings), seed=0
    ).eval()


def covariates(n: int) -> Covariates:
    return Covariates(torch.arange(n)[:, None] % 2, torch.zeros(n, 0))


def test_sums_over_units_are_those_of_decoded_cells():
    model, n = model_of(), 30
    mean_nd = torch.randn(n, 3, generator=torch.Generator().manual_seed(1))
    unit_n = np.arange(n) % 4
    found = decode_units(
        model,
        Encoded.at({"z": mean_nd.numpy()}),
        covariates(n),
        unit_n,
        4,
        batches=(0, 1),
        n_draws=4,
        seeds=np.arange(4),
    )
    distribution = [
        model.likelihood({"z": mean_nd}, covariates(n).with_batch(b), torch.zeros(n, 1)).mean for b in (0, 1)
    ]
    rho = torch.stack(distribution).double().detach().numpy()
    for m in range(4):
        cells = rho[:, unit_n == m]
        np.testing.assert_allclose(found.mean_mg[m], cells.mean((0, 1)), rtol=1e-4)
        np.testing.assert_allclose(found.variance_mg[m], cells.var((0, 1)), rtol=1e-2, atol=1e-8)


def test_posterior_variance_adds_to_the_variance():
    model, n = model_of(), 400
    zeros_nd, unit_n = np.zeros((n, 3), np.float32), np.zeros(n, dtype=np.int64)
    sure, unsure = (
        decode_units(
            model,
            Encoded({"z": zeros_nd}, {"z": zeros_nd + np.float32(v)}),
            covariates(n),
            unit_n,
            1,
            batches=(0,),
            n_draws=3,
            seeds=np.arange(3),
        )
        for v in (1e-12, 1.0)
    )
    assert (unsure.variance_mg > 10 * sure.variance_mg).all()


def test_a_subsample_takes_all_of_small_groups_and_some_of_large_ones():
    code = np.array([0] * 50 + [1] * 3 + [-1] * 20)
    chosen = subsample(code, 10, np.random.default_rng(0))
    assert (np.bincount(code[chosen]) == [10, 3]).all()
    assert (np.diff(chosen) > 0).all()
    assert not np.array_equal(chosen, subsample(code, 10, np.random.default_rng(1)))


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_overdispersion_is_the_inverse_of_theta(dispersion):
    model, n = model_of(dispersion=dispersion), 12
    distribution = model.likelihood({"z": torch.zeros(n, 3)}, covariates(n), torch.zeros(n, 1))
    found = count_overdispersion(model, Encoded.at({"z": np.zeros((n, 3))}), covariates(n))
    by_cell = (
        ((distribution.variance - distribution.mean) / distribution.mean**2).expand(n, 7).double().detach().numpy()
    )
    np.testing.assert_allclose(found, by_cell.mean(0), rtol=1e-3)
    assert (
        count_overdispersion(model_of(likelihood="poisson"), Encoded.at({"z": np.zeros((n, 3))}), covariates(n)) == 0
    ).all()
