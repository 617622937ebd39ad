"""What a training with several processes needs in addition: the same cells, own noise, and what is agreed in every step."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from vxpress.core.model import VAE
from vxpress.core.parallel import RankError
from vxpress.core.training.same_cells import cells_of

if TYPE_CHECKING:
    from vxpress.core.training import Training


def own_seed(seed: int, rank: int) -> int:
    """Return the seed of the noise of a process: dropout and draws of z differ between the parts of a minibatch."""
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])


def running_statistics(model: VAE) -> list[Tensor]:
    """Return the running means and variances of the batch norms of a model.

    They are linear in those of the minibatches, so their means over processes are those of means over the parts.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    found = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
    return [value for value in found if value is not None]


def check_same(training: Training) -> None:
    """Raise :class:`RankError` unless all processes have the same cells and settings."""
    source = training.source
    described = {
        "settings": (asdict(training.model.config), asdict(training.config), training.seed),
        "numbers of cells and genes": (len(source), source.n_genes),
        **dict(cells_of(training)),
        # cells that are dealt from different orders would be visited twice or never
        "order of the cells (counts in memory or on disk)": training.sampler.kind,
    }
    first, *others = training.world.gather(described)
    for rank, other in enumerate(others, 1):
        differing = [name for name in dict.fromkeys((*first, *other)) if first.get(name) != other.get(name)]
        if differing:
            msg = (
                f"Process {rank} has other data than process 0: the {' and the '.join(differing)} differ. All processes have to "
                "call the fit with the same cells in the same order, and with the same arguments."
            )
            raise RankError(msg)


def of_all(training: Training, state: dict[str, Any]) -> Any:
    """Return a part of the state of every process; that of this one if there is only one."""
    return training.world.gather(state) if training.world.several else state


def own(training: Training, state: Any) -> Any:
    """Return the part of the state that belongs to this process."""
    return state[training.world.rank] if training.world.several else state
