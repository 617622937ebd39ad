"""Adaptive shrinkage of noisy effects."""

import numpy as np
import torch

from vxpress.core.shrinkage import shrunk


def _noisy(effect: np.ndarray, error: float) -> tuple[torch.Tensor, torch.Tensor]:
    noise = np.random.default_rng(0).normal(0, error, effect.shape)
    return torch.from_numpy(effect + noise), torch.full(effect.shape, error, dtype=torch.float64)


def test_without_effects_almost_everything_goes_to_0() -> None:
    found = shrunk(*_noisy(np.zeros((2, 500)), 0.3))
    assert float(found.square().mean()) < 0.05 * 0.3**2


def test_few_large_effects_keep_their_size_and_the_error_is_smaller_than_without() -> None:
    effect = np.zeros((1, 500))
    effect[0, :10] = 2.0
    noisy, error = _noisy(effect, 0.3)
    found = shrunk(noisy, error).numpy()
    assert np.abs(found[0, :10] - noisy.numpy()[0, :10]).max() < 0.2
    assert np.square(found - effect).mean() < 0.2 * np.square(noisy.numpy() - effect).mean()


def test_normal_effects_are_shrunk_by_the_known_factor() -> None:
    effect = np.random.default_rng(1).normal(0, 0.5, (1, 4_000))
    noisy, error = _noisy(effect, 0.5)
    slope = float((shrunk(noisy, error) * noisy).sum() / noisy.square().sum())
    assert abs(slope - 0.5) < 0.05


def test_rows_and_chunks_do_not_matter_to_each_other(monkeypatch) -> None:
    noisy, error = _noisy(np.random.default_rng(1).normal(0, [[0.1], [1.0], [5.0]], (3, 50)), 0.4)
    alone = torch.cat([shrunk(noisy[i : i + 1], error[i : i + 1]) for i in range(3)])
    monkeypatch.setattr("vxpress.core.shrinkage.CHUNK", 100)
    torch.testing.assert_close(shrunk(noisy, error), alone)
