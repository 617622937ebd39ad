"""The counts that the encoder sees in training are binomial samples of those that the likelihood scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from vxpress.core import thinning, threads
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Batch, Cells, Counts
from vxpress.core.data.batch import Rows
from vxpress.core.data.mapped import Mapped
from vxpress.core.data.streamed import Streamed
from vxpress.core.model import build
from vxpress.core.noise import Noise
from vxpress.core.rule import LARGE_COUNT
from vxpress.core.thinning import by_molecule, compiled, dense, thinned
from vxpress.core.training import train

MakeCells = Callable[..., Cells]
# around the number of molecules of one random word, and the largest count of the compiled loop
COUNTS = (1, 2, 3, 7, 8, 9, 23, LARGE_COUNT, LARGE_COUNT + 1, 5_000)


def _batch(x_ng: np.ndarray) -> Batch:
    n = len(x_ng)
    counts = Counts.from_scipy(sparse.csr_matrix(x_ng.astype(np.float32)))
    cells = Cells(counts, torch.full((n, 1), 3.0), Covariates(torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0)))
    return cells.batch(torch.arange(n))


class _Fixed(Noise):
    """Random numbers with a known rate in every cell."""

    def __init__(self, seed: int, rate: float) -> None:
        super().__init__(seed)
        self.rate = rate

    def rates(self, n: int, least: float) -> torch.Tensor:
        return torch.full((n,), self.rate, dtype=torch.float64)


@pytest.mark.parametrize("rate", [0.125, 0.5, 0.9375])
@pytest.mark.parametrize("sample", [compiled, by_molecule, dense])
def test_thinned_counts_are_binomial(rate: float, sample: Callable[[Batch, torch.Tensor, Noise], Rows]) -> None:
    n = 4_000
    batch, noise = _batch(np.tile(COUNTS, (n, 1))), Noise(3)
    kept = sample(batch, torch.full((n,), rate, dtype=torch.float64), noise).dense()
    for x, column in zip(COUNTS, kept.numpy().T, strict=True):
        expected = stats.binom(x, rate)
        # uniform if and only if the counts have this distribution
        below = expected.cdf(column - 1)
        uniform = below + np.random.default_rng(0).uniform(size=n) * (expected.cdf(column) - below)
        assert stats.kstest(uniform, "uniform").pvalue > 1e-4, x
        assert abs(column.mean() - x * rate) < 5 * expected.std() / np.sqrt(n)


def test_molecules_are_kept_independently_of_each_other() -> None:
    # counts of several words, and neighbouring entries and cells
    kept = thinned(_batch(np.full((2_000, 12), 11)), 1.0, _Fixed(0, 0.5)).x_ng.numpy()
    assert np.abs(np.corrcoef(kept.T) - np.eye(12)).max() < 5 / np.sqrt(2_000)
    assert abs(np.corrcoef(kept[:-1].ravel(), kept[1:].ravel())[0, 1]) < 5 / np.sqrt(24_000)


def test_the_share_left_out_is_uniform_and_drawn_for_each_cell() -> None:
    rates = Noise(1).rates(20_000, 0.3).numpy()
    assert stats.kstest(rates, "uniform", (0.3, 0.7)).pvalue > 1e-4
    kept = thinned(_batch(np.full((400, 50), 200)), 0.7, Noise(1)).x_ng.numpy() / 200
    # genes of a cell share its rate
    np.testing.assert_allclose(kept.mean(1), Noise(1).rates(400, 0.3).numpy(), atol=0.03)


def test_a_small_share_is_left_out_as_well() -> None:
    kept = thinned(_batch(np.full((2_000, 20), 200)), 0.01, Noise(0)).x_ng.numpy() / 200
    assert abs(kept.mean() - 0.995) < 5e-4


def test_only_counts_change_and_only_the_seen_ones(make_cells: MakeCells) -> None:
    batch = make_cells(50, 20, n_batches=2).batch(torch.arange(10, 40))
    before = batch.x_ng.clone()
    seen = thinned(batch, 0.9, Noise(0))
    assert torch.equal(batch.x_ng, before)
    assert (seen.x_ng <= before).all()
    assert (seen.x_ng < before).any()
    assert seen.log_library_n1 is batch.log_library_n1
    assert seen.covariates is batch.covariates
    assert torch.equal(seen.rows, batch.rows)
    # no entry is read that only costs time
    _, values = seen.entries()
    assert (values > 0).all()
    assert seen.counts.n_stored().sum() == len(values)


def test_the_same_seed_gives_the_same_counts_from_every_source(make_cells: MakeCells) -> None:
    cells, rows = make_cells(80, 20), torch.tensor([5, 2, 60, 60, 7])
    arguments = cells.counts, cells.log_library_n1, cells.covariates, torch.device("cpu")
    found = [
        thinned(source.batch(rows), 0.9, Noise(4)).x_ng
        for source in (cells, Streamed.of(*arguments), Mapped.of(*arguments), cells.take(rows.unique()))
        if source.n_genes and len(source) == len(cells)
    ]
    found.append(thinned(cells.assembled(rows, cells.batch(rows).x_ng), 0.9, Noise(4)).x_ng)
    for other in found[1:]:
        assert torch.equal(found[0], other)
    assert not torch.equal(found[0], thinned(cells.batch(rows), 0.9, Noise(5)).x_ng)


def test_explicit_zeros_stay_zero() -> None:
    matrix = Counts(torch.tensor([0, 3]), torch.arange(3, dtype=torch.int32), torch.tensor([0.0, 5.0, 0.0]), 3)
    cells = Cells(matrix, torch.zeros(1, 1), Covariates(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0)))
    kept = thinned(cells.batch(torch.zeros(50, dtype=torch.int64)), 0.5, Noise(0)).x_ng
    assert (kept[:, [0, 2]] == 0).all()
    assert kept[:, 1].max() == 5


def test_the_counts_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # parts of a few cells, among whose counts are large ones
    x = np.random.default_rng(0).choice(COUNTS, (40, 30)) * (np.random.default_rng(1).random((40, 30)) < 0.5)
    found = []
    for part, n_threads in ((10**6, 1), (50, 1), (50, 2), (50, 4)):
        monkeypatch.setattr(thinning, "PART", part)
        with threads.decided(n_threads), threads.OneThread():
            found.append(thinned(_batch(x), 0.9, Noise(2)).x_ng)
    for other in found[1:]:
        assert torch.equal(found[0], other)


def test_memory_may_be_used_again_for_the_next_minibatch() -> None:
    space, noise, other = thinning.Space(), Noise(3), Noise(3)
    rng = np.random.default_rng(0)
    for shape in ((5, 8), (40, 30), (3, 4), (0, 4), (40, 30)):
        batch = _batch(rng.choice([0, *COUNTS], shape))
        assert torch.equal(thinned(batch, 0.9, noise, space).x_ng, thinned(batch, 0.9, other).x_ng)
    assert len(space.data) <= 40 * 30 * 5 // 4


def test_cells_have_random_numbers_of_their_own() -> None:
    # the same counts and rate in every cell: the molecules kept are uncorrelated between cells
    kept = thinned(_batch(np.ones((60, 3_000))), 1.0, _Fixed(5, 0.5)).x_ng.numpy()
    assert np.abs(np.corrcoef(kept) - np.eye(60)).max() < 5 / np.sqrt(3_000)
    assert np.abs(kept.mean(1) - 0.5).max() < 5 * 0.5 / np.sqrt(3_000)


def test_a_stored_state_of_the_noise_continues_with_the_same_counts() -> None:
    batch, noise, other = _batch(np.full((30, 10), 300)), Noise(0), Noise(9)
    thinned(batch, 0.9, noise)
    other.load_state_dict(noise.state_dict())
    assert torch.equal(thinned(batch, 0.9, noise).x_ng, thinned(batch, 0.9, other).x_ng)


def test_an_empty_cell_stays_empty() -> None:
    x = np.zeros((3, 4))
    x[1, 2] = 7
    kept = thinned(_batch(x), 1.0, Noise(0)).x_ng
    assert kept.shape == (3, 4)
    assert kept[0].sum() == kept[2].sum() == 0


def test_the_size_factor_is_inferred_from_all_molecules(make_cells: MakeCells) -> None:
    cells = make_cells(60, 20)
    model = build(
        ModelConfig(20, n_latent=3, n_hidden=8, latent_library=True, thinning=0.9, dropout=0.0, norm="layer"), 0
    )
    batch = cells.batch(torch.arange(60))
    whole, part = model.posterior(batch), model.posterior(batch, Noise(0))
    assert torch.equal(whole["library"].loc, part["library"].loc)
    assert not torch.equal(whole["z"].loc, part["z"].loc)


def _trained(cells: Cells, thinning: float | None) -> dict[str, torch.Tensor]:
    config = ModelConfig(20, n_latent=3, n_hidden=8, **({} if thinning is None else {"thinning": thinning}))  # type: ignore[arg-type]
    model, rows = build(config, 0), torch.arange(len(cells))
    train(model, cells, rows[20:], rows[:20], TrainConfig(max_epochs=2, batch_size=32), seed=0)
    return model.state_dict()


def test_without_thinning_no_bit_changes_and_with_it_the_fit_does(make_cells: MakeCells) -> None:
    cells = make_cells(120, 20)
    off, zero, on = (_trained(cells, share) for share in (None, 0.0, 0.5))
    assert all(torch.equal(off[name], zero[name]) for name in off)
    assert any(not torch.equal(off[name], on[name]) for name in off)


def test_validation_and_inference_see_all_molecules(make_cells: MakeCells) -> None:
    cells = make_cells(40, 20)
    model = build(ModelConfig(20, n_latent=3, n_hidden=8, thinning=0.9), 0).eval()
    plain = replace(model.config, thinning=0.0)
    other = build(plain, 0).eval()
    batch = cells.batch(torch.arange(40))
    assert torch.equal(model.posterior(batch)["z"].loc, other.posterior(batch)["z"].loc)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="thinning"):
        ModelConfig(20, thinning=share)
