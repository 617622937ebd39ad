"""Check the verdicts of ``vx.tl.evaluate_perturbation`` on cells that it has not seen, and on shuffled perturbations.

    python benchmarks/evaluation.py --sets glioblastoma kang --repeats 12 --shuffles 12
    python benchmarks/evaluation.py --sets papalexi --repeats 5 --shuffles 5
    python benchmarks/evaluation.py --sets norman --repeats 3 --shuffles 3
    python benchmarks/evaluation.py --sets --cost

Treated and control cells of every group (or target) are split: one part makes predictions of known quality, one is
evaluated, and one is fresh. The predictions are the mean change of the other groups (the floor), scaled or mixed with
the change that the first part of the group itself shows; these need no model, so that thousands can be judged. Where
the verdict on the evaluated part is "better than the best floor", is the prediction better on the fresh part? With
shuffled perturbation labels no prediction is better than the floor that predicts no change; how often is one called
so? Settings were chosen on glioblastoma alone.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
import warnings
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from _sets import DATA
from _speed import save, set_threads
from scipy import sparse

MEASURES = (
    ("weighted_r2_change", "all"),
    ("pearson_change", "all"),
    ("r2_change", "all"),
    ("r2_change", "top50"),
    ("energy_distance", "all"),
)
SCALES = (0.5, 0.8, 1.2)
SHARES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
MIN_CELLS = 30
N_GENES = 1_000


@dataclass(frozen=True)
class Cells:
    """Log values of all cells, and the group, target and role of each; controls have the target "control"."""

    x: sparse.csr_matrix
    genes: pd.Index
    group: np.ndarray
    target: np.ndarray

    def units(self) -> list[tuple[str, str]]:
        """Return groups and targets with enough treated and control cells."""
        table = pd.crosstab(self.group, self.target)
        return [
            (group, target)
            for group in table.index
            for target in table.columns
            if target != "control" and min(table.loc[group, [target, "control"]]) >= MIN_CELLS
        ]


def load(name: str) -> Cells:
    """Read a data set: cell types, patients, targets, or lines and targets."""
    import vxpress as vx

    file, group, library = {
        "glioblastoma": ("glioblastoma_panobinostat", "patient", None),
        "kang": ("kang_ifnb", "cell_type_coarse", None),
        "papalexi": ("papalexi_eccite_20k", None, "n_counts_all_genes"),
        "norman": ("norman_mcfaline_perturbench", "cell_type", "n_counts_all_genes"),
    }[name]
    adata = ad.read_h5ad(DATA / f"{file}.h5ad")
    if name == "papalexi":
        adata = adata[np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:8_000])].copy()
    if group is not None:
        adata = adata[adata.obs[group].notna()].copy()
    if adata.n_vars > N_GENES:
        sc.pp.filter_genes(adata, min_cells=10)
        sc.experimental.pp.highly_variable_genes(adata, n_top_genes=N_GENES, check_values=False)
        adata = adata[:, adata.var["highly_variable"]].copy()
    known = None if library is None else adata.obs[library].to_numpy(dtype=float)
    target = adata.obs["condition"].astype(str).replace("ctrl", "control").to_numpy()
    groups = np.full(adata.n_obs, "all") if group is None else adata.obs[group].astype(str).to_numpy()
    return Cells(vx.metrics.log1p_normalized(adata.X, known), adata.var_names, groups, target)


def split(cells: Cells, rng: np.random.Generator) -> np.ndarray:
    """Draw the part of every cell: 0 makes predictions (a fifth), 1 is evaluated, 2 is fresh (two fifths each)."""
    part = np.full(len(cells.group), -1)
    for _, rows in pd.DataFrame({"g": cells.group, "t": cells.target}).groupby(["g", "t"]).indices.items():
        order = rng.permutation(rows)
        first, second = round(0.2 * len(rows)), round(0.6 * len(rows))
        part[order[:first]], part[order[first:second]], part[order[second:]] = 0, 1, 2
    return part


def changes(cells: Cells, part: np.ndarray) -> tuple[dict[str, dict], dict[str, dict]]:
    """Return the changes that candidates and the floor predict, by name and unit."""
    units = cells.units()
    own, whole = {}, {}
    for group, target in units:
        treated, control = ((cells.group == group) & (cells.target == name) for name in (target, "control"))
        mean = lambda rows: np.asarray(cells.x[rows].mean(0)).reshape(-1)
        base = mean(control & (part == 0))
        own[group, target] = mean(treated & (part == 0)) - base
        # groups have controls of their own; targets in one group share them, so only those of the first part are used
        alone = len({g for g, _ in units}) == len(units)
        whole[group, target] = mean(treated) - (mean(control) if alone else base)
    floor, found = {}, {}
    for unit in units:
        others = [change for other, change in whole.items() if other != unit]
        floor[unit] = np.mean(others, 0)
        for scale in SCALES:
            found.setdefault(f"mean shift x {scale}", {})[unit] = scale * floor[unit]
        for share in SHARES:
            found.setdefault(f"own change {share:.0%}", {})[unit] = share * own[unit] + (1 - share) * floor[unit]
        found.setdefault("another group", {})[unit] = others[0]
    return found, {"mean_shift": floor}


def evaluate(cells: Cells, rows: np.ndarray, found: dict, floors: dict, n_resamples: int, seed: int):
    """Evaluate changes on these rows, as ``evaluate_perturbation`` does; return its table and its summary.

    The predictions move every control cell alike, so they are passed on as changes, which is the same and faster.
    """
    from vxpress.bridge.ask.evaluation.populations import Unit
    from vxpress.bridge.ask.evaluation.result import tables
    from vxpress.bridge.ask.evaluation.scoring import FLOOR, PREDICTION, ScoredUnit
    from vxpress.core.evaluation.inputs import Change, Settings
    from vxpress.core.evaluation.unit import score_unit

    settings = Settings((50,), n_resamples, 4, 10, 50, shared_controls=False)
    scored = []
    for i, (group, target) in enumerate(cells.units()):
        treated, control = (
            np.flatnonzero(rows & (cells.group == group) & (cells.target == name)) for name in (target, "control")
        )
        who = [*((PREDICTION, name) for name in found), (FLOOR, "control"), *((FLOOR, name) for name in floors)]
        changes = [by_unit[group, target] for by_unit in found.values()]
        changes += [np.zeros(len(cells.genes)), *(by_unit[group, target] for by_unit in floors.values())]
        predictions = [Change(str(k), change) for k, change in enumerate(changes)]
        # targets of one group share their controls and so the resamples of these
        shared = np.random.default_rng([seed, list(np.unique(cells.group)).index(group)])
        one = score_unit(
            cells.x[treated], cells.x[control], predictions, settings, np.random.default_rng([seed, 1000 + i]), shared
        )
        scored.append(ScoredUnit(Unit(group, target, treated, control), who, one))
    return tables(scored, settings, 0.95)


def verdicts(result, measure: str, genes: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return verdict and difference from the best floor of every method and unit, and of every method on average."""
    pick = lambda frame: frame[frame["kind"].eq("prediction") & frame["measure"].eq(measure) & frame["genes"].eq(genes)]
    table, summary = (pick(frame) for frame in result)
    return table.set_index(["method", "group", "target"])[["verdict", "difference"]], summary.set_index("method")[
        ["verdict", "difference"]
    ]


def repeat(cells: Cells, seed: int, n_resamples: int) -> list[dict]:
    """Judge all candidates on one split; one record per measure."""
    rng = np.random.default_rng(seed)
    part = split(cells, rng)
    found, floors = changes(cells, part)
    judged = evaluate(cells, part == 1, found, floors, n_resamples, seed)
    fresh = evaluate(cells, part == 2, found, floors, 20, seed + 1)
    records = []
    for measure, genes in MEASURES:
        record = {"measure": measure, "genes": genes}
        for level, first, second in zip(
            ("units", "mean"), verdicts(judged, measure, genes), verdicts(fresh, measure, genes), strict=True
        ):
            both = first.join(second["difference"].rename("fresh"))
            for word in ("better", "undecided", "worse"):
                some = both[both["verdict"] == word]
                record[f"{level} {word}"] = len(some)
                record[f"{level} {word}, better on fresh cells"] = int((some["fresh"] > 0).sum())
        records.append(record)
    return records


def shuffled(cells: Cells, seed: int, n_resamples: int, *, also_learned: bool) -> list[dict]:
    """Judge candidates after the labels of treated and control cells were shuffled within groups.

    With ``also_learned`` the predictions are made from shuffled labels too; otherwise they are those of the true ones.
    """
    rng = np.random.default_rng(seed)
    target = cells.target.copy()
    for group in np.unique(cells.group):
        rows = np.flatnonzero(cells.group == group)
        target[rows] = rng.permutation(target[rows])
    mixed = Cells(cells.x, cells.genes, cells.group, target)
    part = split(mixed, rng)
    found, floors = changes(mixed if also_learned else cells, part)
    result = evaluate(mixed, part == 1, found, floors, n_resamples, seed)
    records = []
    for measure, genes in MEASURES:
        record = {"measure": measure, "genes": genes}
        for level, first in zip(("units", "mean"), verdicts(result, measure, genes), strict=True):
            record[f"{level} judged"], record[f"{level} better"] = len(first), int((first["verdict"] == "better").sum())
        records.append(record)
    return records


def total(records: list[list[dict]]) -> list[dict]:
    """Add up the counts of all repetitions."""
    flat = pd.DataFrame([record for one in records for record in one])
    return flat.groupby(["measure", "genes"], sort=False).sum().reset_index().to_dict("records")


def cost(n_cells: int = 10_000, n_genes: int = 5_000, density: float = 0.1) -> dict:
    """Time one prediction and two floors, all in one group, and measure the largest memory that a call takes."""
    import vxpress as vx

    rng = np.random.default_rng(0)

    def counts() -> ad.AnnData:
        draw = lambda k: rng.integers(1, 6, k).astype(np.float32)
        x = sparse.random(n_cells, n_genes, density, format="csr", random_state=rng, data_rvs=draw, dtype=np.float32)
        return ad.AnnData(x, obs=pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)]))

    control, observed = counts(), counts()
    predicted = counts()
    predicted.obs["source_cell"] = control.obs_names.to_numpy()
    call = lambda: vx.tl.evaluate_perturbation(
        predicted, observed, control, floors={"floor": rng.normal(0, 0.1, n_genes)}
    )
    start = time.process_time()
    call()
    seconds = time.process_time() - start
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    return {"cells": n_cells, "genes": n_genes, "density": density, "cpu seconds": seconds, "added MiB": peak / 2**20}


def main() -> None:
    """Judge all sets, print the counts and write ``results/evaluation.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="*", default=["glioblastoma", "kang", "papalexi", "norman"])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--shuffles", type=int, default=40)
    parser.add_argument("--resamples", type=int, default=100)
    parser.add_argument("--cost", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    set_threads(1)
    sc.settings.verbosity = 0
    if args.cost:
        save("evaluation", {"cost": cost()})
    for name in args.sets:
        cells = load(name)
        out = {
            "units": len(cells.units()),
            "cells": len(cells.group),
            "repeats": args.repeats,
            "shuffles": args.shuffles,
        }
        out["fresh"] = total([repeat(cells, seed, args.resamples) for seed in range(args.repeats)])
        for label, also in (("shuffled", True), ("shuffled after learning", False)):
            runs = [shuffled(cells, 1000 + seed, args.resamples, also_learned=also) for seed in range(args.shuffles)]
            out[label] = total(runs)
        print(name, len(cells.units()), "units")
        for label in ("fresh", "shuffled", "shuffled after learning"):
            print(pd.DataFrame(out[label]).to_string())
        save("evaluation", {name: out})


if __name__ == "__main__":
    main()
