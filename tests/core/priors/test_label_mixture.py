"""The mixture with components for each label: a density, learned from cells of which some have no label."""

from __future__ import annotations

import numpy as np
import torch

from vxpress.core.config import PriorConfig
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors import Prior
from vxpress.core.priors.fitting import build_prior, learn


def _learned(*, hidden: float, n: int = 600) -> tuple[Prior, torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(0)
    # the last group never has a label
    code = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    z = np.array([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]])[code] + 0.5 * rng.normal(size=(n, 2))
    given = np.where((rng.random(n) < hidden) | (code == 2), 2, code)
    q = DiagonalNormal(torch.from_numpy(z.astype(np.float32)), torch.full((n, 2), 0.1))
    prior = build_prior(PriorConfig("label_mixture", 3, {"n_components": 3}), 2, seed=0)
    learn(prior, q, torch.from_numpy(given), seed=0)
    return prior, torch.from_numpy(z.astype(np.float32)), code


def test_cells_without_a_label_teach_the_shares_and_the_group_of_no_label() -> None:
    prior, z, code = _learned(hidden=0.5)
    share = prior.log_share_c.detach().softmax(0).numpy()
    # of the cells without a label
    expected = np.array([0.25, 0.15, 0.2])
    np.testing.assert_allclose(share, expected / expected.sum(), atol=0.05)
    by_label = torch.stack([prior.log_prob(z, torch.tensor(c)) for c in range(3)], -1) + prior.log_share_c.log_softmax(
        0
    )
    assert (by_label.argmax(-1).numpy() == code).mean() > 0.97
    # the mixture over labels is the density without a label
    torch.testing.assert_close(by_label.logsumexp(-1), prior.log_prob(z), rtol=1e-4, atol=1e-4)


def test_draws_of_a_label_are_near_its_cells() -> None:
    prior, z, code = _learned(hidden=0.5)
    for c, near in ((0, 0.4), (1, 0.4), (2, 1.5)):
        drawn = prior.sample(200, torch.Generator().manual_seed(0), torch.full((200,), c))
        np.testing.assert_allclose(drawn.mean(0), z[torch.from_numpy(code == c)].mean(0), atol=near)
