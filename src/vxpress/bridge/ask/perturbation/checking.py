"""Leave one treated group out: compare a method with the floors where the truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from vxpress.bridge.ask.perturbation.cells import PerturbedCells
from vxpress.bridge.ask.perturbation.floors import FLOORS
from vxpress.bridge.ask.perturbation.prediction import FEWEST_CELLS, Predictor
from vxpress.core.evaluation.change import Moments, weights_of, welch

# level at which a difference over groups is sure, by Student's t distribution
SURE = 0.95
# methods of which this check says little without a refit
SEEN = dict.fromkeys(("counterfactual", "additive"), ", this one most of all")
SCORES = ("correlation", "weighted_r2")


@dataclass(frozen=True)
class Checked:
    """Scores of a method and of the floors on groups that were left out, and what they say."""

    table: pd.DataFrame
    verdict: str
    no_better: bool


def check(predictor: Predictor, name: str) -> Checked:
    """Predict each group with treated cells without them, with the method and with every floor."""
    cells, populations = predictor.cells, predictor.cells.populations
    groups = predictor.checked
    if not groups:
        return Checked(
            pd.DataFrame({"group": [], "method": [], **{score: [] for score in SCORES}}),
            f"Not checked: at least two groups of groupby= with {FEWEST_CELLS} control and {FEWEST_CELLS} treated cells each are needed.",
            no_better=False,
        )
    predictor.left_out()
    found = []
    for group in groups:
        rest = predictor.rest(group)
        predicted = {name: predictor.left_out_change(group)}
        for floor in FLOORS:
            if floor.name != name and floor.available(cells, group, rest):
                predicted[floor.name] = floor.change(cells, group, rest)
        for which, change_g in predicted.items():
            found.append({"group": populations.groups[group], "method": which, **scores(cells, group, change_g)})
    table = pd.DataFrame(found)
    text, no_better = _verdict(table, name)
    if predictor.method.in_latent_space and predictor.refitter is None:
        text += (
            " The fit had seen these treated cells, which favours the method"
            f"{SEEN.get(name, '')}: check='refit' fits again without them."
        )
    return Checked(table, text, no_better)


def scores(cells: PerturbedCells, group: int, change_g: np.ndarray) -> dict[str, float]:
    """Compare a predicted change with the observed one, by two scores of :func:`vxpress.tl.evaluate_perturbation`."""
    control, treated = cells.control(group), cells.profile(cells.populations.target, group)
    t_g, _ = welch(treated.mean_g, treated.var_g, treated.n, control.mean_g, control.var_g, control.n)
    equal_and_weighted = np.stack([np.full(len(t_g), 1.0 / len(t_g)), weights_of(t_g)], axis=1)
    moments = Moments.of(change_g, cells.change(group), equal_and_weighted)
    found = np.nan_to_num(moments.pearson()[0]), np.nan_to_num(moments.r2()[1])
    return dict(zip(SCORES, map(float, found), strict=True))


def _verdict(table: pd.DataFrame, name: str) -> tuple[str, bool]:
    """Say whether the method is better than the best floor by both scores, and surely so by one of them."""
    n = table["group"].nunique()
    parts, higher, surely = [], [], []
    for score, label in zip(SCORES, ("correlation of the change", "weighted R2 of the change"), strict=True):
        each = table.pivot_table(index="group", columns="method", values=score, observed=True)
        best = str(each.drop(columns=name).mean().idxmax())
        difference_n = (each[name] - each[best]).to_numpy()
        error = float(stats.t.ppf(SURE, n - 1)) * float(difference_n.std(ddof=1)) / n**0.5
        parts.append(f"{label} {each[name].mean():.3f} against {each[best].mean():.3f} of {best!r}")
        higher.append(difference_n.mean() > 0)
        surely.append(difference_n.mean() > error)
    text = f"On {n} groups that were each predicted without their treated cells, {name!r} reaches a mean {' and a '.join(parts)}."
    if all(higher) and any(surely):
        return f"{text} It is better than every floor.", False
    doubt = ", as far as these groups can tell" if any(higher) else ""
    return f"{text} It is no better than a floor{doubt}.", True
