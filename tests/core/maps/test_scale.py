"""Many cells: memory is that of the positions, not of their pairs."""

from __future__ import annotations

import resource
from typing import Any

import pytest
import torch

from vxpress.core.maps import MAPS

N, D = 100_000, 10
# a matrix of all pairs has 80 GB
MEGABYTES = 1_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shift", "bures", "sinkhorn", "icnn", "flow_matching"])
def test_a_hundred_thousand_cells_of_each_kind(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(2))
    target += 2.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kind = MAPS[name]
    # the steps are of minibatches
    options: dict[str, Any] = {"n_steps": 20} if name in ("icnn", "flow_matching") else {}
    fitted = kind(kind.Options(**options))
    fitted.fit(source, target, None, None, torch.Generator().manual_seed(0))
    moved = fitted(source)
    # kilobytes
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES
    assert float((moved.mean(0) - target.mean(0)).abs().max()) < 0.1
