"""``vx.tl.evaluate_perturbation``: score predicted responses to a perturbation, with floors and ceilings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress.bridge.ask.evaluation.evaluation import PerturbationEvaluation
from vxpress.bridge.ask.evaluation.populations import Keys, Scale, check_cells, control_of, methods_of
from vxpress.bridge.ask.evaluation.result import Main, changes, sentences, tables
from vxpress.bridge.ask.evaluation.scoring import MIN_GENES, Inputs, score, settings_of

Predicted: TypeAlias = AnnData | Sequence[AnnData] | Mapping[str, AnnData | Sequence[AnnData]]
Floors: TypeAlias = Mapping[str, AnnData | Sequence[AnnData] | pd.DataFrame | pd.Series | np.ndarray]


@entry
def evaluate_perturbation(
    predicted: Predicted,
    observed: AnnData,
    control: AnnData | None = None,
    *,
    groupby: str | None = None,
    perturbation_key: str | None = None,
    floors: Floors | None = None,
    layer: str | None = None,
    library_key: str | None = None,
    log_transformed: bool = False,
    n_top: Sequence[int] = (20, 50, 100),
    measure: str = "weighted_r2_change",
    genes: str = "all",
    split_controls: bool = True,
    n_resamples: int = 200,
    n_cells: int = 500,
    level: float = 0.95,
    rng: int | np.random.Generator | None = 0,
    progress: bool | None = None,
) -> PerturbationEvaluation:
    r"""Score predicted responses to a perturbation against measured ones, between floors and a ceiling.

    A score means little alone: the mean change of other groups can score as high as any model. So every method is
    compared with floors (simple predictions), on the same resampled cells, and with what a repetition of the experiment
    would score. The sentence in ``verdict`` says whether the method is better than the best floor.

    All scores are on the scale ``log1p(10,000 x / library)`` of single cells, as means over the cells of a group. The
    change of a gene is the mean of the treated cells minus that of the control cells of the same group.

    Parameters
    ----------
    predicted
        Predicted treated cells, as from :func:`predict_perturbation`: counts in ``X``, and in ``obs`` the column
        ``groupby``. A list of AnnData holds several targets; a mapping from names to either compares several methods
        on the same resamples. Any other AnnData with these columns can be scored too. If a prediction states the change
        of the means, as those of :func:`predict_perturbation` do, this is scored as the change, because drawn cells
        add the noise of their number; cells that were edited or left out are scored themselves.
    observed
        Treated cells that were measured and that the model has not seen, with raw counts of the predicted genes.
        Cells of other perturbations are ignored.
    control
        Real control cells with raw counts; ``None`` takes those that travel with ``predicted``. Predicted controls
        are never used. If ``predicted.obs["source_cell"]`` names cells of ``control``, every predicted cell is
        compared and resampled with its control cell.
    groupby
        Column of ``obs`` with the groups (for example cell types): each group has its own controls. By default the
        groups of the prediction.
    perturbation_key
        Column of ``obs`` with the perturbation; by default that of the prediction. Without one, all cells of
        ``observed`` have the same target.
    floors
        Further floors, by name: predicted cells, as ``predicted``, or the predicted change of every gene: a table with
        groups or targets as rows and genes as columns, or an array. Those that :func:`predict_perturbation` has stored
        are always used, and ``"control"``, which predicts no change.
    layer
        Layer of ``observed`` and ``control`` with the counts; by default ``X``.
    library_key
        Column of ``obs`` of all cells with the library size; by default the sum over the predicted genes. Needed if the
        fit has only some of the genes that its size factors count: ``"library_size"``, from
        :func:`vxpress.pp.library_size`.
    log_transformed
        Whether all matrices already hold values on the scale above, as predictions of other tools often do.
    n_top
        Sizes of the lists of genes that change most, by the absolute t statistic of Welch between real treated and
        control cells. One fixed list per group and target serves all methods. At least 3.
    measure, genes
        The measure, and the set of genes (``"all"`` or for example ``"top50"``), by which the verdict is given.
    split_controls
        Subtract one half of the controls from the prediction and the other half from the treated cells, on average
        over several splits. With ``False``, all controls are subtracted from both, as in other tools; their common
        sampling noise then raises the scores of the change, most for predictions that are the same for all cells.
    n_resamples
        Number of bootstrap resamples of treated and control cells.
    n_cells
        Largest number of cells per population for the energy distance and the maximum mean discrepancy.
    level
        Level of the intervals.
    rng
        Seed of resamples, splits and drawn cells, or a numpy generator.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.

    Returns
    -------
    A :class:`PerturbationEvaluation` with ``verdict``, ``table``, ``summary`` and ``changes``. The columns of the
    tables are

    - ``method``, ``kind`` (``"prediction"`` or ``"floor"``), ``genes``, ``measure``; ``group`` and ``target``, or in
      ``summary`` the number of both, ``n_groups``;
    - ``score``, with its interval ``low`` to ``high``: in ``table`` over cells; in ``summary`` over groups, which
      includes the cells, or over cells if there are fewer than three groups;
    - ``floor``, the best floor, its ``floor_score``, and the ``difference`` from it with its interval over cells,
      positive if the method is better. Genes that are listed or weighted because they change most were found on the
      same treated cells, where noise makes differences look larger. So for these measures the difference is computed
      with lists and weights of one half of the treated cells and the scores of the other, on average over splits, and
      is not exactly the difference of the two scores. ``summary`` has also the interval over groups,
      ``difference_low_groups`` to ``difference_high_groups``, which says what to expect of other groups;
    - ``verdict``: ``"better"`` if the intervals over cells of the differences from all floors are above 0, ``"worse"``
      if that from the best floor is below 0, else ``"undecided"``; empty where no difference is computed
      (distributions and standard deviations of listed genes, floors without a finite score);
    - ``ceiling``, the score that a repetition of the experiment with as many cells would have;
    - ``calibrated``, (score - floor) / (ceiling - floor): 0 at the best floor, 1 at the ceiling. A prediction that
      averages over many cells can exceed 1. NaN if the floor reaches the ceiling.

    The measures are, for all genes and each list of ``n_top``,

    - ``pearson2_mean``, ``r2_mean``, ``mse_mean``: squared correlation, coefficient of determination and mean squared
      error of the means of the treated cells. They are high for any prediction, because genes differ in their mean;
    - ``pearson_change``, ``pearson2_change``, ``r2_change``, ``mse_change``: the same of the change, and its
      correlation with the sign;
    - ``weighted_mse_change``, ``weighted_r2_change``: the same with the weights of :func:`vxpress.metrics.de_weights`;
    - ``slope_change``: slope of the regression of the predicted on the measured change through the origin, 1 is best;
    - ``sign_agreement``: share of the genes whose sign is right; for ``"all"``, of those that change at a false
      discovery rate of .05;
    - ``deg_overlap``: share of the list among as many genes with the largest predicted change, in units of the
      standard error of the measured one;
    - ``r2_sd``: coefficient of determination of the standard deviations of genes over cells;
    - ``energy_distance`` (:cite:t:`Szekely2013`; Euclidean, lower is better) and ``mmd`` (:cite:t:`Gretton2012`,
      lower is better): how the distributions of cells differ, unbiased. Floors that are changes move every control
      cell alike;
    - ``rank``: with several targets, see :func:`vxpress.metrics.rank_discrimination` (L1 distance; the genes of the
      target are left out).

    Raises
    ------
    ValueError
        If no group has at least 10 treated and 10 control cells, ``control`` holds treated cells, one AnnData holds the
        predictions of several methods (a control cell is predicted twice for a target), fewer than 3 genes are
        predicted, or a matrix holds neither counts nor, with ``log_transformed``, log values.
    KeyError
        If a column of ``obs``, a layer or a gene is missing.
    TypeError
        If an argument is not of the kind described above.

    See Also
    --------
    vxpress.pl.perturbation : predicted against measured changes.
    vxpress.metrics.change_scores : the scores of the change, for arrays.

    Notes
    -----
    Intervals are Student's, with the standard error of a bootstrap over cells. The ceiling is computed from halves of
    the treated and control cells: the product of two independent halves has no noise on average, so the moments of
    two samples of the full size follow from those of halves. For the correlation this is the formula of Spearman and
    Brown, which is also applied to shares of genes and to ranks. Genes are ranked in one half and scored in the other.

    Examples
    --------
    >>> import numpy as np
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> is_b = adata.obs["bulk_labels"] == "CD19+ B"
    >>> observed, control = adata[is_b], adata[adata.obs["bulk_labels"] == "CD14+ Monocyte"]
    >>> halves = np.arange(observed.n_obs) % 2 == 0
    >>> result = vx.tl.evaluate_perturbation(observed[halves], observed[~halves], control, n_resamples=50)
    >>> result.scores().loc["prediction", ["floor", "verdict"]].tolist()
    ['control', 'better']
    """
    check_cells("observed", observed)
    check_range("n_resamples", n_resamples, 20, 100_000, integer=True)
    check_range("n_cells", n_cells, 10, 100_000, integer=True)
    check_range("level", level, 0.5, 0.9999)
    generator = seed_of(rng)
    methods = methods_of(predicted)
    parts = next(iter(methods.values()))
    settings = settings_of(_sizes(n_top), int(n_resamples), int(n_cells), split_controls=bool(split_controls))
    keys = Keys.of(groupby, perturbation_key, parts[0])
    scale = Scale(layer, library_key, bool(log_transformed))
    inputs = Inputs(methods, observed, control_of(control, parts, keys, layer), floors, keys, scale, settings)
    start = logg.info("evaluating predicted perturbations")
    with progress_bar("evaluate_perturbation", progress):
        found = score(inputs, generator)
    table, summary = tables(found, settings, float(level))
    known = summary["measure"].eq(measure) & summary["genes"].eq(genes)
    if not known.any():
        choices = sorted(set(zip(summary["measure"], summary["genes"], strict=True)))
        msg = f"measure={measure!r} with genes={genes!r} is not known; choose one of {choices}."
        raise ValueError(msg)
    verdicts = sentences(table, summary, Main(measure, genes, float(level)))
    params: dict[str, Any] = {
        "measure": measure,
        "genes": genes,
        "level": float(level),
        "n_top": list(settings.n_top),
        "n_resamples": int(n_resamples),
        "split_controls": bool(split_controls),
    }
    for line in verdicts.values():
        logg.info(f"    {line}")
    logg.info("    finished", time=start)
    return PerturbationEvaluation(table, summary, verdicts, changes(found, inputs.genes), params)


def _sizes(n_top: Any) -> tuple[int, ...]:
    sizes: list[Any] = [n_top] if isinstance(n_top, int | float | str) or n_top is None else list(n_top)
    for size in sizes:
        check_range("n_top", size, MIN_GENES, 1_000_000, integer=True)
    return tuple(sorted({int(size) for size in sizes}))
