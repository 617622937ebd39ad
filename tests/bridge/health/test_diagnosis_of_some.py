"""A diagnosis of many cells uses some of them, which give the same means."""

from __future__ import annotations

import numpy as np
import pytest

from vxpress.bridge.health import diagnosis
from vxpress.bridge.health.diagnosis import _some, diagnose
from vxpress.core.config import TrainConfig
from vxpress.core.inference.posterior import Encoded

N = 3_000


def test_some_held_out_and_some_other_cells_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "MAX_DIAGNOSED", 1_000)
    assert _some(np.zeros(1_000, dtype=bool)) is None
    for n_held_out, expected in ((0, 0), (200, 200), (1_500, 500), (2_900, 900)):
        held_out = np.random.default_rng(0).permutation(N) < n_held_out
        rows = _some(held_out)
        assert rows is not None
        assert len(np.unique(rows)) == len(rows) == 1_000
        assert held_out[rows].sum() == expected


def test_means_are_those_of_all_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    # not the seed of the noise of the diagnosis
    rng = np.random.default_rng(17)
    mean, var = rng.normal(0, 0.8, (N, 4)).astype(np.float32), np.full((N, 4), 0.36, dtype=np.float32)
    mean[:, 3], var[:, 3] = 0.0, 1.0
    held_out = rng.random(N) < 0.5

    def numbers() -> dict[str, object]:
        return diagnose(Encoded({"z": mean}, {"z": var}), held_out, TrainConfig(max_epochs=1), {}, n_steps=1)

    every = numbers()
    monkeypatch.setattr(diagnosis, "MAX_DIAGNOSED", 2_000)
    some = numbers()
    assert some["active_units"] == every["active_units"] == 3
    assert some["kl"] != every["kl"]
    assert some["kl"] == pytest.approx(every["kl"], rel=0.05)
    assert some["mutual_information"] == pytest.approx(every["mutual_information"], rel=0.1)
