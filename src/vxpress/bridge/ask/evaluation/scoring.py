"""Score every unit of an evaluation: reads its cells, floors and predictions, and ranks targets within groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg
from scipy import sparse

from vxpress._progress import parts as stages
from vxpress.bridge.ask.evaluation.checking import check_one_method, check_predicted_counts
from vxpress.bridge.ask.evaluation.floors import CONTROL, FloorChanges, given_floors, same_library, stated_change
from vxpress.bridge.ask.evaluation.populations import (
    SOURCE,
    Keys,
    Part,
    Scale,
    Unit,
    columns_of,
    units_of,
)
from vxpress.core.evaluation.change import Floats, rank_of_truth
from vxpress.core.evaluation.inputs import Cells, Change, Prediction, Settings
from vxpress.core.evaluation.measures import spearman_brown
from vxpress.core.evaluation.unit import Scored, score_unit

# fewer treated or control cells give no useful interval
MIN_CELLS = 10
# correlations and R2 of fewer genes mean nothing
MIN_GENES = 3
# a prediction or a floor, and its name
Who = tuple[str, str]
PREDICTION, FLOOR = "prediction", "floor"


@dataclass
class ScoredUnit:
    """The scores of a unit, and those of the ranks of targets, which need all units of a group."""

    unit: Unit
    who: list[Who]
    scored: Scored
    rank: dict[Who, float] = field(default_factory=dict)
    rank_ceiling: float = float("nan")


@dataclass(frozen=True)
class Inputs:
    """All that is scored: parts of methods, treated and control cells, floors, and how to read them."""

    methods: Mapping[str, Sequence[Part]]
    observed: AnnData
    control: AnnData
    floors: Any
    keys: Keys
    scale: Scale
    settings: Settings

    @property
    def genes(self) -> pd.Index:
        """Genes of the first prediction, on which everything is compared."""
        return next(iter(self.methods.values()))[0].adata.var_names


def settings_of(n_top: tuple[int, ...], n_resamples: int, n_cells: int, *, split_controls: bool) -> Settings:
    """Return the settings of an evaluation, with the numbers of splits and halves that no argument sets."""
    return Settings(n_top, n_resamples, 4, 10, n_cells, not split_controls)


def score(inputs: Inputs, rng: np.random.Generator) -> list[ScoredUnit]:
    """Score all units with enough cells; a warning names the others."""
    genes = inputs.genes
    if len(genes) < MIN_GENES:
        msg = (
            f"The prediction has {len(genes)} gene(s) ({', '.join(genes)}); at least {MIN_GENES} are needed for correlations and R2 over genes. "
            "Pass predictions of more genes: predicted, not predicted[:, genes]."
        )
        raise ValueError(msg)
    arrays, floor_cells = given_floors(inputs.floors)
    for name, parts in [*inputs.methods.items(), *floor_cells.items()]:
        check_one_method(parts, inputs.keys, name)
    all_parts = [part for parts in inputs.methods.values() for part in parts]
    populations = [
        _Population.of(kind, name, part, genes, inputs)
        for kind, named in ((PREDICTION, inputs.methods), (FLOOR, floor_cells))
        for name, parts in named.items()
        for part in parts
    ]
    columns = columns_of(inputs.observed, genes, "treated"), columns_of(inputs.control, genes, "control")
    if inputs.scale.library_key is None:
        _check_library(inputs)
    units = units_of(inputs.keys, all_parts, inputs.observed, inputs.control)
    few = [u for u in units if min(len(u.observed_n), len(u.control_n)) < MIN_CELLS]
    if len(few) == len(units):
        sizes = [(u.group, u.target, len(u.observed_n), len(u.control_n)) for u in few[:5]]
        msg = f"Every group has fewer than {MIN_CELLS} treated or control cells (group, target, treated, control): {sizes}."
        raise ValueError(msg)
    if few:
        names = [f"{u.group}, {u.target} ({len(u.observed_n)} and {len(u.control_n)})" for u in few[:5]]
        logg.warning(
            f"Left out, because they have fewer than {MIN_CELLS} treated or control cells: {'; '.join(names)}."
        )
    floors = FloorChanges(arrays, all_parts, inputs.keys, genes, len(units))
    seeds = rng.spawn(len(units))
    # targets in one group share their controls, and so the resamples of these
    control_seeds = {group: int(rng.integers(2**62)) for group in dict.fromkeys(unit.group for unit in units)}
    found = []
    for (i, unit), progress in stages(list(enumerate(units)), "scoring", len(units)):
        progress.done = i + 1
        if unit in few:
            continue
        observed = inputs.scale.read(inputs.observed, unit.observed_n, columns[0], inputs.scale.layer, "treated")
        control = inputs.scale.read(inputs.control, unit.control_n, columns[1], inputs.scale.layer, "control")
        predictions: list[Prediction] = []
        who: list[Who] = []
        for population in populations:
            cells = population.cells(unit, inputs.scale, str(len(who)), (observed, control))
            if cells is not None:
                predictions.append(cells)
                who.append((population.kind, population.name))
        for name, change in floors.of(unit, i).items():
            if (FLOOR, name) not in who:
                predictions.append(Change(str(len(who)), change))
                who.append((FLOOR, name))
        control_rng = np.random.default_rng(control_seeds[unit.group])
        scored = score_unit(observed, control, predictions, inputs.settings, seeds[i], control_rng)
        found.append(ScoredUnit(unit, who, scored))
    _warn_floors(found)
    _warn_unused(populations)
    _rank(found, genes)
    return found


def _check_library(inputs: Inputs) -> None:
    """Raise if stored floors have other libraries than the scores; log that libraries are sums over the predicted genes."""
    if inputs.scale.log_transformed:
        return
    n = len(inputs.genes)
    for part in (part for parts in inputs.methods.values() for part in parts):
        known = "library_size" in part.adata.obs and "control" in part.adata.layers
        if part.stored.get("floors") and known and not same_library(part.adata):
            msg = (
                f"The size factors of the predicted cells, obs['library_size'], are not the sums over their {n} genes, so their stored "
                "floors are on another scale than the measured cells. Pass library_key='library_size', with this column in the obs of "
                "all cells: vx.pp.library_size(observed), with all genes that were counted, writes it."
            )
            raise ValueError(msg)
    if inputs.observed.n_vars > n:
        logg.info(f"    libraries are sums over the {n} predicted genes; library_key= gives those over all genes")


def _warn_floors(found: Sequence[ScoredUnit]) -> None:
    """Warn if no change is the only floor, which says little."""
    names = {name for one in found for kind, name in one.who if kind == FLOOR}
    if names <= {CONTROL}:
        logg.warning(
            "The only floor is 'control', no change, which almost every prediction beats. Pass others, for example "
            "floors={'mean_shift': vx.tl.predict_perturbation(..., method='mean_shift')}."
        )


def _warn_unused(populations: Sequence[_Population]) -> None:
    """Warn where drawn cells are scored, because the change that their prediction states does not belong to them."""
    for one in populations:
        if one.unused:
            reasons = [f"{'; '.join(units[:3])}: {why}" for why, units in list(one.unused.items())[:3]]
            n = sum(map(len, one.unused.values()))
            logg.warning(
                f"The change that {one.name!r} states for {n} group(s) is not scored, but that of the predicted cells, with the noise of "
                f"their number. {'. '.join(reasons)}."
            )


@dataclass(frozen=True)
class _Population:
    """Predicted cells of one method or floor, with the unit and the control cell of each."""

    kind: str
    name: str
    part: Part
    columns: np.ndarray
    group_n: np.ndarray
    target_n: np.ndarray
    source_n: np.ndarray | None
    genes: pd.Index
    # why stated changes are not scored, with their groups and targets
    unused: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, name: str, part: Part, genes: pd.Index, inputs: Inputs) -> _Population:
        group, target = inputs.keys.labels(part.adata, "predicted")
        source, names = None, inputs.control.obs_names
        if SOURCE in part.adata.obs and names.is_unique:
            source = names.get_indexer(part.adata.obs[SOURCE].astype(str))
            if (source < 0).any():
                source = None
        columns = columns_of(part.adata, genes, f"cells predicted by {name!r} as")
        return cls(kind, name, part, columns, group, target, source, genes)

    def cells(
        self, unit: Unit, scale: Scale, name: str, measured: tuple[sparse.csr_matrix, sparse.csr_matrix]
    ) -> Cells | None:
        """Return the predicted cells of a unit, or None; they follow their control cells if these are known."""
        rows = np.flatnonzero((self.group_n == unit.group) & (self.target_n == unit.target))
        if not len(rows):
            return None
        source = None
        # a few cells, or a mean profile, have too few controls to follow
        if self.source_n is not None and len(rows) >= MIN_CELLS:
            place = np.full(int(max(self.source_n.max(), unit.control_n.max())) + 1, -1, dtype=np.int64)
            place[unit.control_n] = np.arange(len(unit.control_n))
            source = place[self.source_n[rows]]
            if (source < 0).any():
                source = None
        x = scale.read(self.part.adata, rows, self.columns, None, "predicted")
        check_predicted_counts(scale.block(self.part.adata, rows), self.columns, measured, scale, self.name)
        change, why = stated_change(self.part, unit, rows, self.genes, scale)
        if why:
            self.unused.setdefault(why, []).append(f"{unit.group}, {unit.target}")
        return Cells(name, x, source, change)


def _rank(found: Sequence[ScoredUnit], genes: pd.Index) -> None:
    """Rank the targets of every group that has several, for each prediction of all of them."""
    for group in dict.fromkeys(one.unit.group for one in found):
        ones = [one for one in found if one.unit.group == group]
        if len(ones) < 2:
            continue
        left_out = np.stack([genes.isin([one.unit.target, *one.unit.target.split("+")]) for one in ones])
        measured = np.stack([one.scored.measured_g for one in ones])
        for who in dict.fromkeys(who for one in ones for who in one.who):
            if not all(who in one.who for one in ones):
                continue
            predicted = np.stack([one.scored.predicted[str(one.who.index(who))] for one in ones])
            for one, rank in zip(ones, rank_of_truth(predicted, measured, "l1", left_out), strict=True):
                one.rank[who] = float(rank)
        n_ways = min(len(one.scored.halves_rg[0]) for one in ones)
        ranks: list[Floats] = []
        for way in range(n_ways):
            first, second = (np.stack([one.scored.halves_rg[k][way] for one in ones]) for k in (0, 1))
            ranks.append(rank_of_truth(first, second, "l1", left_out))
        chance = (len(ones) + 1) / (2 * len(ones))
        ceiling = spearman_brown(np.mean(ranks, 0), chance)
        for one, value in zip(ones, ceiling, strict=True):
            one.rank_ceiling = float(value)
