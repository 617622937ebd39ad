"""Weights before training: z starts at the principal components of the cells."""

import numpy as np
import pytest
import torch

from vxpress.core import start
from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts
from vxpress.core.model import build


def cells(x_ng: np.ndarray, batch: np.ndarray | None = None) -> Cells:
    x = torch.from_numpy(np.asarray(x_ng, dtype=np.float32))
    codes = torch.zeros(len(x), 0, dtype=torch.int64) if batch is None else torch.from_numpy(batch)[:, None]
    library = x.sum(1, keepdim=True).clamp_min(1.0).log()
    return Cells.of(Counts.from_dense(x), library, Covariates(codes, torch.zeros(len(x), 0)), torch.device("cpu"))


@pytest.fixture(scope="module")
def x_ng() -> np.ndarray:
    rng = np.random.default_rng(0)
    rate = np.exp(rng.normal(size=(81, 3)) @ rng.normal(size=(3, 30)))
    return rng.poisson(rate)


@pytest.fixture(autouse=True)
def all_components(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start all dimensions at components, except in the tests of their number."""
    if "number" not in request.node.name:
        monkeypatch.setattr(start, "noise_sd", lambda centred_ng: torch.zeros(()))


def started(source: Cells, seed: int = 0, **config):
    n_categories = tuple(int(c.max()) + 1 for c in source.covariates.categorical_nk.t())
    settings = {"n_latent": 4, "n_hidden": 16, "norm": "none", "n_categories": n_categories} | config
    model = build(ModelConfig(n_genes=source.n_genes, **settings), seed).eval()
    start.start_at_components(model, source, torch.arange(len(source)))
    return model


def normalised(x_ng: np.ndarray) -> np.ndarray:
    library = x_ng.sum(1, keepdims=True)
    return np.log1p(x_ng * np.median(library) / library)


def test_components_are_those_of_the_singular_value_decomposition(x_ng) -> None:
    centred = normalised(x_ng) - normalised(x_ng).mean(0)
    _, singular, v = np.linalg.svd(centred, full_matrices=False)
    loading, sd = start.components(torch.from_numpy(centred.astype(np.float32)), 4)
    np.testing.assert_allclose(sd, singular[:4] / np.sqrt(len(centred) - 1), rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(loading.numpy() * v[:4], axis=1)), 1.0, atol=1e-4)
    assert bool((loading.gather(1, loading.abs().argmax(1, keepdim=True)) > 0).all())


@pytest.mark.parametrize("n_layers", [1, 2])
def test_z_is_the_standardised_components_of_the_log_counts(x_ng, n_layers) -> None:
    source = cells(x_ng)
    centred = normalised(x_ng) - normalised(x_ng).mean(0)
    loading, sd = start.components(torch.from_numpy(centred.astype(np.float32)), 4)
    log_x = np.log1p(x_ng)
    expected = (log_x - log_x.mean(0)) @ loading.numpy().T / sd.numpy()
    model = started(source, n_layers=n_layers)
    with torch.no_grad():
        z = model.posterior(source.batch(torch.arange(len(source))))["z"].loc
    np.testing.assert_allclose(z.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("decoder", ["mlp", "skip", "linear"])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_location_changes_with_z_along_the_loadings(x_ng, decoder, n_layers) -> None:
    model = started(cells(x_ng), decoder=decoder, n_layers=n_layers)
    centred = normalised(x_ng) - normalised(x_ng).mean(0)
    loading, sd = start.components(torch.from_numpy(centred.astype(np.float32)), 4)
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    weight = model.decoder.location.weight
    # other hidden units stay random, so only what the first units add is compared
    width = 8 if decoder != "linear" else 4
    with torch.no_grad():
        added = model.decoder.features(z, None)[:, :width] @ weight[:30, :width].t()
    np.testing.assert_allclose(added, start.STRENGTH * (z * sd) @ loading, atol=1e-4)


def test_seeds_start_from_the_same_components_and_other_weights(x_ng) -> None:
    one, other = (started(cells(x_ng), seed) for seed in (0, 1))
    assert torch.equal(one.encoder.first.weight[:8], other.encoder.first.weight[:8])
    assert not torch.equal(one.encoder.first.weight[8:], other.encoder.first.weight[8:])


def test_a_shift_of_a_batch_does_not_enter_the_components(x_ng) -> None:
    rng = np.random.default_rng(1)
    batch = rng.integers(0, 2, len(x_ng))
    shifted = x_ng * np.where((batch[:, None] == 1) & (np.arange(30) < 15), 40, 1)
    log_x = torch.from_numpy(normalised(shifted).astype(np.float32))
    source = cells(shifted, batch)
    centred = log_x - torch.stack([log_x[batch == code].mean(0) for code in (0, 1)])[batch]
    model = started(source)
    loading, sd = start.components(centred, 4)
    np.testing.assert_allclose(model.encoder.first.weight[:4, :30].detach(), loading / sd[:, None], atol=1e-4)


@pytest.mark.parametrize("code", ["one-hot", "embedding"])
def test_the_output_starts_at_the_shrunken_mean_differences_of_categories(x_ng, code) -> None:
    batch = np.arange(len(x_ng)) % 3
    source = cells(x_ng * np.where((batch[:, None] == 1) & (np.arange(30) < 15), 40, 1), batch)
    log_x = normalised(source.batch(torch.arange(len(source))).x_ng.numpy())
    model = started(source, covariate_code=code)
    s = model.conditioner(source.covariates)
    start_of_condition = model.decoder.location.weight[:30, -s.shape[1] :]
    for category in range(3):
        n = int((batch == category).sum())
        expected = (log_x[batch == category].mean(0) - log_x.mean(0)) * n / (n + start.SHRINKAGE)
        found = (s[batch == category][0] @ start_of_condition.t()).detach()
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_output_of_a_category_without_cells_starts_at_the_mean_of_all(x_ng) -> None:
    source = cells(x_ng, np.arange(len(x_ng)) % 2)
    weight = started(source, n_categories=(3,)).decoder.location.weight[:30, -3:]
    assert float(weight[:, 2].detach().abs().max()) == 0.0


def test_the_output_stays_as_it_was_without_covariates_in_it(x_ng) -> None:
    source = cells(x_ng, np.arange(len(x_ng)) % 2)
    model = started(source, condition_output=False)
    assert model.decoder.location.weight.shape[1] == model.config.n_hidden


def test_z_starts_with_the_effect_of_an_optional_covariate_where_it_is_hidden_and_without_it_where_it_is_shown(
    x_ng,
) -> None:
    group = np.arange(len(x_ng)) % 2
    shifted = x_ng * np.where((group[:, None] == 1) & (np.arange(30) < 15), 40, 1)
    source = cells(shifted, group)
    model = started(source, optional=(0,))
    shown = source.batch(torch.arange(len(source)))
    hidden = shown.with_covariates(model.conditioner.hide(shown.covariates))
    with torch.no_grad():
        z_shown, z_hidden = (model.posterior(batch)["z"].loc.numpy() for batch in (shown, hidden))
    gap_shown, gap_hidden = (np.abs(z[group == 1].mean(0) - z[group == 0].mean(0)).max() for z in (z_shown, z_hidden))
    assert gap_hidden > 1.0
    np.testing.assert_allclose(gap_shown, 0.0, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 2), (3, 50), (50, 3), (2, 30)])
def test_few_cells_or_genes_leave_finite_weights(shape) -> None:
    x = np.random.default_rng(0).poisson(2.0, shape)
    model = started(cells(x), n_latent=min(4, shape[1]))
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def test_cells_without_variation_leave_the_weights_as_they_were() -> None:
    source = cells(np.ones((10, 5), dtype=int))
    config = ModelConfig(n_genes=5, n_latent=2, n_hidden=8, norm="none")
    model = build(config, 0).eval()
    start.start_at_components(model, source, torch.arange(10))
    expected = build(config, 0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name


def test_components_of_many_cells_come_from_the_same_part_for_every_seed(x_ng, monkeypatch) -> None:
    monkeypatch.setattr(start, "MAX_CELLS", 40)
    one, other = (started(cells(x_ng), seed) for seed in (0, 1))
    assert torch.equal(one.encoder.first.weight[:8], other.encoder.first.weight[:8])
    monkeypatch.setattr(start, "MAX_CELLS", 5_000)
    assert not torch.equal(one.encoder.first.weight[:8], started(cells(x_ng)).encoder.first.weight[:8])


def test_the_number_of_components_is_that_of_the_signal(monkeypatch) -> None:
    monkeypatch.setattr(start, "LEAST", 0)
    rng = np.random.default_rng(0)
    signal = np.exp(0.6 * rng.normal(size=(400, 3)) @ rng.normal(size=(3, 100)))
    model = started(cells(rng.poisson(signal)), n_latent=6)
    head = model.encoder.mean.weight.detach()
    of_components = [bool(((row != 0).sum() == 2) & (row.abs().max() == 1)) for row in head]
    assert of_components == [True] * 3 + [False] * 3


def test_the_number_of_components_of_noise_is_zero(monkeypatch) -> None:
    monkeypatch.setattr(start, "LEAST", 0)
    noise = np.random.default_rng(0).poisson(1.0, (400, 100))
    config = ModelConfig(n_genes=100, n_latent=6, n_hidden=16, norm="none")
    expected = build(config, 0).state_dict()
    for name, value in started(cells(noise), n_latent=6).state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_genes_are_shifted_by_their_own_number_of_cells() -> None:
    value_ng = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    shift_g = torch.tensor([0, 1, 3, 6, 2])
    found = start.shifted(value_ng, shift_g)
    assert found.is_contiguous()
    for j, shift in enumerate(shift_g.tolist()):
        assert torch.equal(found[:, j], value_ng[:, j].roll(-shift))
