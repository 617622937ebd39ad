"""A model with a second observed modality, which is defined here, in training, evaluation and importance sampling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from vxpress.core import rule
from vxpress.core.blocks import Point
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.data import Batch, Cells
from vxpress.core.inference.importance import log_likelihood
from vxpress.core.isolation import seeded
from vxpress.core.model import RNA, VAE
from vxpress.core.noise import Noise
from vxpress.core.training import Outcome, train

PROTEIN, VALUE = "protein", -7.5
CONFIG = ModelConfig(n_genes=20, n_latent=2, n_hidden=16)


class Constant(VAE):
    """A second modality whose log likelihood is the same for every cell, so that it has no gradient."""

    modalities: tuple[str, ...] = (RNA, PROTEIN)

    def log_likelihood(self, point: Point, batch: Batch, noise: Noise | None = None) -> dict[str, Tensor]:
        found = super().log_likelihood(point, batch, noise)
        return found | {PROTEIN: torch.full_like(found[RNA], VALUE)}


class Close(Constant):
    """A second modality that holds the first dimension of z at 1."""

    def log_likelihood(self, point: Point, batch: Batch, noise: Noise | None = None) -> dict[str, Tensor]:
        found = super().log_likelihood(point, batch, noise)
        return found | {PROTEIN: -1e3 * (point["z"][:, 0] - 1.0).square()}


class Unnamed(Constant):
    modalities = (RNA,)


def _trained(kind: type[VAE], cells: Cells, objective: str = "elbo", **settings: object) -> tuple[VAE, Outcome]:
    with seeded(0):
        model = kind(CONFIG)
    rows = torch.arange(len(cells))
    config = TrainConfig(max_epochs=2, batch_size=32, objective=objective, n_samples=3, **settings)  # type: ignore[arg-type]
    return model, train(model, cells, rows[24:], rows[:24], config, seed=1)


@pytest.mark.parametrize("objective", ["elbo", "iwae", "dreg"])
def test_a_constant_modality_shifts_every_value_and_changes_no_weight(
    make_cells: Callable[..., Cells], objective: str
) -> None:
    cells = make_cells()
    # the two share an implementation: the step without a tape knows counts alone
    with rule.plain():
        (one, expected), (two, found) = (_trained(kind, cells, objective) for kind in (VAE, Constant))
        bounds = [log_likelihood(model, cells, 4, seed=0) for model in (one, two)]
    for key, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[key], value)
    for part in ("train", "validation"):
        for column in ("elbo", "reconstruction"):
            values = np.subtract(found.history[f"{column}_{part}"], expected.history[f"{column}_{part}"])
            np.testing.assert_allclose(values, VALUE, rtol=1e-4)
        np.testing.assert_allclose(found.history[f"reconstruction_{PROTEIN}_{part}"], VALUE, rtol=1e-6)
        np.testing.assert_allclose(
            found.history[f"reconstruction_{RNA}_{part}"], expected.history[f"reconstruction_{part}"], rtol=1e-4
        )
    moved = np.subtract(found.history["objective_validation"], expected.history["objective_validation"])
    np.testing.assert_allclose(moved, VALUE, rtol=1e-4)
    np.testing.assert_allclose(bounds[1].log_likelihood_n - bounds[0].log_likelihood_n, VALUE, rtol=1e-4)
    assert f"reconstruction_{RNA}_train" not in expected.history


def test_a_second_modality_is_trained_where_the_common_model_has_a_faster_step(
    make_cells: Callable[..., Cells],
) -> None:
    _, outcome = _trained(Close, make_cells(), learning_rate=0.05, kl_warmup=0.0)
    first, last = outcome.history[f"reconstruction_{PROTEIN}_train"]
    assert last > 0.5 * first


def test_a_term_that_the_model_does_not_name_is_refused(make_cells: Callable[..., Cells]) -> None:
    with pytest.raises(
        ValueError, match=r"terms for rna, protein, but the modalities of the model are rna\..*modalities"
    ):
        _trained(Unnamed, make_cells())
