"""Data of the cells: the only part of the core that knows how counts are stored."""

from vxpress.core.data.counts import Batch, Cells, Counts, without_stored_zeros

__all__ = ["Batch", "Cells", "Counts", "without_stored_zeros"]
