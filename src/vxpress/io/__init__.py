"""Data larger than memory: open stores without reading their matrices, and write results into them."""

from __future__ import annotations

from vxpress.io._open_store import open_store
from vxpress.io._write_results import write_results

__all__ = ["open_store", "write_results"]
