"""Several processes that work on one fit: what they exchange, and what happens if one of them is lost.

A :class:`World` is the set of processes. :data:`SINGLE` is the world of one process, in which nothing is exchanged; torch's
communication is imported only with more than one.
"""

from vxpress.core.parallel.environment import world_from_environment
from vxpress.core.parallel.gradient import GradientSum
from vxpress.core.parallel.world import SINGLE, RankError, Requests, World

__all__ = ["SINGLE", "GradientSum", "RankError", "Requests", "World", "world_from_environment"]
