"""``vx.pl.kl`` over training and against another fit; ``vx.pl.posterior`` under a learned prior."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import vxpress as vx
from vxpress import pl
from vxpress.bridge.fits.seal import sealed
from vxpress.core.priors import Prior, StandardNormal


def test_over_training_draws_the_recorded_divergence(used):
    ax: Any = pl.kl(used, over_training=True, show=False)
    fit = used.uns["vae"]
    recorded, kept = fit["history"]["kl_per_dim"], int(fit["params"]["best_epoch"])
    assert recorded.shape == (len(fit["history"]["lr"]), 3)
    order = np.argsort(-recorded[kept])
    np.testing.assert_allclose(ax.images[0].get_array(), recorded[:, order].T)
    assert [int(label.get_text()) for label in ax.get_yticklabels()] == list(order)
    assert ax.lines[0].get_xdata()[0] == kept + 1


def test_the_history_of_the_dimensions_sums_to_that_of_the_divergence(used):
    history = used.uns["vae"]["history"]
    np.testing.assert_allclose(history["kl_per_dim"].sum(1), history["kl_validation"], rtol=1e-6)
    held_out = used.uns["vae"]["diagnostics"]["kl_per_dim"]
    kept = int(used.uns["vae"]["params"]["best_epoch"])
    np.testing.assert_allclose(history["kl_per_dim"][kept], held_out, rtol=1e-4)


def test_a_fit_without_this_history_is_refused(used):
    del used.uns["vae"]["history"]["kl_per_dim"]
    used.uns["vae"] = sealed(used.uns["vae"])
    with pytest.raises(ValueError, match="no record of the divergence per dimension"):
        pl.kl(used, over_training=True)


def test_another_fit_is_a_line_of_its_dimensions_highest_first(used, collapsed):
    used.uns["other"] = collapsed.uns["vae"]
    ax: Any = pl.kl(used, compare_key="other", show=False)
    line = next(line for line in ax.get_lines() if line.get_label().startswith("other"))
    values = collapsed.uns["vae"]["diagnostics"]["kl_per_dim"]
    np.testing.assert_allclose(line.get_ydata(), np.sort(values)[::-1])
    assert line.get_label() == "other (0 of 3 active)"
    assert "other (0 of 3 active)" in [text.get_text() for text in ax.get_legend().get_texts()]
    with pytest.raises(KeyError, match="holds no fit"):
        pl.kl(used, compare_key="absent")


class _Shifted(Prior):
    """N(2, 0.25) in every dimension, as a prior without a closed form."""

    def log_prob(self, z: torch.Tensor, condition_n: torch.Tensor | None = None) -> torch.Tensor:
        return -0.5 * ((z - 2.0).square() / 0.25 + math.log(2 * math.pi * 0.25)).sum(-1)

    def sample(self, n: int, generator: torch.Generator, condition_n: torch.Tensor | None = None) -> torch.Tensor:
        return 2.0 + 0.5 * torch.randn(n, self.n_latent, generator=generator)


def test_a_learned_prior_is_drawn_as_its_density(used, monkeypatch):
    monkeypatch.setattr(StandardNormal, "sample", _Shifted.sample)
    monkeypatch.setattr(StandardNormal, "analytic", False)
    axes: Any = pl.posterior(used, show=False)
    for ax in axes:
        line = next(line for line in ax.get_lines() if line.get_label() == "prior, learned")
        x, y = line.get_data()
        assert abs(x[y.argmax()] - 2.0) < 0.25
        np.testing.assert_allclose(y.max(), 1 / np.sqrt(2 * np.pi * 0.25), rtol=0.1)
    # without a closed form, bars are relative to the distribution of all cells together
    bars_ax: Any = pl.kl(used, show=False)
    bars = bars_ax.patches
    mean_nd, var_nd = used.obsm["X_vae"].astype(float), used.obsm["X_vae_var"].astype(float)
    total = mean_nd.var(0) + var_nd.mean(0)
    expected = vx.metrics.kl_per_dimension(mean_nd, var_nd, mean_nd.mean(0), total)
    np.testing.assert_allclose([bar.get_height() for bar in bars], np.sort(expected)[::-1], rtol=1e-5)
