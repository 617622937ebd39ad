"""Learn the labels of a fit, after its training: a classifier with its calibration, and the prior of z given the label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scanpy import logging as logg

from vxpress.bridge.fits.annotator import LabelModel
from vxpress.bridge.fits.ensemble import side_by_side
from vxpress.bridge.fits.runner import Fitted
from vxpress.bridge.fits.training_cells import MIN_TRAIN, MIN_VALIDATION
from vxpress.bridge.health.learn_prior import Conditions, Task, put_prior, trained_prior
from vxpress.bridge.read.labels import CellLabels
from vxpress.bridge.read.prepare import Prepared
from vxpress.core.annotation import annotator
from vxpress.core.config import PriorName
from vxpress.core.progress import stage

PRIOR: PriorName = "label_mixture"
# components of each label, and the number of cells for each that this takes on average
MAX_EACH, CELLS_EACH = 4, 40
# of the prior, which starts at the clusters of each label
STEPS = 150
# with fewer labelled batches, none can be held out to see how well others are annotated
MIN_BATCHES = 2


@dataclass(frozen=True)
class LearnedLabels:
    """The classifier, and the record of the prior given the label; None if the fit keeps its own prior."""

    model: LabelModel
    prior: dict[str, Any] | None


def learn_labels(prepared: Prepared, fitted: Sequence[Fitted], seed: int) -> LearnedLabels | None:
    """Learn a classifier of the labels and, unless the model has a learned prior, put a prior given the label in its place.

    Networks and posteriors stay those of a fit without labels. None if the fit has no labels.
    """
    labels = prepared.labels
    if labels is None:
        return None
    with stage("learning the labels"):
        model = _label_model(labels, prepared, fitted, seed)
        prior = _prior(labels, prepared, fitted[0], seed) if fitted[0].model.prior.config.name == "normal" else None
    return LearnedLabels(model, prior)


def _label_model(labels: CellLabels, prepared: Prepared, fitted: Sequence[Fitted], seed: int) -> LabelModel:
    rows_n = np.sort(np.concatenate([prepared.train_n, prepared.validation_n]))
    rows_m = rows_n[labels.code_n[rows_n] >= 0]
    z_nd, _ = side_by_side([each.encoded for each in fitted])
    has_batch = prepared.covariates.batch_key is not None
    batch_n = (
        prepared.cells.covariates.categorical_nk[:, 0].numpy() if has_batch else np.zeros(len(z_nd), dtype=np.int64)
    )
    task = annotator.Task(
        torch.from_numpy(z_nd),
        prepared.cells,
        torch.from_numpy(rows_n),
        torch.from_numpy(rows_m),
        torch.from_numpy(labels.code_n[rows_m]),
        len(labels.names),
        torch.from_numpy(batch_n[rows_m]),
        by_batch=_by_batch(batch_n[rows_n], batch_n[rows_m]),
    )
    return LabelModel(labels.key, labels.names, annotator.Annotator.learn(task, seed))


def _by_batch(batch_n: np.ndarray, labelled_m: np.ndarray) -> bool:
    """Return whether whole batches are held out: if some have no labels, their cells are annotated as they were checked."""
    return MIN_BATCHES <= len(np.unique(labelled_m)) < len(np.unique(batch_n))


def _prior(labels: CellLabels, prepared: Prepared, fitted: Fitted, seed: int) -> dict[str, Any] | None:
    """Put a mixture with components for each label in the place of N(0, I), if it describes held-out cells better."""
    train_n, validation_n = prepared.train_n, prepared.validation_n
    if not len(validation_n):
        validation_n = train_n[::10]
        train_n = np.setdiff1d(train_n, validation_n)
    if len(train_n) < MIN_TRAIN or len(validation_n) < MIN_VALIDATION:
        return None
    code_n = np.where(labels.code_n < 0, len(labels.names), labels.code_n)
    conditions = Conditions(labels.key, labels.names, code_n, unlabelled=True)
    task = Task(fitted.encoded.mean_nd, fitted.encoded.var_nd, train_n, validation_n, conditions)
    n_each = int(np.clip(len(train_n) // (CELLS_EACH * conditions.n), 1, MAX_EACH))
    new, record, found = trained_prior(
        fitted.model, task, PRIOR, n_components=n_each * conditions.n, n_steps=STEPS, seed=seed
    )
    # cells of a label are asked for, so it is kept unless it is worse
    if not found.gain > -found.gain_se:
        logg.info(
            f"    the prior given the label is not kept: held-out cells have a log p(z) {found.gain:+.2f} +- {found.gain_se:.2f} "
            "above that under N(0, I)"
        )
        return None
    put_prior(fitted.model, new)
    return record
