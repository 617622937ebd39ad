"""Score the predictions of one perturbation in one group of cells: estimates, resamples and ceilings.

The measured change is the mean of the treated cells minus that of the control cells. If a prediction is compared with
the same control cells, their sampling noise is in both changes and correlates them. Here the controls are split: one
half is subtracted from the prediction, the other from the treated cells, and the moments are averaged over several
splits in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from vxpress.core.evaluation.blocks import deal, halves, resamples
from vxpress.core.evaluation.ceiling import Mask, Whole, ceiling_of
from vxpress.core.evaluation.change import Floats
from vxpress.core.evaluation.distances import Drawn
from vxpress.core.evaluation.inputs import Cells, Genes, Prediction, Settings
from vxpress.core.evaluation.naming import Scores
from vxpress.core.evaluation.resampled import Found, Measured, Rows, Trial, score_portion

# resamples are summed in portions of this size, which bounds memory
PORTION = 32


@dataclass(frozen=True)
class Scored:
    """Results of a unit: scores of every prediction per resample, ceilings, and vectors over genes."""

    scores: dict[str, Scores]
    # the same, for differences: genes are chosen in other cells than those that are scored
    comparable: dict[str, Scores]
    ceiling: dict[tuple[str, str], float]
    genes: Genes
    measured_g: Floats
    predicted: dict[str, Floats]
    halves_rg: tuple[Floats, Floats]
    n_observed: int
    n_control: int


def score_unit(
    observed: sparse.csr_matrix,
    control: sparse.csr_matrix,
    predictions: Sequence[Prediction],
    settings: Settings,
    rng: np.random.Generator,
    control_rng: np.random.Generator,
) -> Scored:
    """Score predictions against treated cells, given the control cells of the same group (log values, cells x genes).

    ``control_rng`` draws blocks and resamples of the controls; units that share controls get the same seed.
    """
    n, n0 = observed.shape[0], control.shape[0]
    weights = resamples(n, settings.n_draws, rng), resamples(n0, settings.n_draws, control_rng)
    blocks = deal(n, rng), deal(n0, control_rng)
    n_blocks, n_blocks0 = (int(block.max()) + 1 for block in blocks)
    whole = Whole.of(observed, control, blocks, settings.n_top)
    genes = whole.genes(np.ones(n_blocks, dtype=bool), np.ones(n_blocks0, dtype=bool))
    trials = _trials(
        whole, halves(n_blocks, settings.n_splits, rng), halves(n_blocks0, settings.n_splits, rng), settings
    )

    rows = {p.name: Rows.of(p, control, weights[1], blocks[1], rng) for p in predictions}
    portions: dict[str, list[Found]] = {p.name: [] for p in predictions}
    for start in range(0, len(weights[0]), PORTION):
        part = slice(start, start + PORTION)
        measured = Measured.of(
            observed, control, blocks, (weights[0][part], weights[1][part]), genes.error_g, settings.n_top
        )
        for p in predictions:
            portions[p.name].append(score_portion(p, rows[p.name], measured, part, genes, trials, settings))
    found = {name: Found.join(parts) for name, parts in portions.items()}
    scores = {name: one.scores(settings) for name, one in found.items()}
    comparable = {name: one.comparable(settings) for name, one in found.items()}

    ways, ways0 = halves(n_blocks, settings.n_halves, rng), halves(n_blocks0, settings.n_halves, rng)
    ceiling, half_means = ceiling_of(whole, ways, ways0, settings)
    drawn = Drawn.of(observed, control, genes.order_g, settings.n_top, settings.max_cells, rng)
    for p in predictions:
        cells, weight = (p.x_mg, rows[p.name].weight_bn) if isinstance(p, Cells) else (p.change_g, weights[1])
        distances = drawn.scores(cells, weights[0], weight, rng)
        scores[p.name] |= distances
        comparable[p.name] |= {key: value for key, value in distances.items() if key[0] == "all"}
    ceiling |= drawn.ceiling(blocks[0], ways)
    measured_g = (whole.treated.mean() - whole.control.mean())[0]
    predicted = {p.name: p.change(control) for p in predictions}
    return Scored(scores, comparable, ceiling, genes, measured_g, predicted, half_means, n, n0)


def _trials(whole: Whole, ways: Mask, ways0: Mask, settings: Settings) -> list[Trial]:
    """Pair halves of the controls with halves of the treated cells; the genes are those of the other halves."""
    every0 = np.ones(ways0.shape[1], dtype=bool)
    trials = []
    for i in range(max(len(ways), len(ways0))):
        way, way0 = ways[i % len(ways)], ways0[i % len(ways0)]
        for half, first in ((way, way0), (~way, ~way0)):
            a, b = (every0, every0) if settings.shared_controls else (first, ~first)
            trials.append(Trial(a, b, half, whole.genes(~half, a)))
    return trials
