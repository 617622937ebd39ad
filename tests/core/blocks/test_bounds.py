"""The posterior of a latent block, points of it, and the bounds and training that count it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor

from vxpress.core.blocks import Posterior
from vxpress.core.config import PriorConfig, TrainConfig
from vxpress.core.inference.importance import log_likelihood
from vxpress.core.model import build
from vxpress.core.noise import Noise
from vxpress.core.normal import DiagonalNormal
from vxpress.core.objectives import ElboObjective, elbo, importance_terms
from vxpress.core.training import train
from vxpress.core.training.evaluation import evaluate

from ._shift import OFFSET, VARIANCE, MakeCells, arrays, informed, log_density, make_config


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
    assert list(build(make_config(), 0).blocks) == ["z", "shift"]
    assert list(build(make_config(blocks=()), 0).blocks) == ["z"]
    assert list(build(make_config(blocks=("shift",), latent_library=True), 0).blocks) == ["z", "library", "shift"]
    with pytest.raises(ValueError, match=r"blocks='shft' is not known; choose one of .*'shift'"):
        make_config(blocks=("shft",))
    with pytest.raises(ValueError, match=r"names \['library'\], which other settings switch on"):
        make_config(blocks=("library",))


def test_a_block_leaves_the_initial_posterior_of_z_as_it_is() -> None:
    with_it, without = build(make_config(), 0).state_dict(), build(make_config(blocks=()), 0).state_dict()
    changed = {name for name, value in without.items() if not torch.equal(value, with_it[name])}
    # the encoder of the block is drawn before the decoder
    assert all(name.startswith("decoder.") for name in changed)
    assert {name for name in with_it if name not in without} == {
        name for name in with_it if name.startswith("blocks.shift.")
    }


def test_the_elbo_is_that_of_numpy(make_cells: MakeCells) -> None:
    cells, model = make_cells(30, n_batches=2), informed(make_config())
    batch = cells.batch(torch.arange(30))
    eps = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        terms, q = elbo(model, batch, Noise(0), eps), model.posterior(batch)
        assert torch.equal(elbo(model, batch, Noise(0)).value(), elbo(model, batch, Noise(0)).value())
    mean, sd = ({n: getattr(d, part).double().numpy() for n, d in q.items()} for part in ("loc", "scale"))
    eps_nd = eps.double().numpy()
    z, shift = mean["z"] + sd["z"] * eps_nd[:, :2], mean["shift"] + sd["shift"] * eps_nd[:, 2:]
    x, library, codes = arrays(cells)
    exact = log_density(model, x, library, z + shift * np.linspace(0.5, 1.0, 2), codes)
    np.testing.assert_allclose(terms.reconstruction["rna"], exact, rtol=1e-5)
    kl_z = 0.5 * (sd["z"] ** 2 + mean["z"] ** 2 - 1 - 2 * np.log(sd["z"])).sum(1)
    ratio = sd["shift"] ** 2 / VARIANCE
    kl_shift = 0.5 * (ratio + (mean["shift"] - OFFSET) ** 2 / VARIANCE - 1 - np.log(ratio))[:, 0]
    np.testing.assert_allclose(terms.kl["shift"][:, 0], kl_shift, rtol=1e-4, atol=1e-5)
    # beta is the weight of z alone
    np.testing.assert_allclose(terms.value(0.3), exact - 0.3 * kl_z - kl_shift, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", ["shift", "drawn"])
def test_importance_weights_have_the_ratio_of_every_block(make_cells: MakeCells, name: str) -> None:
    model, cells = informed(make_config(blocks=(name,))), make_cells(20, n_batches=2)
    batch = cells.batch(torch.arange(20))
    eps = torch.randn(20, 4, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        terms, q = importance_terms(model, batch, Noise(0), 4, eps), model.posterior(batch)
    x, library, codes = arrays(cells)
    noise = eps.transpose(0, 1).double().numpy()
    log_ratio = {}
    point = {}
    for block, columns, prior in (("z", slice(0, 2), (0.0, 1.0)), (name, slice(2, 3), (OFFSET, VARIANCE**0.5))):
        mean, sd = q[block].loc.double().numpy(), q[block].scale.double().numpy()
        point[block] = mean + sd * noise[..., columns]
        log_ratio[block] = (stats.norm.logpdf(point[block], *prior) - stats.norm.logpdf(point[block], mean, sd)).sum(-1)
    log_p = log_density(model, x, library, point["z"] + point[name] * np.linspace(0.5, 1.0, 2), codes)
    expected = log_p + 0.7 * log_ratio["z"] + log_ratio[name]
    np.testing.assert_allclose(terms.log_weight(0.7), expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(terms.value(0.7), logsumexp(expected, 0) - np.log(4), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["shift", "drawn"])
def test_the_importance_bound_reaches_the_evidence(make_cells: MakeCells, name: str) -> None:
    """The sum of z and shift is normal too, so the evidence is an integral over one number."""
    config = make_config(n_latent=1, blocks=(name,))
    cells, model = make_cells(6, n_batches=2), informed(config)
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
    x, library, codes = arrays(cells)
    log_joint = log_density(model, x[:, None], library[:, None], np.tile(u[:, None], (6, 1, 1)), codes[:, None])
    exact = logsumexp(log_joint + prior.logpdf(u), axis=1) + np.log(u[1] - u[0])
    np.testing.assert_allclose(found.log_likelihood_n, exact, atol=0.03)
    assert (found.elbo_n < exact).all()


@pytest.mark.parametrize("objective", ["elbo", "dreg"])
def test_training_records_the_divergence_of_a_block(make_cells: MakeCells, objective: str) -> None:
    cells, rows, model = make_cells(120, n_batches=2), torch.arange(120), build(make_config(), 0)
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
    cells, rows, model = make_cells(50, n_batches=2), torch.arange(50), informed(make_config())
    eps = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    means = evaluate(model, cells, rows, eps, ElboObjective(TrainConfig(max_epochs=1), model))
    with torch.no_grad():
        terms = elbo(model, cells.batch(rows), Noise(0), eps)
    assert means.kl == pytest.approx({name: float(value.sum(-1).mean()) for name, value in terms.kl.items()}, rel=1e-5)
    assert means.kl_per_column["z"] == pytest.approx(terms.kl["z"].mean(0).tolist(), rel=1e-5)
    assert means.elbo == pytest.approx(float(terms.value().mean()), rel=1e-6)


def test_a_copy_of_a_model_has_its_own_prior(make_cells: MakeCells) -> None:
    model = build(make_config(prior=PriorConfig.of("vamp", n_components=3)), 0).eval()
    twin = copy.deepcopy(model)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.prior.log_prob(z)
        assert torch.equal(twin.prior.log_prob(z), before)
        twin.encoder.mean.bias.add_(1.0)
        assert torch.equal(model.prior.log_prob(z), before)
        assert not torch.equal(twin.prior.log_prob(z), before)
