"""Leave one treated group out: compare a method with the floors where the truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from vxpress.bridge.ask.perturbation.cells import PerturbedCells
from vxpress.bridge.ask.perturbation.floors import FLOORS
from vxpress.bridge.ask.perturbation.prediction import FEWEST_CELLS, Predictor

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
            f"Not checked: at least two groups with {FEWEST_CELLS} control and {FEWEST_CELLS} treated cells each are needed.",
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
    """Compare a predicted change with the observed one: Pearson correlation, and weighted coefficient of determination."""
    truth_g = cells.change(group)
    constant = change_g.std() == 0 or truth_g.std() == 0
    correlation = 0.0 if constant else float(np.corrcoef(change_g, truth_g)[0, 1])
    control, treated = cells.control(group), cells.profile(cells.populations.target, group)
    error_g = np.sqrt(control.var_g / control.n + treated.var_g / treated.n)
    weight_g = np.divide(np.abs(truth_g), error_g, out=np.zeros_like(error_g), where=error_g > 0)
    total = float(weight_g.sum())
    if total == 0:
        return dict(zip(SCORES, (correlation, 0.0), strict=True))
    weight_g = weight_g / total
    centre = float(weight_g @ truth_g)
    spread = float(weight_g @ np.square(truth_g - centre))
    r2 = 1.0 - float(weight_g @ np.square(truth_g - change_g)) / spread if spread > 0 else 0.0
    return dict(zip(SCORES, (correlation, r2), strict=True))


def _verdict(table: pd.DataFrame, name: str) -> tuple[str, bool]:
    means = table.groupby("method")[list(SCORES)].mean()
    own, floors = means.loc[name], means.drop(index=name)
    n = table["group"].nunique()
    parts, worse = [], []
    for score, label in zip(SCORES, ("correlation of the change", "weighted R2 of the change"), strict=True):
        best = str(floors[score].idxmax())
        parts.append(f"{label} {own[score]:.3f} against {floors.loc[best, score]:.3f} of {best!r}")
        if own[score] <= floors.loc[best, score]:
            worse.append(label)
    text = f"On {n} groups that were each predicted without their treated cells, {name!r} reaches a mean {' and a '.join(parts)}."
    if len(worse) == len(SCORES):
        return f"{text} It is no better than a floor.", True
    if worse:
        return f"{text} By the {worse[0]} it is no better than a floor.", False
    return f"{text} It is better than every floor.", False
