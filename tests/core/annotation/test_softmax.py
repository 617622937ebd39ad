"""Logistic regression is that of scikit-learn, and survives labels without cells."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from vxpress.core.annotation.head import Coordinates
from vxpress.core.annotation.softmax import Softmax


def _cells(n: int, d: int, n_labels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    code = rng.integers(n_labels, size=n)
    x = rng.normal(size=(n_labels, d))[code] + rng.normal(size=(n, d)) + 3.0
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(code)


def test_it_is_the_regression_of_scikit_learn() -> None:
    x, code = _cells(120, 5, 3)
    weight = torch.rand(120, generator=torch.Generator().manual_seed(0)) + 0.5
    found = Softmax.fit(x, code, 3, penalty=0.5 / 120, weight_n=weight)
    # scikit-learn minimises the sum of weighted losses plus |W|^2 / (2 C)
    c = 1.0 / (0.5 / 120 * float(weight.sum()))
    expected = LogisticRegression(C=c, tol=1e-8, max_iter=2_000).fit(
        x.numpy(), code.numpy(), sample_weight=weight.numpy()
    )
    np.testing.assert_allclose(found.log_prob(x).exp().numpy(), expected.predict_proba(x.numpy()), atol=2e-3)


def test_a_label_without_cells_is_never_likely() -> None:
    x, code = _cells(60, 4, 2)
    found = Softmax.fit(x, code, 3, penalty=0.01)
    assert torch.isfinite(found.weight_cd).all()
    assert torch.isfinite(found.bias_c).all()
    assert float(found.log_prob(x)[:, 2].max()) < -100


def test_the_span_of_few_cells_gives_the_same_classifier() -> None:
    x, code = _cells(30, 80, 3)
    spanned = Coordinates.of(x)
    assert spanned.of_cells.shape[1] <= 30
    direct = Softmax.fit(x, code, 3, penalty=0.1)
    through = spanned.back(Softmax.fit(spanned.of_cells, code, 3, penalty=0.1))
    new, _ = _cells(20, 80, 3, seed=1)
    np.testing.assert_allclose(through.log_prob(new).exp(), direct.log_prob(new).exp(), atol=2e-3)
