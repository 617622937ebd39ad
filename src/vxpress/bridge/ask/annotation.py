"""Annotate cells with the labels of a fit: probabilities, sets of labels, cells of no known label, coarser labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.spatial import cKDTree

from vxpress._names import find_name, name_of
from vxpress.bridge.ask.encoding import encode_query
from vxpress.bridge.fits.annotator import LabelModel
from vxpress.bridge.fits.ensemble import side_by_side
from vxpress.bridge.fits.query import Query
from vxpress.bridge.read.columns import get_categories
from vxpress.core.annotation.annotator import Annotator
from vxpress.core.annotation.novelty import as_in_labelled, novelty
from vxpress.core.annotation.sets import fewest, grouped_ranks, label_p_values
from vxpress.core.data import have_counts
from vxpress.metrics import expected_calibration_error

# a cell this close to a labelled cell of the fit, in units of the spread of these, is that cell
SAME = 1e-4


@dataclass(frozen=True)
class Annotation:
    """What was found for each cell.

    ``prob_nc`` are calibrated probabilities of the labels, ``set_nc`` the sets, ``unknown_n`` which cells have none of the
    labels, and ``pval_n`` the p-value of the novelty ``score_n``, NaN for labelled cells of the fit and cells without counts.
    """

    names: tuple[str, ...]
    prob_nc: np.ndarray
    set_nc: np.ndarray
    unknown_n: np.ndarray
    score_n: np.ndarray
    pval_n: np.ndarray

    @property
    def best_n(self) -> np.ndarray:
        """Code of the most probable label of each cell."""
        return np.asarray(self.prob_nc.argmax(1))


def check_labels(labels: LabelModel | None, unknown_category: object) -> LabelModel:
    """Return the labels of a fit; raises ``ValueError`` without labels, or if one has the name of unknown cells."""
    if labels is None:
        msg = (
            "The fit has no labels to annotate with. Fit with the column of the labels and the category of cells without one: "
            "vx.tl.fit_vae(adata, labels_key='cell_type', unlabeled_category='Unknown')."
        )
        raise ValueError(msg)
    if not isinstance(unknown_category, str) or not unknown_category:
        msg = f"unknown_category={unknown_category!r} was given; a name for cells of no known label is expected."
        raise ValueError(msg)
    if unknown_category in labels.names:
        msg = f"unknown_category={unknown_category!r} is a label of the fit. Choose another name for cells of no known label."
        raise ValueError(msg)
    return labels


def annotate_query(
    query: Query, labels: LabelModel, device: torch.device, *, alpha: float, rng: np.random.Generator
) -> Annotation:
    """Encode cells and annotate them."""
    found, annotator = encode_query(query, device, max_epochs=0, rng=rng), labels.annotator
    z_nd, _ = side_by_side([removed for removed, _ in found.views])
    observed_g = None if query.missing is None else query.missing.observed_g.cpu()
    library = torch.from_numpy(found.library_n.astype(np.float32))
    log_prob_nc = annotator.log_prob(torch.from_numpy(z_nd), query.cells, library, observed_g)
    # a labelled cell of the fit is judged by what was learned from the others
    own_n = _same_cells(z_nd, annotator)
    held_out = (own_n >= 0) & annotator.met_m[own_n]
    log_prob_nc[held_out] = annotator.held_out_mc[own_n[held_out]]
    met_m = annotator.met_m
    p_nc = label_p_values(log_prob_nc, annotator.held_out_mc[met_m], annotator.labelled.code_m[met_m], alpha, rng)
    counted = have_counts(query.cells).numpy() & (found.library_n > 0)
    set_nc = (p_nc > alpha) & counted[:, None]
    judged = counted & (own_n < 0)
    score_n, pval_n = np.full((2, len(z_nd)), np.nan)
    if judged.any():
        batch_n = _batches(query)[judged]
        score_n[judged], pval_n[judged] = _novelty(
            z_nd[judged], log_prob_nc[judged].argmax(1), batch_n, annotator, smallest=fewest(alpha), rng=rng
        )
    unknown_n = (pval_n <= alpha) | (~set_nc.any(1) & ~held_out)
    return Annotation(labels.names, np.exp(log_prob_nc), set_nc, unknown_n, score_n, pval_n)


def _novelty(
    z_nd: np.ndarray,
    best_n: np.ndarray,
    batch_n: np.ndarray,
    annotator: Annotator,
    *,
    smallest: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and p-values: ranks among labelled cells with the same most probable label, if these are enough."""
    labelled = annotator.labelled
    score_n, score_m = novelty(z_nd, best_n, labelled)
    score_n = as_in_labelled(score_n, batch_n, score_m, labelled.batch_m)
    return score_n, grouped_ranks(-score_n, best_n, -score_m, labelled.best_m, smallest=smallest, draw=rng.random)


def _same_cells(z_nd: np.ndarray, annotator: Annotator) -> np.ndarray:
    """Return the number of the labelled cell of the fit that each cell is, -1 if it is another cell.

    A cell is recognised by its position, unless others are as near, as in a collapsed latent space.
    """
    z_md = annotator.labelled.z_md
    near = SAME * float(z_md.std()) + 1e-12
    # a position that several labelled cells share, or several of the cells, does not identify one
    distance_n2, nearest_n2 = cKDTree(z_md).query(z_nd, k=2)
    same_n = (distance_n2[:, 0] <= near) & (distance_n2[:, 1] > 3.0 * near)
    taken_m = np.bincount(nearest_n2[same_n, 0], minlength=len(z_md))
    return np.where(same_n & (taken_m[nearest_n2[:, 0]] == 1), nearest_n2[:, 0], -1)


def _batches(query: Query) -> np.ndarray:
    codes_nk = query.cells.covariates.categorical_nk.numpy()
    return codes_nk[:, 0] if query.fit.params.model.has_batch else np.zeros(len(codes_nk), dtype=np.int64)


# how well held-out labelled cells were annotated


def held_out_record(labels: LabelModel) -> dict[str, Any]:
    """Return accuracy, macro F1 and calibration error of held-out labelled cells, and a table of the labels as columns."""
    annotator, c = labels.annotator, len(labels.names)
    met_m = annotator.met_m
    prob_mc, code_m = np.exp(annotator.held_out_mc[met_m]), annotator.labelled.code_m[met_m]
    best_m = prob_mc.argmax(1)
    n_c, said_c, right_c = (np.bincount(part, minlength=c) for part in (code_m, best_m, code_m[code_m == best_m]))
    with np.errstate(invalid="ignore"):
        recall_c, precision_c, f1_c = right_c / n_c, right_c / said_c, 2.0 * right_c / (n_c + said_c)
    return {
        "n_labelled": np.bincount(annotator.labelled.code_m, minlength=c),
        "recall": recall_c,
        "precision": precision_c,
        "f1": f1_c,
        "accuracy": float((code_m == best_m).mean()) if len(code_m) else float("nan"),
        "macro_f1": float(np.nanmean(f1_c[n_c > 0])) if len(code_m) else float("nan"),
        "calibration_error": expected_calibration_error(prob_mc, code_m) if len(code_m) else float("nan"),
    }


# coarser labels


@dataclass(frozen=True)
class Coarse:
    """Coarser labels, and the code of the one that each label belongs to."""

    names: tuple[str, ...]
    of_c: np.ndarray

    @classmethod
    def of(
        cls,
        coarse: Mapping[Any, Any] | str,
        labels: LabelModel,
        places: Sequence[pd.DataFrame],
        reserved: Sequence[str] = (),
    ) -> Coarse:
        """Read them from a mapping, or from a column of the first of ``places`` that also holds the labels.

        Raises ``ValueError`` if one has a name in ``reserved``, which says that a cell has none.
        """
        pairs = _of_column(coarse, labels, places) if isinstance(coarse, str) else _of_mapping(coarse, labels)
        missing = [name for name in labels.names if name not in pairs]
        if missing:
            msg = f"coarse= has no coarser label for {missing[:5]}. Give one for each of the {len(labels.names)} labels: {list(labels.names)}."
            raise ValueError(msg)
        taken = [name for name in reserved if name in pairs.values()]
        if taken:
            msg = f"coarse= has a coarser label {taken[0]!r}, which names cells without one. Choose another name."
            raise ValueError(msg)
        names = tuple(dict.fromkeys(pairs[name] for name in labels.names))
        return cls(names, np.array([names.index(pairs[name]) for name in labels.names]))

    def prob(self, prob_nc: np.ndarray) -> np.ndarray:
        """Return the probability of each coarser label, the sum of those of its labels, (n, coarser labels)."""
        return np.asarray(prob_nc @ (self.of_c[:, None] == np.arange(len(self.names))))

    def backed_off(self, found: Annotation, unknown: str, undecided: str) -> np.ndarray:
        """Return the finest name that holds for the whole set of each cell: its only label, or the coarser label of all."""
        member_nk = self.prob(found.set_nc.astype(float)) > 0
        size_n = found.set_nc.sum(1)
        out = np.full(len(size_n), undecided, dtype=object)
        one = (size_n > 0) & (member_nk.sum(1) == 1)
        out[one] = np.array(self.names, dtype=object)[member_nk[one].argmax(1)]
        out[size_n == 1] = np.array(found.names, dtype=object)[found.set_nc[size_n == 1].argmax(1)]
        out[found.unknown_n] = unknown
        return out


def _of_mapping(coarse: Any, labels: LabelModel) -> dict[str, str]:
    if not isinstance(coarse, Mapping):
        msg = f"coarse={coarse!r} was given; a mapping from labels to coarser ones, or the name of a column of obs, is expected."
        raise TypeError(msg)
    pairs = {}
    for label, value in coarse.items():
        name = find_name(label, labels.names)
        if name is None:
            msg = f"coarse= names {label!r}, which is not a label of the fit. It has {list(labels.names)}."
            raise ValueError(msg)
        try:
            pairs[name] = name_of(value)
        except ValueError as error:
            msg = f"coarse= has {error} as the coarser label of {name!r}; a name is expected."
            raise ValueError(msg) from error
    return pairs


def _of_column(column: str, labels: LabelModel, places: Sequence[pd.DataFrame]) -> dict[str, str]:
    obs = next((obs for obs in places if column in obs and labels.key in obs), None)
    if obs is None:
        msg = (
            f"coarse={column!r} is no column next to the labels, obs[{labels.key!r}], of the cells at hand. Pass the coarser label "
            "of each label, coarse={'CD4 T': 'T', ...}."
        )
        raise KeyError(msg)
    fine, above = (get_categories(obs, key, gaps=True) for key in (labels.key, column))
    pairs: dict[str, str] = {}
    for code, name in enumerate(fine.names):
        found = np.unique(above.code_n[(fine.code_n == code) & (above.code_n >= 0)])
        if name in labels.names and len(found):
            if len(found) > 1:
                msg = f"obs[{column!r}] has {len(found)} categories for the label {name!r} ({[above.names[i] for i in found[:3]]}); one is expected."
                raise ValueError(msg)
            pairs[name] = above.names[found[0]]
    return pairs
