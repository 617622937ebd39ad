"""What identifies the cells of a training: to continue it, and for several processes that share it, they have to be the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from vxpress.core.config import RNA

if TYPE_CHECKING:
    from vxpress.core.training import Training


def cells_of(training: Training) -> Iterator[tuple[str, str]]:
    """Yield the name and a hash of each property of the cells, except their counts; the hash of one that is absent is empty."""
    source, covariates = training.source, training.source.covariates
    for name, rows in (("training", training.train_rows), ("validation", training.validation_rows)):
        yield f"choice of {name} cells", digest(rows)
    yield "library size of each cell", digest(source.log_library_n1)
    yield "category of each cell", digest(covariates.categorical_nk)
    yield "continuous covariate of each cell", digest(covariates.continuous_nc)
    yield "label of each cell", digest(covariates.label_n)
    yield "dose of each perturbation in each cell", digest(covariates.dose_np)
    # only where there are some, so that states without panels stay those of earlier versions
    if training.model.panels is not None:
        yield "gene panel of each cell", digest(covariates.panel_n)
        yield "table of gene panels", digest(training.model.panels.measured_pg)
        yield "table of gene panels outside the model", digest(training.model.panels.outside_pg)
    for name, other in source.further.items():
        yield f"size factor of each cell in {name}", digest(other.log_library_n1)
    for name in (RNA, *source.further) if source.further else ():
        if (observed_n := source.observed(name)) is not None:
            yield f"choice of cells that have {name}", digest(observed_n)


def digest(values: Tensor | None) -> str:
    """Return a hash of the bytes of a tensor, empty for None."""
    return "" if values is None else hashlib.sha256(values.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
