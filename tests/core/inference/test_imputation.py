"""Imputed counts of a modality: what they depend on, and the share of counts in their intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from vxpress.core.config import ModalityConfig, ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts, Joined
from vxpress.core.inference.imputation import Ends, Imputed, Placed, Plan, calibrate, enclosing, impute, least_cells
from vxpress.core.inference.posterior import ALL_GENES, Draws, encode, expected_expression
from vxpress.core.model import VAE, build

N, GENES, PROTEINS = 1_200, 8, 3
CONFIG = ModelConfig(
    GENES, n_latent=2, n_hidden=8, n_categories=(3,), has_batch=True,
    modalities=(ModalityConfig("protein", PROTEINS, "nb_mixture"),),
)  # fmt: skip


def _cells(x: np.ndarray, code_n: np.ndarray) -> Cells:
    covariates = Covariates(torch.from_numpy(code_n)[:, None], torch.zeros(len(x), 0))
    log_library = torch.from_numpy(np.log(x.sum(1, keepdims=True).clip(1))).float()
    return Cells(Counts.from_scipy(sparse.csr_matrix(x.astype(np.float32))), log_library, covariates)


@pytest.fixture(scope="module")
def cells() -> Joined:
    """Return cells of three batches, of which the last has no proteins; a model need not describe them."""
    rng = np.random.default_rng(0)
    code_n = np.arange(N) % 3
    protein = rng.poisson(rng.gamma(2.0, (3.0, 40.0, 500.0), size=(N, PROTEINS)))
    protein[code_n == 2] = 0
    rna = _cells(rng.poisson(3.0, size=(N, GENES)), code_n)
    return Joined(rna, {"protein": _cells(protein, code_n)}, {"protein": torch.from_numpy(code_n < 2)})


@pytest.fixture(scope="module")
def model(cells: Joined) -> VAE:
    """Return a model that knows the data only from its start."""
    model = build(CONFIG, 0)
    model.start_from(cells, torch.arange(N))
    return model.eval()


def _imputed(model: VAE, cells: Joined, rows: torch.Tensor, share: float = 0.9) -> Imputed:
    plan = Plan.of(model, cells, "protein", rows, n=60, seed=0)
    ends = calibrate(model, cells, "protein", rows, plan, share=share)
    assert ends.calibrated
    return impute(model, cells, encode(model, cells.without("protein")), "protein", plan, ends)


def test_intervals_hold_their_share_of_other_cells_though_the_model_is_wrong(model: VAE, cells: Joined) -> None:
    rows = torch.arange(N)
    held_out, others = rows[: N // 2], rows[N // 2 :]
    found = _imputed(model, cells, held_out)
    x_nf = cells.further["protein"].batch(rows).x_ng.numpy()
    inside = (found.lower_nf <= x_nf) & (x_nf <= found.upper_nf)
    share_f = inside[cells.having("protein", others).numpy()].mean(0)
    # 400 cells on either side: three standard errors, and up to a value of the small counts
    assert (share_f > 0.9 - 0.065).all()
    assert (share_f[1:] < 0.9 + 0.065).all()
    assert (found.lower_nf <= found.upper_nf).all()


def test_a_cell_is_imputed_without_its_own_counts(model: VAE, cells: Joined) -> None:
    rows = torch.arange(N // 2)
    protein = cells.further["protein"]
    assert isinstance(protein, Cells)
    x_nf = protein.counts.dense(torch.arange(N))
    x_nf[N // 2 :] = (x_nf[N // 2 :] + 1.0).flip(0)
    observed_n = cells.observed("protein")
    assert observed_n is not None
    other = Joined(cells.first, {"protein": replace(protein, counts=Counts.from_dense(x_nf))}, {"protein": observed_n})
    first, second = (_imputed(model, one, rows) for one in (cells, other))
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, vars(second)[name])


def test_cells_of_a_batch_without_the_modality_are_decoded_in_those_that_have_it(model: VAE, cells: Joined) -> None:
    plan = Plan.of(model, cells, "protein", torch.arange(N), n=4, seed=0)
    decoded = [plan.covariates_of(draw, cells.covariates).categorical_nk[:3, 0].tolist() for draw in range(4)]
    assert decoded == [[0, 1, 0], [0, 1, 1], [0, 1, 0], [0, 1, 1]]


def test_expected_values_are_those_of_the_distribution(model: VAE, cells: Joined) -> None:
    found = _imputed(model, cells, torch.arange(N))
    encoded, own = encode(model, cells.without("protein")), torch.from_numpy(np.arange(N) % 3 < 2)
    view = model.of("protein")
    with torch.no_grad():
        mean = view.likelihood(encoded.posterior(model).mean(), cells.covariates, torch.zeros(N, 1)).mean
        at_all = model.others["protein"].likelihood(
            model.inputs(encoded.posterior(model).mean(), cells.covariates, torch.zeros(N, 1)), torch.zeros(N, 1)
        )
    torch.testing.assert_close(mean, at_all.mean)
    low, high = np.log1p(found.lower_nf), np.log1p(found.upper_nf)
    assert ((low <= found.log1p_nf) & (found.log1p_nf <= high)).all()
    # close to the mean over the posterior, because the weights are small at the start
    np.testing.assert_allclose(found.mean_nf[own], mean[own], rtol=0.25)


def test_decoded_values_of_a_modality_come_from_the_same_functions_as_those_of_rna(model: VAE, cells: Joined) -> None:
    encoded = encode(model, cells)
    draws = Draws(1, (None,), 0)
    parts = expected_expression(model.of("protein"), encoded, cells.covariates, draws, ALL_GENES)
    values = np.concatenate([inside.numpy().copy() for _, inside, _ in parts])
    assert values.shape == (N, PROTEINS)
    assert (values > 0).all()
    # without background
    assert (values < np.concatenate([_imputed(model, cells, torch.arange(N)).mean_nf])).mean() > 0.9


def _ends(x: np.ndarray, drawn: np.ndarray, share: float) -> Ends:
    placed = Placed.empty(x, len(drawn))
    placed.put(slice(None), drawn)
    return enclosing(placed, share, seed=0)


def _inside(x: np.ndarray, drawn: np.ndarray, ends: Ends) -> np.ndarray:
    lower, upper = ends.of(np.sort(drawn, axis=0))
    # the ends are computed in another order
    return np.asarray((lower - 1e-3 <= x) & (x <= upper * (1 + 1e-5) + 1e-3))


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("theta", [0.5, 5.0, 500.0], ids=["too sure", "right", "too unsure"])
def test_intervals_hold_the_share_of_calibration_counts_and_of_others(share: float, theta: float) -> None:
    rng, n = np.random.default_rng(1), 2_000
    x = rng.poisson(rng.gamma(theta, 300.0 / theta, size=(n, 2)))
    drawn = rng.poisson(rng.gamma(5.0, 240.0 / 5.0, size=(60, n, 2)))
    half = n // 2
    ends = _ends(x[:half], drawn[:, :half], share)
    for part in (slice(half), slice(half, None)):
        np.testing.assert_allclose(_inside(x[part], drawn[:, part], ends).mean(0), share, atol=0.05)


def test_an_interval_of_few_values_gives_what_one_side_leaves_to_the_other() -> None:
    rng, n, n_draws = np.random.default_rng(2), 4_000, 199
    # half of the counts are 0, so none can be below the interval
    x, drawn = (
        np.where(rng.random(shape) < 0.5, 0, rng.integers(1, 101, size=shape)) for shape in ((n, 1), (n_draws, n, 1))
    )
    ends = _ends(x, drawn, 0.9)
    lower, _ = ends.of(np.sort(drawn, axis=0))
    assert (lower == 0).all()
    np.testing.assert_allclose(_inside(x, drawn, ends).mean(), 0.9, atol=0.01)


def test_without_enough_cells_the_quantiles_are_those_of_the_model(model: VAE, cells: Joined) -> None:
    rows = torch.arange(N)[: least_cells(0.9)]
    plan = Plan.of(model, cells, "protein", rows, n=100, seed=0)
    ends = calibrate(model, cells, "protein", rows[:6], plan, share=0.9)
    assert not ends.calibrated
    assert (ends.lower_f == 5).all()
    assert (ends.upper_f == 94).all()
