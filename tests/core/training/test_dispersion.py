"""Refit of the dispersions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from scipy import optimize, sparse, stats

from vxpress.core import rule
from vxpress.core.config import ModelConfig
from vxpress.core.data import Cells, Counts
from vxpress.core.inference.importance import log_likelihood
from vxpress.core.model import VAE, build
from vxpress.core.threads import OneThread, decided
from vxpress.core.training import dispersion
from vxpress.core.training.dispersion import (
    HIGHEST,
    LOWEST,
    PRIOR_SD,
    Drawn,
    Slope,
    climb,
    draw,
    has_dispersions,
    most_likely,
    refit,
    shifted,
)


def _model(n_genes: int, **settings: object) -> VAE:
    model = build(ModelConfig(n_genes=n_genes, n_latent=2, n_hidden=8, **settings), seed=0)
    with torch.no_grad():
        # decoded expression does not depend on z
        model.decoder.location.weight.zero_()
        model.decoder.location.bias.zero_()
        model.decoder.log_dispersion.zero_()
    return model.eval()


def _fitted(model: VAE, cells: Cells) -> np.ndarray:
    """Compute the most likely dispersions over all cells."""
    return most_likely(model, cells, _drawn(model, cells)).exp().numpy()


def _drawn(model: VAE, cells: Cells) -> list[Drawn]:
    return draw(model, cells, torch.arange(len(cells)), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("theta", [0.5, 5.0, 60.0])
def test_theta_is_the_maximum_of_each_genes_likelihood(
    make_cells: Callable[..., Cells], theta: float, *, plain: bool
) -> None:
    rng, n, g = np.random.default_rng(0), 2000, 4
    library = np.full((n, 1), 4 * 80.0)
    x = rng.poisson(rng.gamma(theta, 80.0 / theta, size=(n, g))).astype(np.float32)
    cells = replace(
        make_cells(n, g),
        counts=Counts.from_scipy(sparse.csr_matrix(x)),
        log_library_n1=torch.tensor(np.log(library), dtype=torch.float32),
    )
    with rule.plain() if plain else nullcontext():
        found = _fitted(_model(g), cells)[0]
    for j in range(g):
        best = optimize.minimize_scalar(
            lambda t, j=j: (
                -stats.nbinom.logpmf(x[:, j], np.exp(t), np.exp(t) / (np.exp(t) + 80)).sum() + 0.5 * (t / PRIOR_SD) ** 2
            ),
            bounds=(-4, 7),
            method="bounded",
        )
        assert found[j] == pytest.approx(np.exp(best.x), rel=0.05)
    assert found.mean() == pytest.approx(theta, rel=0.15)


def test_batches_have_their_own_dispersions(make_cells: Callable[..., Cells]) -> None:
    rng, n = np.random.default_rng(1), 3000
    cells = make_cells(n, 3, n_batches=2)
    theta = np.where(np.arange(n) % 2, 20.0, 1.0)[:, None]
    x = rng.poisson(rng.gamma(theta, 50.0 / theta, size=(n, 3))).astype(np.float32)
    cells = replace(
        cells, counts=Counts.from_scipy(sparse.csr_matrix(x)), log_library_n1=torch.full((n, 1), float(np.log(150)))
    )
    model = _model(3, n_categories=(2,), has_batch=True, dispersion="gene-batch")
    found = _fitted(model, cells)
    np.testing.assert_allclose(found.mean(1), [1.0, 20.0], rtol=0.12)


def test_genes_without_counts_keep_their_dispersion(make_cells: Callable[..., Cells]) -> None:
    cells = replace(make_cells(60, 3), counts=Counts.from_scipy(sparse.csr_matrix((60, 3), dtype=np.float32)))
    model = _model(3)
    with torch.no_grad():
        model.decoder.location.bias.copy_(torch.tensor([-20.0, -20.0, 20.0]))
        model.decoder.log_dispersion.copy_(torch.tensor([[1.0, -1.0, 0.0]]))
    np.testing.assert_allclose(np.log(_fitted(model, cells)[0, :2]), [1.0, -1.0], atol=1e-3)


def test_zero_inflation_is_accounted_for(make_cells: Callable[..., Cells]) -> None:
    rng, n = np.random.default_rng(2), 4000
    x = rng.poisson(rng.gamma(8.0, 60.0 / 8.0, size=(n, 2))) * (rng.random((n, 2)) > 0.3)
    cells = replace(
        make_cells(n, 2),
        counts=Counts.from_scipy(sparse.csr_matrix(x.astype(np.float32))),
        log_library_n1=torch.full((n, 1), float(np.log(120))),
    )
    model = _model(2, likelihood="zinb")
    with torch.no_grad():
        gate = cast("torch.nn.Linear", model.decoder.heads["gate"])
        gate.weight.zero_()
        gate.bias.fill_(float(np.log(0.3 / 0.7)))
    np.testing.assert_allclose(_fitted(model, cells)[0], 8.0, rtol=0.15)


def test_climb_ends_at_the_maximum_or_at_the_bound() -> None:
    top = torch.tensor([-3.0, 0.2, 1.0, 6.5, 40.0, -40.0, 2.0])
    start = torch.tensor([2.0, 0.0, 1.0, -3.9, 0.0, 1.0, -1.0])

    def slope(t: torch.Tensor) -> torch.Tensor:
        # steep on one side and flat on the other, as for a likelihood; the last one has no slope
        out = 50.0 * (top - t) / (1.0 + (t + 5.0).exp())
        return torch.cat((out[:-1], torch.full((1,), torch.nan)))

    found = climb(slope, start, -4.0, 7.0)
    np.testing.assert_allclose(found.numpy(), [-3.0, 0.2, 1.0, 6.5, 7.0, -4.0, -1.0], atol=0.05)


@pytest.mark.parametrize("lost", [0.5, 1.5, 3.5])
def test_a_slope_that_becomes_nan_gives_a_finite_result(lost: float) -> None:
    def slope(t: torch.Tensor) -> torch.Tensor:
        return torch.where(t > lost, torch.nan, 2.9 - t)

    found = climb(slope, torch.zeros(2), -4.0, 7.0)
    assert bool(((found >= -4) & (found <= 7)).all())


def _overdispersed(make_cells: Callable[..., Cells], n: int) -> Cells:
    x = np.random.default_rng(0).poisson(np.random.default_rng(1).gamma(3.0, 20.0, size=(n, 4)))
    return replace(
        make_cells(n, 4),
        counts=Counts.from_scipy(sparse.csr_matrix(x.astype(np.float32))),
        log_library_n1=torch.full((n, 1), float(np.log(240))),
    )


@pytest.mark.parametrize("plain", [False, True])
def test_the_shift_maximises_the_likelihood_of_the_cells(make_cells: Callable[..., Cells], *, plain: bool) -> None:
    model, cells = _model(4), _overdispersed(make_cells, 300)
    with torch.no_grad():
        model.decoder.log_dispersion.copy_(torch.tensor([[3.0, 2.0, 4.0, 3.5]]))
    start = model.decoder.log_dispersion.detach().clone()
    with rule.plain() if plain else nullcontext():
        shift = (shifted(model, cells, _drawn(model, cells)) - start).numpy()
    np.testing.assert_allclose(shift, shift[0, 0], atol=1e-5)

    def total(s: float) -> float:
        theta = np.exp(start.numpy() + s)
        return float(
            stats.nbinom.logpmf(cells.counts.dense(torch.arange(300)).numpy(), theta, theta / (theta + 60)).sum()
        )

    best = optimize.minimize_scalar(lambda s: -total(s), bounds=(-5, 5), method="bounded")
    assert shift[0, 0] == pytest.approx(best.x, abs=0.02)


def test_genes_of_similar_expression_are_shifted_together(make_cells: Callable[..., Cells]) -> None:
    # 60 genes with means of 2 and theta 0.5, 60 with means of 40 and theta 8
    rng, n = np.random.default_rng(3), 200
    theta, mean = np.repeat([0.5, 8.0], 60), np.repeat([2.0, 40.0], 60)
    x = rng.poisson(rng.gamma(theta, mean / theta, size=(n, 120)))
    cells = replace(
        make_cells(n, 120),
        counts=Counts.from_scipy(sparse.csr_matrix(x.astype(np.float32))),
        log_library_n1=torch.full((n, 1), float(np.log(mean.sum()))),
    )
    model = _model(120)
    with torch.no_grad():
        model.decoder.location.bias.copy_(torch.tensor(np.log(mean)))
        model.decoder.log_dispersion.fill_(1.0)
    found = shifted(model, cells, _drawn(model, cells)).numpy()[0]
    np.testing.assert_allclose(np.exp(found), theta, rtol=0.15)
    assert len(np.unique(found)) == 2


@pytest.mark.parametrize(("distribution", "bound"), [("poisson", HIGHEST), ("wild", LOWEST)])
def test_a_shift_ends_at_the_bounds(make_cells: Callable[..., Cells], distribution: str, bound: float) -> None:
    rng, n = np.random.default_rng(4), 50
    x = rng.poisson(2000.0, size=(n, 4)) if distribution == "poisson" else 100_000 * (rng.uniform(size=(n, 4)) < 0.02)
    cells = replace(
        make_cells(n, 4),
        counts=Counts.from_scipy(sparse.csr_matrix(x.astype(np.float32))),
        log_library_n1=torch.full((n, 1), float(np.log(8000))),
    )
    model = _model(4)
    found = shifted(model, cells, _drawn(model, cells))
    assert bool(((found >= LOWEST) & (found <= HIGHEST)).all())
    assert float((found - bound).abs().max()) < 0.6


def test_a_refit_improves_held_out_cells_and_changes_only_dispersions(make_cells: Callable[..., Cells]) -> None:
    model, cells = _model(4), _overdispersed(make_cells, 400)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gain = refit(model, cells, torch.arange(300), torch.arange(300, 400), seed=0)
    np.testing.assert_allclose(model.decoder.log_dispersion.detach().exp().numpy(), 3.0, rtol=0.25)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"decoder.log_dispersion"}
    # z has no information here, so the bound is the likelihood itself
    x = cells.counts.dense(torch.arange(300, 400)).numpy()
    theta = model.decoder.log_dispersion.detach().exp().numpy()
    here, there = (stats.nbinom.logpmf(x, t, t / (t + 60)).sum(1).mean() for t in (theta, 1.0))
    assert gain == pytest.approx(here - there, rel=1e-3)
    again = _model(4)
    assert refit(again, cells, torch.arange(300), torch.arange(300, 400), seed=0) == gain
    assert torch.equal(again.decoder.log_dispersion, model.decoder.log_dispersion)


@pytest.mark.parametrize("n_validation", [0, 19])
def test_with_few_held_out_cells_dispersions_do_not_change(make_cells: Callable[..., Cells], n_validation: int) -> None:
    model, cells = _model(4), _overdispersed(make_cells, 300)
    assert refit(model, cells, torch.arange(200), torch.arange(200, 200 + n_validation), seed=0) == 0
    assert not model.decoder.log_dispersion.any()


@pytest.mark.parametrize("trouble", ["worse", "nan", "interrupted"])
def test_a_refit_without_gain_on_held_out_cells_is_undone(
    make_cells: Callable[..., Cells], monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    model, cells = _model(4), _overdispersed(make_cells, 200)

    def spoil(model: VAE, *_: object) -> torch.Tensor:
        if trouble == "interrupted":
            raise KeyboardInterrupt
        return model.decoder.log_dispersion.detach() + (torch.nan if trouble == "nan" else -6.0)

    monkeypatch.setattr("vxpress.core.training.dispersion.shifted", spoil)
    with pytest.raises(KeyboardInterrupt) if trouble == "interrupted" else nullcontext():
        assert refit(model, cells, torch.arange(150), torch.arange(150, 200), seed=0) == 0
    assert not model.decoder.log_dispersion.any()


def test_broad_posteriors_do_not_count_as_noise(make_cells: Callable[..., Cells]) -> None:
    """If q is broad, counts scatter much about the mean at a draw; the bound shows that they scatter less."""
    model, cells = _model(4, latent_library=True), _overdispersed(make_cells, 200)
    before = log_likelihood(model, cells, 500, seed=1).log_likelihood_n.mean()
    refit(model, cells, torch.arange(150), torch.arange(150, 200), seed=0)
    assert log_likelihood(model, cells, 500, seed=1).log_likelihood_n[150:].mean() >= before - 1.0


def test_which_models_have_dispersions() -> None:
    for likelihood, expected in {
        "nb": True,
        "zinb": True,
        "poisson": False,
        "gaussian": False,
        "bernoulli": False,
    }.items():
        assert has_dispersions(build(ModelConfig(n_genes=4, n_latent=2, likelihood=likelihood), seed=0)) == expected
    assert not has_dispersions(build(ModelConfig(n_genes=4, n_latent=2, dispersion="gene-cell"), seed=0))


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_kept_logits_give_the_same_slope_at_every_theta(
    monkeypatch: pytest.MonkeyPatch, make_cells: Callable[..., Cells], likelihood: str, n_threads: int
) -> None:
    monkeypatch.setattr(dispersion, "CHUNK", 17)
    cells = make_cells(n_batches=2)
    settings = {"n_categories": (2,), "has_batch": True, "dispersion": "gene-batch", "likelihood": likelihood}
    model = build(ModelConfig(n_genes=20, n_latent=2, n_hidden=8, **settings), seed=0).eval()
    drawn, found = _drawn(model, cells), []
    width = model.decoder.kept_entries(1)
    assert width == (20 if likelihood == "nb" else 40)
    # all logits, those of the first two minibatches, and none
    for space in (10**6, 2 * 17 * width, 0):
        monkeypatch.setattr(dispersion, "KEPT_ENTRIES", space)
        with OneThread(), decided(n_threads):
            slope = Slope(model, cells, drawn)
            found.append(torch.stack([slope(torch.full((2, 20), value)) for value in (0.0, 1.5, -0.5, 1.5)]))
        assert len(slope.parts) == min(len(drawn), space // (17 * width))
    with rule.plain():
        slope = Slope(model, cells, drawn)
        found.append(torch.stack([slope(torch.full((2, 20), value)) for value in (0.0, 1.5, -0.5, 1.5)]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0][1], found[0][3])
    torch.testing.assert_close(found[0], found[3], rtol=1e-4, atol=1e-3)
