"""Faster reading of compressed zarr arrays, if the package zarrs is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

DEFAULT = "zarr.core.codec_pipeline.BatchedCodecPipeline"
FAST = "zarrs.ZarrsCodecPipeline"


@contextmanager
def fast_codecs() -> Iterator[None]:
    """Let the zarr arrays that are opened in this context decode their chunks with zarrs.

    An array keeps the decoder that it was opened with, so the configuration of zarr is as before afterwards. Nothing
    changes without zarrs, or if another decoder was configured. Stores and codecs that zarrs does not know are
    still read by zarr itself.
    """
    if find_spec("zarr") is None or find_spec("zarrs") is None:
        yield
        return
    import zarr
    import zarrs  # noqa: F401 - registers its decoder

    if zarr.config.get("codec_pipeline.path") != DEFAULT:
        yield
        return
    with zarr.config.set({"codec_pipeline.path": FAST}):
        yield
