"""A file of counts."""

from __future__ import annotations

from pathlib import Path

import pytest

import vxpress as vx


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    path = tmp_path / "in.h5ad"
    vx.datasets.simulate(120, 40, n_batches=2).write_h5ad(path)
    return path
