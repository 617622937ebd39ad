"""A latent block in what is asked of a trained model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vxpress._keys import Keys
from vxpress.bridge.fits.weights import load_weights, stored_weights
from vxpress.core.inference.anomaly import evidence
from vxpress.core.inference.gaps import gaps
from vxpress.core.inference.group_expression import count_overdispersion, decode_units
from vxpress.core.inference.importance import log_likelihood
from vxpress.core.inference.posterior import Draws, Encoded, credible_expression, encode, expected_expression
from vxpress.core.inference.predictive_check import predictive_check
from vxpress.core.inference.response import decoder_response
from vxpress.core.training.dispersion import draw, has_dispersions, most_likely

from ._shift import OFFSET, G, MakeCells, decoded_shares, informed, make_config


def test_the_posterior_is_encoded_and_has_slots(make_cells: MakeCells) -> None:
    cells, model = make_cells(40, n_batches=2), informed(make_config())
    encoded = encode(model, cells)
    with torch.no_grad():
        q = model.posterior(cells.batch(torch.arange(40)))["shift"]
    np.testing.assert_array_equal(encoded.mean["shift"], q.loc.numpy())
    slots = model.blocks["shift"].slots(Keys.of("fit"), encoded.mean["shift"], encoded.var["shift"])
    assert list(slots["obsm"]) == ["fit_shift", "fit_shift_var"]
    np.testing.assert_allclose(slots["obsm"]["fit_shift_var"], q.scale.square().numpy(), rtol=1e-6)
    assert Keys.of(None).of_block("shift") == ("vae_shift", "vae_shift_var")


def test_weights_are_stored_and_loaded_under_their_names() -> None:
    model = informed(make_config(latent_library=True))
    stored = stored_weights(model)
    assert {"encoder.mean.bias", "library_encoder.mean.bias", "library_log_var_b", "blocks.shift.direction_d"} <= set(
        stored
    )
    again = load_weights(model.config, stored)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_likelihood_without_the_block_uses_its_prior_mean(make_cells: MakeCells) -> None:
    cells, model = make_cells(10, n_batches=2), informed(make_config())
    z = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        absent = model.likelihood({"z": z}, cells.covariates, cells.log_library_n1).mean
        given = model.likelihood({"z": z, "shift": torch.full((10, 1), OFFSET)}, cells.covariates, cells.log_library_n1)
    torch.testing.assert_close(absent, given.mean)


def test_stored_cells_are_decoded_at_draws_of_every_block(make_cells: MakeCells) -> None:
    cells, model = make_cells(10, n_batches=2), informed(make_config(latent_library=True))
    encoded, draws = encode(model, cells), Draws(3, (None,), 7)
    generator, shares = torch.Generator().manual_seed(7), []
    for _ in range(3):  # z and then the block, from one generator
        point = {
            name: torch.from_numpy(encoded.mean[name])
            + torch.from_numpy(encoded.var[name]).sqrt() * torch.randn(10, width, generator=generator)
            for name, width in (("z", 2), ("shift", 1))
        }
        shares.append(decoded_shares(model, cells, **point))
    (_, inside, _), *_ = expected_expression(model, encoded, cells.covariates, draws)
    torch.testing.assert_close(inside, torch.stack(shares).mean(0), rtol=1e-4, atol=1e-6)
    levels = (0.0, 0.5, 1.0)
    (_, (mean, *quantiles)), *_ = credible_expression(model, encoded, cells.covariates, draws, levels)
    torch.testing.assert_close(mean[0], inside, rtol=1e-4, atol=1e-6)
    ordered = torch.stack(shares).sort(0).values
    for (found, _), expected in zip(quantiles, ordered, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_groups_and_responses_are_decoded_at_the_posterior_of_every_block(make_cells: MakeCells) -> None:
    cells, model = make_cells(6, n_batches=2), informed(make_config())
    z, shift = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(-3, 3, 6)[:, None]
    encoded = Encoded.at({"z": z.numpy(), "shift": shift.numpy()})
    shares = decoded_shares(model, cells, z=z, shift=shift)
    found = decode_units(
        model,
        encoded,
        cells.covariates,
        np.array([0, 0, 0, 1, 1, 1]),
        2,
        batches=(None,),
        n_draws=1,
        seeds=np.arange(1),
    )
    np.testing.assert_allclose(found.mean_mg, shares.reshape(2, 3, G).mean(1).numpy(), rtol=1e-4)
    response = decoder_response(model, encoded, cells.covariates)
    for d in range(2):
        ends = z.repeat(2, 1, 1)
        ends[:, :, d] = z[:, d].mean() + torch.tensor([[-2.0], [2.0]]) * z[:, d].std(correction=0)
        low, high = (decoded_shares(model, cells, z=end, shift=shift) for end in ends)
        assert response[d] == pytest.approx(float(0.5 * (high - low).abs().sum(1).mean()), rel=1e-3)


def test_overdispersion_of_a_cell_is_that_at_the_posterior_of_every_block(make_cells: MakeCells) -> None:
    cells, model = make_cells(10, n_batches=2), informed(make_config(dispersion="gene-cell"))
    encoded = encode(model, cells)
    with torch.no_grad():
        point = model.posterior(cells.batch(torch.arange(10))).mean()
        found = model.likelihood(point, cells.covariates, cells.log_library_n1)
        expected = (found.variance - found.mean) / found.mean.square()
    np.testing.assert_allclose(
        count_overdispersion(model, encoded, cells.covariates), expected.mean(0).numpy(), rtol=1e-2
    )


@pytest.mark.parametrize("name", ["shift", "drawn"])
def test_gaps_count_the_divergence_of_every_block(make_cells: MakeCells, name: str) -> None:
    cells, model = make_cells(8, n_batches=2), informed(make_config(blocks=(name,)))
    found, expected = gaps(model, cells, seed=0, n_steps=20), log_likelihood(model, cells, 3000, seed=1)
    # 20 draws
    assert found.elbo_n.mean() == pytest.approx(expected.elbo_n.mean(), abs=3.0)
    assert found.amortisation > 0
    assert found.inference > 0


def test_analyses_run_over_all_blocks(make_cells: MakeCells) -> None:
    cells, model = make_cells(60, n_batches=2), informed(make_config())
    scores = evidence(model, cells, encode(model, cells).mean_nd)
    with torch.no_grad():
        point = model.posterior(cells.batch(torch.arange(60))).mean()
        log_p = model.log_likelihood(point, cells.batch(torch.arange(60)))["rna"]
    np.testing.assert_allclose(scores.parts_nk[:, 1], -log_p, rtol=1e-4)
    assert np.isfinite(predictive_check(model, cells, n_draws=2, seed=0).coverage).all()
    assert has_dispersions(model)
    drawn = draw(model, cells, torch.arange(60), torch.Generator().manual_seed(0))
    assert list(drawn[0].point) == ["z", "shift"]
    assert torch.isfinite(most_likely(model, cells, drawn)).all()
