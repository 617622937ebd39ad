"""Latent blocks, with one that is defined here: a shift that is added to z."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse, stats
from scipy.special import log_softmax, logsumexp
from torch import Tensor

from vxpress._keys import Keys
from vxpress.bridge.fits.weights import load_weights, stored_weights
from vxpress.core.blocks import BLOCKS, DecoderInputs, NormalBlock, Posterior
from vxpress.core.config import ModelConfig, PriorConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts
from vxpress.core.inference.anomaly import evidence
from vxpress.core.inference.gaps import gaps
from vxpress.core.inference.group_expression import count_overdispersion, decode_units
from vxpress.core.inference.importance import log_likelihood
from vxpress.core.inference.posterior import Draws, Encoded, credible_expression, encode, expected_expression
from vxpress.core.inference.predictive_check import predictive_check
from vxpress.core.inference.response import decoder_response
from vxpress.core.model import VAE, build
from vxpress.core.noise import Noise
from vxpress.core.normal import DiagonalNormal
from vxpress.core.objectives import ElboObjective, elbo, importance_terms
from vxpress.core.query.fine_tuning import Completed, _bound, fine_tune
from vxpress.core.query.masked import Missing, encode_masked
from vxpress.core.query.surgery import extend, new_weights
from vxpress.core.training import train
from vxpress.core.training.dispersion import draw, has_dispersions, most_likely
from vxpress.core.training.evaluation import evaluate

MakeCells = Callable[..., Cells]
G, VARIANCE, OFFSET = 20, 0.25, 0.5
BASE = ModelConfig(n_genes=G, n_latent=2, n_hidden=16, n_categories=(2,), has_batch=True, decoder="linear")


class Shift(NormalBlock):
    """A number with prior N(OFFSET, VARIANCE), times a learned direction, that is added to z."""

    name = "shift"

    def add_prior(self) -> None:
        self.direction_d = torch.nn.Parameter(torch.linspace(0.5, 1.0, self.config.n_latent))

    def prior(self, covariates: Covariates) -> tuple[Tensor, Tensor]:
        like = self.direction_d.detach()
        return like.new_full((1, 1), OFFSET), like.new_full((1, 1), VARIANCE)

    def enter(self, inputs: DecoderInputs, value: Tensor) -> DecoderInputs:
        return replace(inputs, z_nd=inputs.z_nd + value * self.direction_d)


class Drawn(Shift):
    """The same without a closed form of the divergence."""

    name = "drawn"
    analytic = False  # type: ignore[assignment]

    def kl(self, q: DiagonalNormal, value: Tensor, covariates: Covariates) -> Tensor:
        return (q.log_prob(value) - self.log_prior(value, covariates))[..., None]


class Depth(Shift):
    """A factor of the size factor."""

    name = "depth"

    def enter(self, inputs: DecoderInputs, value: Tensor) -> DecoderInputs:
        return replace(inputs, log_library_n1=inputs.log_library_n1 + value)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    for block in (Shift, Drawn, Depth):
        BLOCKS.register(block.name, block, own=True)
    yield
    for block in (Shift, Drawn, Depth):
        BLOCKS.remove(block.name)


def _config(**settings: Any) -> ModelConfig:
    return replace(BASE, **({"blocks": ("shift",)} | settings))


def _informed(config: ModelConfig) -> VAE:
    """A model whose decoder depends on z and whose posteriors differ from the priors."""
    model = build(config, 1).eval()
    with torch.no_grad():
        for block in model.blocks.values():
            block.encoder.log_variance.bias.fill_(-1.0)
    return model


def _log_p(model: VAE, x: np.ndarray, library: np.ndarray, shifted: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Compute log p(x | z + shift) with a linear decoder by numpy and scipy."""
    decoder = model.decoder
    weight, bias = (p.detach().double().numpy() for p in (decoder.location.weight, decoder.location.bias))
    theta = decoder.log_dispersion.detach().double().exp().numpy()
    condition = np.eye(2)[batch]
    condition = np.broadcast_to(condition, (*shifted.shape[:-1], 2))
    rho = np.exp(log_softmax(np.concatenate([shifted, condition], -1) @ weight.T + bias, axis=-1))
    return np.asarray(stats.nbinom.logpmf(x, theta, theta / (theta + library * rho)).sum(-1))


def _arrays(cells: Cells) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    batch = cells.batch(torch.arange(len(cells)))
    library = batch.log_library_n1.double().exp().numpy()
    return batch.x_ng.numpy(), library, batch.covariates.categorical_nk[:, 0].numpy()


# the posterior and points of it


def test_noise_is_split_among_the_blocks_in_order() -> None:
    q = Posterior(
        z=DiagonalNormal(torch.zeros(3, 2), torch.ones(3, 2)),
        shift=DiagonalNormal(torch.full((3, 1), 5.0), torch.full((3, 1), 2.0)),
    )
    eps = torch.arange(9.0).view(3, 3)
    point = q.at(eps)
    assert torch.equal(point["z"], eps[:, :2])
    assert torch.equal(point["shift"], 5.0 + 2.0 * eps[:, 2:])
    assert torch.equal(q.at({"z": eps[:, :2], "shift": eps[:, 2:]})["shift"], point["shift"])
    assert torch.equal(q.at(torch.stack([eps, -eps]))["shift"][1], 5.0 - 2.0 * eps[:, 2:])
    assert [v.tolist() for v in q.mean().values()] == [[[0.0, 0.0]] * 3, [[5.0]] * 3]
    asked = []

    def normal(like: Tensor) -> Tensor:
        asked.append(tuple(like.shape))
        return torch.ones_like(like)

    drawn = q.draw(normal)
    assert asked == [(3, 2), (3, 1)]
    assert drawn["shift"].tolist() == [[7.0]] * 3
    moved = q.replaced(z=DiagonalNormal(torch.ones(3, 2), torch.ones(3, 2)))
    assert moved.mean()["z"].tolist() == [[1.0, 1.0]] * 3
    assert q.mean()["z"].tolist() == [[0.0, 0.0]] * 3


def test_a_block_is_on_only_if_named() -> None:
    assert list(build(_config(), 0).blocks) == ["z", "shift"]
    assert list(build(_config(blocks=()), 0).blocks) == ["z"]
    assert list(build(_config(blocks=("shift",), latent_library=True), 0).blocks) == ["z", "library", "shift"]
    with pytest.raises(ValueError, match=r"blocks='shft' is not known; choose one of .*'shift'"):
        _config(blocks=("shft",))
    with pytest.raises(ValueError, match=r"names \['library'\], which other settings switch on"):
        _config(blocks=("library",))


def test_a_block_leaves_the_initial_posterior_of_z_as_it_is() -> None:
    with_it, without = build(_config(), 0).state_dict(), build(_config(blocks=()), 0).state_dict()
    changed = {name for name, value in without.items() if not torch.equal(value, with_it[name])}
    # the encoder of the block is drawn before the decoder
    assert all(name.startswith("decoder.") for name in changed)
    assert {name for name in with_it if name not in without} == {
        name for name in with_it if name.startswith("blocks.shift.")
    }


# bounds


def test_the_elbo_is_that_of_numpy(make_cells: MakeCells) -> None:
    cells, model = make_cells(30, n_batches=2), _informed(_config())
    batch = cells.batch(torch.arange(30))
    eps = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        terms, q = elbo(model, batch, Noise(0), eps), model.posterior(batch)
        assert torch.equal(elbo(model, batch, Noise(0)).value(), elbo(model, batch, Noise(0)).value())
    mean, sd = ({n: getattr(d, part).double().numpy() for n, d in q.items()} for part in ("loc", "scale"))
    eps_nd = eps.double().numpy()
    z, shift = mean["z"] + sd["z"] * eps_nd[:, :2], mean["shift"] + sd["shift"] * eps_nd[:, 2:]
    x, library, codes = _arrays(cells)
    exact = _log_p(model, x, library, z + shift * np.linspace(0.5, 1.0, 2), codes)
    np.testing.assert_allclose(terms.reconstruction["rna"], exact, rtol=1e-5)
    kl_z = 0.5 * (sd["z"] ** 2 + mean["z"] ** 2 - 1 - 2 * np.log(sd["z"])).sum(1)
    ratio = sd["shift"] ** 2 / VARIANCE
    kl_shift = 0.5 * (ratio + (mean["shift"] - OFFSET) ** 2 / VARIANCE - 1 - np.log(ratio))[:, 0]
    np.testing.assert_allclose(terms.kl["shift"][:, 0], kl_shift, rtol=1e-4, atol=1e-5)
    # beta is the weight of z alone
    np.testing.assert_allclose(terms.value(0.3), exact - 0.3 * kl_z - kl_shift, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", ["shift", "drawn"])
def test_importance_weights_have_the_ratio_of_every_block(make_cells: MakeCells, name: str) -> None:
    model, cells = _informed(_config(blocks=(name,))), make_cells(20, n_batches=2)
    batch = cells.batch(torch.arange(20))
    eps = torch.randn(20, 4, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        terms, q = importance_terms(model, batch, Noise(0), 4, eps), model.posterior(batch)
    x, library, codes = _arrays(cells)
    noise = eps.transpose(0, 1).double().numpy()
    log_ratio = {}
    point = {}
    for block, columns, prior in (("z", slice(0, 2), (0.0, 1.0)), (name, slice(2, 3), (OFFSET, VARIANCE**0.5))):
        mean, sd = q[block].loc.double().numpy(), q[block].scale.double().numpy()
        point[block] = mean + sd * noise[..., columns]
        log_ratio[block] = (stats.norm.logpdf(point[block], *prior) - stats.norm.logpdf(point[block], mean, sd)).sum(-1)
    log_p = _log_p(model, x, library, point["z"] + point[name] * np.linspace(0.5, 1.0, 2), codes)
    expected = log_p + 0.7 * log_ratio["z"] + log_ratio[name]
    np.testing.assert_allclose(terms.log_weight(0.7), expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(terms.value(0.7), logsumexp(expected, 0) - np.log(4), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["shift", "drawn"])
def test_the_importance_bound_reaches_the_evidence(make_cells: MakeCells, name: str) -> None:
    """The sum of z and shift is normal too, so the evidence is an integral over one number."""
    config = _config(n_latent=1, blocks=(name,))
    cells, model = make_cells(6, n_batches=2), _informed(config)
    with torch.no_grad():
        # counts say little about z, so a proposal somewhat wider than the prior covers the posterior
        model.decoder.location.weight.mul_(0.2)
        for block, (mean, variance) in zip(model.blocks.values(), ((0.0, 1.5), (OFFSET, 1.5 * VARIANCE)), strict=True):
            for layer, value in ((block.encoder.mean, mean), (block.encoder.log_variance, np.log(variance))):
                layer.weight.mul_(0.1)
                layer.bias.fill_(value)
    found = log_likelihood(model, cells, 4000, seed=0)
    direction = 0.5
    prior = stats.norm(direction * OFFSET, np.sqrt(1 + direction**2 * VARIANCE))
    u = np.linspace(-8, 8, 2001)
    x, library, codes = _arrays(cells)
    log_joint = _log_p(model, x[:, None], library[:, None], np.tile(u[:, None], (6, 1, 1)), codes[:, None])
    exact = logsumexp(log_joint + prior.logpdf(u), axis=1) + np.log(u[1] - u[0])
    np.testing.assert_allclose(found.log_likelihood_n, exact, atol=0.03)
    assert (found.elbo_n < exact).all()


# training


@pytest.mark.parametrize("objective", ["elbo", "dreg"])
def test_training_records_the_divergence_of_a_block(make_cells: MakeCells, objective: str) -> None:
    cells, rows, model = make_cells(120, n_batches=2), torch.arange(120), build(_config(), 0)
    model.start_from(cells, rows)
    model.start_blocks(cells, rows, torch.Generator().manual_seed(0))
    config = TrainConfig(max_epochs=3, batch_size=40, objective=objective, refit_dispersion=False)  # type: ignore[arg-type]
    before = {name: p.detach().clone() for name, p in model.blocks["shift"].named_parameters()}
    history: dict[str, Any] = train(model, cells, rows[30:], rows[:30], config, seed=0).history
    for part in ("train", "validation"):
        parts = [np.array(history[f"{term}_{part}"]) for term in ("reconstruction", "kl", "kl_shift")]
        np.testing.assert_allclose(history[f"elbo_{part}"], parts[0] - parts[1] - parts[2], rtol=1e-12)
        assert (parts[2] > 0).all()
    assert {len(values) for values in history.values()} == {3}
    after = dict(model.blocks["shift"].named_parameters())
    unmoved = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert unmoved <= {"encoder.body.linears.0.bias"}, "batch norm removes this bias"


def test_evaluation_gives_means_by_name(make_cells: MakeCells) -> None:
    cells, rows, model = make_cells(50, n_batches=2), torch.arange(50), _informed(_config())
    eps = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    means = evaluate(model, cells, rows, eps, ElboObjective(TrainConfig(max_epochs=1), model))
    with torch.no_grad():
        terms = elbo(model, cells.batch(rows), Noise(0), eps)
    assert means.kl == pytest.approx({name: float(value.sum(-1).mean()) for name, value in terms.kl.items()}, rel=1e-5)
    assert means.kl_per_column["z"] == pytest.approx(terms.kl["z"].mean(0).tolist(), rel=1e-5)
    assert means.elbo == pytest.approx(float(terms.value().mean()), rel=1e-6)


def test_a_copy_of_a_model_has_its_own_prior(make_cells: MakeCells) -> None:
    model = build(_config(prior=PriorConfig.of("vamp", n_components=3)), 0).eval()
    twin = copy.deepcopy(model)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.prior.log_prob(z)
        assert torch.equal(twin.prior.log_prob(z), before)
        twin.encoder.mean.bias.add_(1.0)
        assert torch.equal(model.prior.log_prob(z), before)
        assert not torch.equal(twin.prior.log_prob(z), before)


# a trained model


def test_the_posterior_is_encoded_and_has_slots(make_cells: MakeCells) -> None:
    cells, model = make_cells(40, n_batches=2), _informed(_config())
    encoded = encode(model, cells)
    with torch.no_grad():
        q = model.posterior(cells.batch(torch.arange(40)))["shift"]
    np.testing.assert_array_equal(encoded.mean["shift"], q.loc.numpy())
    slots = model.blocks["shift"].slots(Keys.of("fit"), encoded.mean["shift"], encoded.var["shift"])
    assert list(slots["obsm"]) == ["fit_shift", "fit_shift_var"]
    np.testing.assert_allclose(slots["obsm"]["fit_shift_var"], q.scale.square().numpy(), rtol=1e-6)
    assert Keys.of(None).of_block("shift") == ("vae_shift", "vae_shift_var")


def test_weights_are_stored_and_loaded_under_their_names() -> None:
    model = _informed(_config(latent_library=True))
    stored = stored_weights(model)
    assert {"encoder.mean.bias", "library_encoder.mean.bias", "library_log_var_b", "blocks.shift.direction_d"} <= set(
        stored
    )
    again = load_weights(model.config, stored)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_likelihood_without_the_block_uses_its_prior_mean(make_cells: MakeCells) -> None:
    cells, model = make_cells(10, n_batches=2), _informed(_config())
    z = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        absent = model.likelihood({"z": z}, cells.covariates, cells.log_library_n1).mean
        given = model.likelihood({"z": z, "shift": torch.full((10, 1), OFFSET)}, cells.covariates, cells.log_library_n1)
    torch.testing.assert_close(absent, given.mean)


def _shares(model: VAE, cells: Cells, **point: Tensor) -> Tensor:
    """Compute decoded shares from the likelihood at a point."""
    with torch.no_grad():
        return model.likelihood(point, cells.covariates, cells.log_library_n1).mean / cells.log_library_n1.exp()


def test_stored_cells_are_decoded_at_draws_of_every_block(make_cells: MakeCells) -> None:
    cells, model = make_cells(10, n_batches=2), _informed(_config(latent_library=True))
    encoded, draws = encode(model, cells), Draws(3, (None,), 7)
    generator, shares = torch.Generator().manual_seed(7), []
    for _ in range(3):  # z and then the block, from one generator
        point = {
            name: torch.from_numpy(encoded.mean[name])
            + torch.from_numpy(encoded.var[name]).sqrt() * torch.randn(10, width, generator=generator)
            for name, width in (("z", 2), ("shift", 1))
        }
        shares.append(_shares(model, cells, **point))
    (_, inside, _), *_ = expected_expression(model, encoded, cells.covariates, draws)
    torch.testing.assert_close(inside, torch.stack(shares).mean(0), rtol=1e-4, atol=1e-6)
    levels = (0.0, 0.5, 1.0)
    (_, (mean, *quantiles)), *_ = credible_expression(model, encoded, cells.covariates, draws, levels)
    torch.testing.assert_close(mean[0], inside, rtol=1e-4, atol=1e-6)
    ordered = torch.stack(shares).sort(0).values
    for (found, _), expected in zip(quantiles, ordered, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_groups_and_responses_are_decoded_at_the_posterior_of_every_block(make_cells: MakeCells) -> None:
    cells, model = make_cells(6, n_batches=2), _informed(_config())
    z, shift = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(-3, 3, 6)[:, None]
    encoded = Encoded.at({"z": z.numpy(), "shift": shift.numpy()})
    shares = _shares(model, cells, z=z, shift=shift)
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
        low, high = (_shares(model, cells, z=end, shift=shift) for end in ends)
        assert response[d] == pytest.approx(float(0.5 * (high - low).abs().sum(1).mean()), rel=1e-3)


def test_overdispersion_of_a_cell_is_that_at_the_posterior_of_every_block(make_cells: MakeCells) -> None:
    cells, model = make_cells(10, n_batches=2), _informed(_config(dispersion="gene-cell"))
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
    cells, model = make_cells(8, n_batches=2), _informed(_config(blocks=(name,)))
    found, expected = gaps(model, cells, seed=0, n_steps=20), log_likelihood(model, cells, 3000, seed=1)
    # 20 draws
    assert found.elbo_n.mean() == pytest.approx(expected.elbo_n.mean(), abs=3.0)
    assert found.amortisation > 0
    assert found.inference > 0


def test_analyses_run_over_all_blocks(make_cells: MakeCells) -> None:
    cells, model = make_cells(60, n_batches=2), _informed(_config())
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


def test_missing_genes_are_filled_in_for_every_block(make_cells: MakeCells) -> None:
    cells, model = make_cells(12, n_batches=2), _informed(_config())
    observed = torch.ones(G, dtype=torch.bool)
    everything = encode_masked(model, cells, Missing(observed, library_known=True)).encoded
    plain = encode(model, cells)
    np.testing.assert_allclose(everything.mean["shift"], plain.mean["shift"], rtol=1e-4, atol=1e-5)
    missing, x_ng = torch.tensor([3, 7]), cells.batch(torch.arange(12)).x_ng
    left_out = x_ng.clone()
    left_out[:, missing] = 0.0
    without = replace(cells, counts=Counts.from_scipy(sparse.csr_matrix(left_out.numpy())))
    with torch.no_grad():
        batch, log_x_nm = without.batch(torch.arange(12)), x_ng[:, missing].log1p()
        filled = model.blocks["shift"].filled_encoder(batch, None, missing)(log_x_nm)
    np.testing.assert_allclose(filled.loc, plain.mean["shift"], rtol=1e-4, atol=1e-5)
    observed[missing] = False
    # one round by hand: expected counts at the posterior of all blocks with zeros, then all blocks again
    some = encode_masked(model, without, Missing(observed, library_known=True), n_rounds=1).encoded
    with torch.no_grad():
        distribution = model.likelihood(model.posterior(batch).mean(), batch.covariates, batch.log_library_n1)
        log_x_nm = distribution.at(slice(None), missing).expected_log1p(torch.zeros(12, 1))
        for name in ("z", "shift"):
            filled = model.blocks[name].filled_encoder(batch, None, missing)(log_x_nm)
            np.testing.assert_allclose(some.mean[name], filled.loc, rtol=1e-4, atol=1e-5)


def test_the_library_of_cells_with_missing_genes_is_without_the_factor_of_a_block(make_cells: MakeCells) -> None:
    cells, model = make_cells(12, n_batches=2), _informed(_config(blocks=("depth",)))
    observed = torch.arange(G) < 15
    x_ng = cells.batch(torch.arange(12)).x_ng * observed
    part = replace(cells, counts=Counts.from_scipy(sparse.csr_matrix(x_ng.numpy())))

    def libraries() -> Tensor:
        return encode_masked(model, part, Missing(observed, library_known=False), n_rounds=1).log_library_n1

    before = libraries()
    with torch.no_grad():
        model.blocks["depth"].encoder.mean.bias.add_(2.0)
    torch.testing.assert_close(libraries(), before)
    share_n = _shares(model, cells, **model.posterior(part.batch(torch.arange(12))).mean())
    factor_n = model.posterior(part.batch(torch.arange(12)))["depth"].loc[:, 0].exp()
    expected = cells.log_library_n1[:, 0] - (share_n[:, observed].sum(1) / factor_n).log()
    torch.testing.assert_close(before[:, 0], expected.detach(), rtol=1e-4, atol=1e-4)


def test_fine_tuning_on_measured_genes_decodes_at_the_posterior_of_every_block(make_cells: MakeCells) -> None:
    cells, model = make_cells(8, n_batches=2), _informed(_config())
    observed, batch, shift = torch.arange(G) < 15, cells.batch(torch.tensor([1, 3])), torch.linspace(-3, 3, 8)[:, None]
    eps = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = _bound(model, batch, Noise(0), eps, Completed(observed, torch.zeros(8, 16), {"shift": shift}))
        q = model.posterior(batch)["z"]
        z = q.rsample(eps[:, :2])
        distribution = model.likelihood({"z": z, "shift": shift[[1, 3]]}, batch.covariates, batch.log_library_n1)
        expected = distribution.log_prob(batch.x_ng)[:, observed].sum(-1) - model.prior.kl(q, z).sum(-1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("encode_covariates", [False, True])
def test_new_categories(make_cells: MakeCells, encode_covariates: bool) -> None:
    cells = make_cells(40, n_batches=2)
    model = _informed(_config(encode_covariates=encode_covariates))
    new = extend(model, [1])
    batch = cells.batch(torch.arange(40))
    with torch.no_grad():
        torch.testing.assert_close(new.posterior(batch)["shift"].loc, model.posterior(batch)["shift"].loc)
    assert any(name.startswith("blocks.shift.") for name in new_weights(new, [1])) == encode_covariates
    moved = replace(cells, covariates=cells.covariates.with_batch(2))
    rows = torch.arange(40)
    tuned = fine_tune(new, moved, [1], rows[8:], rows[:8], max_epochs=2, seed=0)
    assert np.isfinite([tuned.before, tuned.after]).all()
