from __future__ import annotations

import numpy as np
import pytest

import vxpress as vx
from vxpress._seeds import seed_of


@pytest.mark.parametrize("rng", [7, np.int64(7), np.uint8(7)])
def test_whole_numbers_of_any_type_seed_the_same_draws(rng: int) -> None:
    assert seed_of(rng).random() == np.random.default_rng(7).random()


def test_a_generator_is_used_as_it_is() -> None:
    generator = np.random.default_rng(3)
    assert seed_of(generator) is generator


@pytest.mark.parametrize("rng", [3.5, -1, "7", [7], np.random.RandomState(0)])
def test_anything_else_is_refused_in_every_call(rng: object) -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    for call in (
        lambda: seed_of(rng),  # type: ignore[arg-type]
        lambda: vx.datasets.simulate(20, 10, rng=rng),  # type: ignore[arg-type]
        lambda: vx.datasets.pbmc_batches(50, rng=rng),  # type: ignore[arg-type]
        lambda: vx.metrics.mutual_information(x, np.ones_like(x), rng=rng),  # type: ignore[arg-type]
        lambda: vx.metrics.prior_gap(x, np.ones_like(x), rng=rng),  # type: ignore[arg-type]
        lambda: vx.metrics.two_sample_auroc(x, x, rng=rng),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="rng="):
            call()
