"""Compressed zarr arrays are decoded by zarrs, if it is installed, without changing the configuration of zarr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vxpress.bridge.read.zarr_codecs import fast_codecs

zarr = pytest.importorskip("zarr")
pytest.importorskip("zarrs")


def pipeline(array: Any) -> str:
    """Return the name of the class that decodes an array."""
    return type(array.async_array.codec_pipeline).__name__


@pytest.fixture
def path(tmp_path: Path) -> Path:
    zarr.create_array(tmp_path / "a.zarr", data=np.arange(1000), chunks=(10,), shards=(100,))
    return tmp_path / "a.zarr"


def test_arrays_opened_inside(path: Path) -> None:
    before = zarr.config.get("codec_pipeline.path")
    with fast_codecs():
        fast = zarr.open_array(path, mode="r")
    slow = zarr.open_array(path, mode="r")
    assert zarr.config.get("codec_pipeline.path") == before
    assert pipeline(fast) == "ZarrsCodecPipeline"
    assert pipeline(slow) != "ZarrsCodecPipeline"
    np.testing.assert_array_equal(fast[37:481], slow[37:481])


def test_another_decoder_is_kept(path: Path) -> None:
    with zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}):
        zarr.config.set({"codec_pipeline.path": "somebody.ElsesPipeline"})
        with fast_codecs():
            assert zarr.config.get("codec_pipeline.path") == "somebody.ElsesPipeline"
    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[:], np.arange(1000))
