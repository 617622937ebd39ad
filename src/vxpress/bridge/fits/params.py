"""The settings of a fit as they are stored: what was asked for, what the data gave, and how the training went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vxpress.bridge.read.prepare import Recorded
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.likelihoods import LIKELIHOODS
from vxpress.core.option import check, option
from vxpress.core.training import STOPPED


@dataclass(frozen=True, kw_only=True)
class Params(Recorded):
    """All settings of a fit, enough to run it again; the record under ``uns[key]["params"]``.

    A mask that was given as an array is recorded under ``genes``. A generator given as ``rng`` is not recorded.
    """

    model: ModelConfig
    train: TrainConfig
    version: str
    library_source: str
    scale: str
    library_factor: float = option(1.0, low=np.finfo(float).tiny, high=np.finfo(float).max)
    mask_var: str | None = None
    rng: int | None = option(None, low=0, high=np.inf)
    split_rng: int | None = option(None, low=0, high=np.inf, label="rng")
    device: str = "cpu"
    stopped: str = "budget"
    best_epoch: int = option(0, low=0, high=2**62)
    n_steps: int = option(0, low=0, high=2**62)
    n_voided: int = option(0, low=0, high=2**62)
    dispersion_gain: float = 0.0
    n_train: int = option(0, low=0, high=2**62)
    n_values: int = option(0, low=0, high=2**62, since="0.2.0")
    """Cells x genes that the fit read, of the largest modality; 0 for fits that do not say it."""

    def __post_init__(self) -> None:
        check(self)
        scales = sorted({kind.output.scale for kind in LIKELIHOODS.values()})
        for name, known in (("scale", scales), ("stopped", list(STOPPED))):
            if getattr(self, name) not in known:
                msg = f"{name}={getattr(self, name)!r} was given; one of {known} is expected."
                raise ValueError(msg)
