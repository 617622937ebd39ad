"""``vx.tl.cell_eval_pair``: predicted and measured cells in the form that cell-eval reads."""

from __future__ import annotations

from collections.abc import Sequence

from anndata import AnnData

from vxpress._entry import entry
from vxpress.bridge.ask.evaluation.cell_eval import pair_of
from vxpress.bridge.ask.evaluation.populations import Keys, Scale, check_cells, control_of, methods_of


@entry
def cell_eval_pair(
    predicted: AnnData | Sequence[AnnData],
    observed: AnnData,
    control: AnnData | None = None,
    *,
    groupby: str | None = None,
    perturbation_key: str | None = None,
    layer: str | None = None,
    library_key: str | None = None,
    log_transformed: bool = False,
) -> tuple[AnnData, AnnData]:
    """Bring predicted and measured cells into the form that cell-eval, the package of the Virtual Cell Challenge, reads.

    Both AnnDatas hold treated cells and the same real control cells, so that no score depends on predicted controls.

    Parameters
    ----------
    predicted
        Predicted treated cells of one method, as from :func:`predict_perturbation`; a list for several targets.
    observed
        Measured treated cells, with raw counts of the predicted genes.
    control
        Real control cells; ``None`` takes those that travel with ``predicted``.
    groupby, perturbation_key, layer, library_key, log_transformed
        As in :func:`evaluate_perturbation`.

    Returns
    -------
    ``pred, real``, with ``log1p(10,000 x / library)`` in ``X`` (CSR, float32), the target of every cell in
    ``obs[perturbation_key]`` (``"perturbation"`` if there is no name), the label of the control there (``"control"`` if
    the prediction names none), and the groups in ``obs[groupby]``. Only targets and groups that both have are kept.

    Raises
    ------
    ValueError
        If no treated cell has a predicted group and target, or ``control`` holds treated cells.
    KeyError
        If a column of ``obs``, a layer or a gene is missing.

    See Also
    --------
    evaluate_perturbation : the same scores, with floors, a ceiling and intervals.

    Notes
    -----
    cell-eval compares all cells of a target with all control cells. If there are groups, evaluate each alone, or name
    their column (``--celltype-col`` of its command line)::

        from cell_eval import MetricsEvaluator

        for group in real.obs["cell_type"].cat.categories:
            pair = [adata[adata.obs["cell_type"] == group].copy() for adata in (pred, real)]
            evaluator = MetricsEvaluator(*pair, control_pert="control", pert_col="perturbation")
            results, aggregated = evaluator.compute()

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.simulate(300, 50, n_batches=2, rng=0)
    >>> control, treated = (adata[adata.obs["batch"] == name] for name in ("batch_0", "batch_1"))
    >>> pred, real = vx.tl.cell_eval_pair(treated[:50], treated[50:], control, perturbation_key="batch")
    >>> sorted(real.obs["batch"].unique())
    ['batch_1', 'control']
    """
    check_cells("observed", observed)
    parts = [part for found in methods_of(predicted).values() for part in found]
    keys = Keys.of(groupby, perturbation_key, parts[0])
    scale = Scale(layer, library_key, bool(log_transformed))
    return pair_of(parts, observed, control_of(control, parts, keys, layer), keys, scale)
