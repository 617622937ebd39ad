"""The result of an evaluation: a table of scores, its mean over groups, and the verdict on every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vxpress.bridge.ask.evaluation.scoring import FLOOR, PREDICTION, ScoredUnit, Who
from vxpress.core.evaluation.change import Floats
from vxpress.core.evaluation.inputs import Settings
from vxpress.core.evaluation.intervals import half_width, mean_over, over_cells, over_groups, standard_error, verdict
from vxpress.core.evaluation.measures import MEASURES, clipped, goodness

NAN = float("nan")
# a measure by which predictions are not compared
NOTHING = np.full(2, np.nan)
# difference from a floor, its interval, and the floor
Against = tuple[float, float, float, Who]


@dataclass(frozen=True)
class Main:
    """The measure and the genes by which methods are compared in the verdict, and the level of the intervals."""

    measure: str
    genes: str
    level: float


@dataclass(frozen=True)
class _Score:
    """A score of a prediction or floor in one unit, and what it is compared by, as goodness for all resamples."""

    value_b: Floats
    error: float
    good_b: Floats

    @property
    def value(self) -> float:
        return float(self.value_b[0])


@dataclass(frozen=True)
class _Cell:
    """All scores of one measure and set of genes in one unit."""

    unit: ScoredUnit
    scores: dict[Who, _Score]
    ceiling: float
    n: int

    @classmethod
    def of(cls, one: ScoredUnit, key: tuple[str, str]) -> _Cell:
        n = min(one.scored.n_observed, one.scored.n_control)
        scores = {}
        for i, who in enumerate(one.who):
            score_b, compared_b = one.scored.scores[str(i)][key], one.scored.comparable[str(i)].get(key, NOTHING)
            scores[who] = _Score(score_b, standard_error(score_b[1:], n), goodness(key[1], compared_b))
        return cls(one, scores, one.scored.ceiling[key], n)

    @classmethod
    def of_rank(cls, one: ScoredUnit) -> _Cell:
        """Make the cell of the ranks, which have no interval over cells."""
        scores = {who: _Score(np.array([rank]), NAN, np.array([rank])) for who, rank in one.rank.items()}
        return cls(one, scores, one.rank_ceiling, min(one.scored.n_observed, one.scored.n_control))

    def floors(self) -> list[Who]:
        return [who for who, score in self.scores.items() if who[0] == FLOOR and np.isfinite(score.value)]

    def gain(self, who: Who, floor: Who) -> Floats:
        """Return how much better a prediction is than a floor, on the same resamples, the data first."""
        return self.scores[who].good_b - self.scores[floor].good_b


def tables(found: Sequence[ScoredUnit], settings: Settings, level: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the scores of all units, and their means over units."""
    keys = [(genes, measure) for measure in MEASURES for genes in settings.sets if _exists(genes, measure)]
    rows: list[dict[str, Any]] = []
    means: list[dict[str, Any]] = []
    for key in keys:
        ranked = key[1] == "rank"
        cells = [_Cell.of_rank(one) if ranked else _Cell.of(one, key) for one in found if not ranked or one.rank]
        for cell in cells:
            rows += [_row(cell, who, key, level) for who in cell.scores]
        everyone = dict.fromkeys(who for cell in cells for who in cell.scores)
        means += [_mean_row([c for c in cells if who in c.scores], who, key, level) for who in everyone]
    table, summary = pd.DataFrame(rows), pd.DataFrame(means)
    return _sorted(table), _sorted(summary)


def _exists(genes: str, measure: str) -> bool:
    if measure in ("weighted_mse_change", "weighted_r2_change", "rank"):
        return genes == "all"
    return not (measure == "deg_overlap" and genes == "all")


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    """Predictions before floors, each method in one piece; other rows stay in their order."""
    first = table["kind"].eq(FLOOR).to_numpy()
    place = {name: i for i, name in enumerate(dict.fromkeys(table["method"]))}
    order = np.lexsort((np.arange(len(table)), table["method"].map(place), first))
    return table.iloc[order].reset_index(drop=True)


def _start(who: Who, key: tuple[str, str]) -> dict[str, Any]:
    return {"method": who[1], "kind": who[0], "genes": key[0], "measure": key[1]}


def _row(cell: _Cell, who: Who, key: tuple[str, str], level: float) -> dict[str, Any]:
    score, unit = cell.scores[who], cell.unit.unit
    half = half_width(score.error, cell.n - 1, level)
    ends = clipped(key[1], np.array([score.value - half, score.value + half]))
    row = _start(who, key) | {"group": unit.group, "target": unit.target}
    row |= {"score": score.value, "low": float(ends[0]), "high": float(ends[1])}
    against: list[Against] = []
    for floor in cell.floors() if who[0] == PREDICTION else []:
        gain_b = cell.gain(who, floor)
        gain, half = float(gain_b[0]), half_width(standard_error(gain_b[1:], cell.n), cell.n - 1, level)
        against.append((gain, gain - half, gain + half, floor))
    return row | _compared(against, cell.scores, score.value, cell.ceiling, key[1])


def _mean_row(cells: Sequence[_Cell], who: Who, key: tuple[str, str], level: float) -> dict[str, Any]:
    n = min(c.n for c in cells)
    mean, low, high = over_groups(*mean_over([c.scores[who].value_b for c in cells], n), n - 1, level)
    ends = clipped(key[1], np.array([low, high]))
    row = _start(who, key) | {"n_groups": len(cells), "score": mean, "low": float(ends[0]), "high": float(ends[1])}
    against: list[Against] = []
    wide: dict[Who, tuple[float, float]] = {}
    everywhere = [floor for floor in cells[0].floors() if all(floor in c.floors() for c in cells)]
    for floor in everywhere if who[0] == PREDICTION else []:
        gains = mean_over([c.gain(who, floor) for c in cells], n)
        against.append((*over_cells(*gains, n - 1, level), floor))
        wide[floor] = over_groups(*gains, n - 1, level)[1:]
    means = {
        floor: _Score(np.mean([c.scores[floor].value_b[:1] for c in cells], 0), NAN, np.zeros(1))
        for floor in everywhere
    }
    compared = _compared(against, means, mean, float(np.mean([c.ceiling for c in cells])), key[1])
    best = wide.get((FLOOR, compared["floor"]), (NAN, NAN))
    compared |= {"difference_low_groups": best[0], "difference_high_groups": best[1]}
    return row | compared


def _compared(
    against: Sequence[Against],
    scores: dict[Who, _Score],
    score: float,
    ceiling: float,
    measure: str,
) -> dict[str, Any]:
    """Compare with the best floor; "better" must hold against every floor."""
    row: dict[str, Any] = {
        "floor": "",
        "floor_score": NAN,
        "difference": NAN,
        "difference_low": NAN,
        "difference_high": NAN,
        "verdict": "",
        "ceiling": ceiling,
        "calibrated": NAN,
    }
    if not np.isfinite(score) or not scores:
        return row
    against = [one for one in against if np.isfinite(one[0])]
    if not against:
        return row
    best = min(against, key=lambda one: one[0])
    gain, low, high, floor = best
    word = verdict(low, high)
    if word == "better" and not all(one[1] > 0 for one in against):
        word = "undecided"
    good, good_floor, good_ceiling = (
        float(goodness(measure, np.asarray(value))) for value in (score, scores[floor].value, ceiling)
    )
    room = good_ceiling - good_floor
    return row | {
        "floor": floor[1],
        "floor_score": scores[floor].value,
        "difference": gain,
        "difference_low": low,
        "difference_high": high,
        "verdict": word,
        "calibrated": (good - good_floor) / room if room > 0 else NAN,
    }


def changes(found: Sequence[ScoredUnit], genes: pd.Index) -> pd.DataFrame:
    """Return the measured and every predicted change of all genes and units, in long form."""
    frames = []
    for one in found:
        t = one.scored.genes
        position = np.empty(len(genes), dtype=np.int64)
        position[t.order_g] = np.arange(1, len(genes) + 1)
        for i, (kind, name) in enumerate(one.who):
            frames.append(
                pd.DataFrame(
                    {
                        "method": name,
                        "kind": kind,
                        "group": one.unit.group,
                        "target": one.unit.target,
                        "gene": genes.astype(str),
                        "measured": one.scored.measured_g,
                        "predicted": one.scored.predicted[str(i)],
                        "t": t.t_g,
                        "rank": position,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


WORDS = {
    "better": "better than the best floor",
    "undecided": "not distinguishable from the best floor",
    "worse": "worse than the best floor",
}
LABELS = {
    "weighted_r2_change": "weighted R2 of the change",
    "r2_change": "R2 of the change",
    "pearson_change": "correlation of the change",
    "weighted_mse_change": "weighted squared error of the change",
}


def sentence(name: str, table: pd.DataFrame, summary: pd.DataFrame, main: Main) -> str:
    """Return the verdict on one method in one sentence."""

    def chosen(frame: pd.DataFrame) -> pd.DataFrame:
        keep = frame["kind"].eq(PREDICTION) & frame["method"].eq(name)
        return frame[keep & frame["measure"].eq(main.measure) & frame["genes"].eq(main.genes)]

    mean, units = chosen(summary).iloc[0], chosen(table)
    label = LABELS.get(main.measure, main.measure) + ("" if main.genes == "all" else f", {main.genes}")
    if not mean["verdict"]:
        return f"{name}: no floor has a finite score ({label})."
    interval = f"{main.level:.0%} interval over cells {mean['difference_low']:+.3f} to {mean['difference_high']:+.3f}"
    if mean["n_groups"] >= 3:
        interval += f", over groups {mean['difference_low_groups']:+.3f} to {mean['difference_high_groups']:+.3f}"
    text = (
        f"{name} is {WORDS[mean['verdict']]}, {mean['floor']}: {label} {mean['score']:.3f} against {mean['floor_score']:.3f}, "
        f"difference {mean['difference']:+.3f} ({interval})"
    )
    if len(units) > 1:
        counts = [f"{word} in {int(units['verdict'].eq(word).sum())}" for word in WORDS]
        text += f"; of {len(units)} groups {', '.join(counts)}"
    if not mean["ceiling"] > mean["floor_score"]:
        text += "; the floor scores as high as a repetition of the experiment with as many cells would"
    return text + "."


def sentences(table: pd.DataFrame, summary: pd.DataFrame, main: Main) -> dict[str, str]:
    """Return the verdict on every method."""
    methods = dict.fromkeys(summary.loc[summary["kind"].eq(PREDICTION), "method"])
    return {name: sentence(name, table, summary, main) for name in methods}
