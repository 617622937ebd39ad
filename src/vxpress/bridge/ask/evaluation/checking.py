"""Checks of predicted cells: those of one method only, and counts rather than log values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from vxpress.bridge.ask.evaluation.populations import MISSING, SOURCE, Keys, Part, Scale

# log1p of counts per million is at most 13.8
LARGEST_LOG = 20.0
# a column with more values does not name methods
MOST_METHODS = 100
# fewer genes have no shape, fewer cells no spread
MIN_GENES, MIN_CELLS = 10, 3
MAPPING = "pass a mapping of the AnnDatas as they were before they were joined, {'name of the method': predicted, ...}"
ONE = "make one pair for each method, from its cells alone,"
UNIT = ["group", "target"]


def check_one_method(parts: Sequence[Part], keys: Keys, name: str, *, mapping: bool = True) -> None:
    """Raise if the cells of one method predict a control cell, or a whole group and target, more than once.

    ``mapping`` says whether the call takes a mapping of several methods.
    """
    frames = []
    for i, part in enumerate(parts):
        group, target = keys.labels(part.adata, "predicted")
        obs = part.adata.obs
        source = obs[SOURCE] if SOURCE in obs else pd.Series(part.adata.obs_names, dtype=object)
        frame = pd.DataFrame({"group": group, "target": target, "source": source.to_numpy(dtype=object), "part": i})
        frames.append(frame[source.notna().to_numpy() & ~frame[UNIT].eq(MISSING).any(axis=1)])
    table = pd.concat(frames)
    n_parts = table.groupby(UNIT, observed=True, sort=False)["part"].nunique()
    if (n_parts > 1).any():
        msg = (
            f"The list of predictions of {name!r} has {int(n_parts.max())} AnnDatas for group and target {n_parts.idxmax()}; one is expected. If they are "
            f"of several methods, {MAPPING if mapping else ONE}. If they are one prediction, pass anndata.concat of them."
        )
        if keys.perturbation_key is None:
            msg += " If they are of several targets, pass perturbation_key=, the column of obs with the targets."
        raise ValueError(msg)
    for i, part in enumerate(parts):
        own = table[table["part"] == i]
        repeated = own.duplicated([*UNIT, "source"])
        if repeated.any():
            raise ValueError(_repeated(part.adata, own, int(repeated.sum()), keys, name, mapping=mapping))


def _repeated(adata: AnnData, table: pd.DataFrame, n: int, keys: Keys, name: str, *, mapping: bool) -> str:
    """Return the message about cells that are predicted more than once for a group and target."""
    where = f"obs[{SOURCE!r}]" if SOURCE in adata.obs else "obs_names"
    column = _separating(adata, table, keys)
    if column is None:
        mend = MAPPING if mapping else ONE
    else:
        rows = f"predicted.obs[{column!r}]"
        mend = f"pass {{name: predicted[{rows} == name].copy() for name in {rows}.unique()}}" if mapping else ONE
        mend += f" if obs[{column!r}] has the methods"
        if keys.perturbation_key is None:
            mend += f", perturbation_key={column!r} if it has the perturbations"
        if keys.groupby is None:
            mend += f", groupby={column!r} if it has the groups"
    own = f"del predicted.obs[{SOURCE!r}]; " if SOURCE in adata.obs else ""
    return (
        f"{where} of the cells predicted by {name!r} repeats {n} name(s) within a group and target, so these are not one prediction, but for example "
        f"anndata.concat of several methods: {mend}. If each control cell was predicted several times by one method, "
        f"{own}predicted.obs_names_make_unique()."
    )


def _separating(adata: AnnData, table: pd.DataFrame, keys: Keys) -> str | None:
    """Return the first column of names within whose values no cell is repeated."""
    for column in adata.obs.columns:
        values = adata.obs[column]
        if column in (SOURCE, keys.groupby, keys.perturbation_key) or pd.api.types.is_numeric_dtype(values):
            continue
        named = table.assign(value=values.to_numpy(dtype=object)[table.index])
        if (
            named["value"].nunique() in range(2, MOST_METHODS)
            and not named.duplicated([*UNIT, "source", "value"]).any()
        ):
            return str(column)
    return None


def check_predicted_counts(
    block: sparse.csr_matrix, columns: np.ndarray, measured: Sequence[sparse.csr_matrix], scale: Scale, name: str
) -> None:
    """Raise if predicted cells, which are read as counts, hold log values; ``measured`` are log values of real cells.

    Expected counts are not whole numbers either. So values count as logarithms if they are small and all cells have the
    same sum before the logarithm, or if the mean profile has the shape of a mean of log values, not that of counts.
    """
    if scale.log_transformed:
        return
    data = block.data
    if not data.size or data.max() > LARGEST_LOG or (data == np.rint(data)).all():
        return
    if not (
        _one_library(block) or _shaped_as_logarithms(_mean(block[:, columns]), [_mean(x) for x in measured], measured)
    ):
        return
    if scale.library_key is None:
        mend = "predicted.X = np.expm1(predicted.X)"
    else:
        mend = f"predicted.X = np.expm1(predicted.X), with the sum of each cell before genes were left out in predicted.obs[{scale.library_key!r}]"
    msg = (
        f"X of the cells predicted by {name!r} looks log-transformed (largest value {data.max():.3g}, not whole numbers), but counts or expected counts are "
        f"expected, which are normalised and log-transformed here. Undo the logarithm: {mend}. Or bring the real cells to the same scale, "
        "observed.X = vx.metrics.log1p_normalized(observed.X) and the same for control, and pass log_transformed=True."
    )
    raise ValueError(msg)


def _one_library(block: sparse.csr_matrix) -> bool:
    """Return whether all cells have the same sum once the logarithm is undone, and differ in their sums with it."""
    with_log, without = (np.asarray(x.sum(1)).reshape(-1) for x in (block, block.expm1()))
    with_log, without = with_log[with_log > 0], without[with_log > 0]
    if len(without) < MIN_CELLS:
        return False
    return bool(without.std() < 1e-3 * without.mean() and with_log.std() > 1e-2 * with_log.mean())


def _shaped_as_logarithms(
    mean_g: np.ndarray, log_rg: Sequence[np.ndarray], measured: Sequence[sparse.csr_matrix]
) -> bool:
    """Return whether a profile is much nearer to those of log values than to those of counts, in total variation."""
    total = mean_g.sum()
    if len(mean_g) < MIN_GENES or not any(0.25 < total / log_g.sum() < 4 for log_g in log_rg if log_g.sum() > 0):
        return False
    count_rg = [_mean(x.expm1()) for x in measured]
    # also the logarithm of a mean, and a mean of logarithms that was transformed back
    as_log = min(_distance(mean_g, x) for x in [*log_rg, *(np.log1p(x) for x in count_rg)])
    as_counts = min(_distance(mean_g, x) for x in [*count_rg, *(np.expm1(x) for x in log_rg)])
    return as_log < 0.5 * as_counts


def _mean(x: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(x.mean(0), dtype=np.float64).reshape(-1)


def _distance(x_g: np.ndarray, y_g: np.ndarray) -> float:
    return float(np.abs(x_g / max(x_g.sum(), 1e-300) - y_g / max(y_g.sum(), 1e-300)).sum())
