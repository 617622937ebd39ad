"""Data of the cells: the only part of the core that knows how counts are stored.

A *source* (:class:`Source`) gives a *batch* (:class:`Batch`) for given row numbers, a *sampler* (:class:`Sampler`)
gives the order of an epoch, and :func:`walk` goes through all cells once.
"""

from vxpress.core.data.batch import Batch, Rows
from vxpress.core.data.by_rank import BlocksByRank, ByRank, Dealt, dealt
from vxpress.core.data.counts import Counts, without_stored_zeros
from vxpress.core.data.joined import Joined
from vxpress.core.data.mapped import Mapped
from vxpress.core.data.placement import SOURCES, place
from vxpress.core.data.resident import Cells
from vxpress.core.data.sampler import ByBlock, Sampler, Shuffled, number_of_minibatches
from vxpress.core.data.source import Source
from vxpress.core.data.stored import Reader, Stored
from vxpress.core.data.streamed import Streamed
from vxpress.core.data.walk import gene_sums, have_counts, walk

__all__ = [
    "SOURCES",
    "Batch",
    "BlocksByRank",
    "ByBlock",
    "ByRank",
    "Cells",
    "Counts",
    "Dealt",
    "Joined",
    "Mapped",
    "Reader",
    "Rows",
    "Sampler",
    "Shuffled",
    "Source",
    "Stored",
    "Streamed",
    "dealt",
    "gene_sums",
    "have_counts",
    "number_of_minibatches",
    "place",
    "walk",
    "without_stored_zeros",
]
