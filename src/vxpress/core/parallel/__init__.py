"""Several processes that work on one fit: what they exchange, and what happens if one of them is lost.

A :class:`World` is the set of processes. :data:`SINGLE` is the world of one process, in which nothing is exchanged; torch's
communication is imported only with more than one.
"""

from vxpress.core.parallel.current import current_world, within
from vxpress.core.parallel.environment import local_rank, world_from_environment, world_size
from vxpress.core.parallel.gradient import GradientSum
from vxpress.core.parallel.world import SINGLE, RankError, Requests, World

__all__ = [
    "SINGLE",
    "GradientSum",
    "RankError",
    "Requests",
    "World",
    "current_world",
    "local_rank",
    "within",
    "world_from_environment",
    "world_size",
]
