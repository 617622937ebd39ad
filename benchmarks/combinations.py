"""Do additive effects in a latent space predict combinations that were never observed better than sums of mean changes?

    python benchmarks/combinations.py
    python benchmarks/combinations.py --seeds 0 --simulated

Cells are the K562 part of the slice of Norman et al. 2019 (3,375 cells, the 250 genes with counts, up to 100 cells per
condition). Each double whose two single perturbations were both observed is held out in turn, and predicted by a fit of
all other cells (``one``); or all of these doubles are held out at once (``all``). ``additive`` is
``vx.tl.predict_perturbation(method="additive")``, ``decoded`` the same with ``anchor=0`` and ``least squares`` with
``anchor=1``, which uses no model. They are scored by ``vx.tl.evaluate_perturbation`` on the held-out cells, with the floors
``additive_mean``, the sum of the mean changes of the two single perturbations, and ``control``.

``--simulated`` does the same for simulated cells, on which the defaults were chosen together with the single perturbations
of another data set: effects that add up on the log scale, of which a part changes in a combination.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from _sets import DATA
from _speed import set_threads
from _versions import RESULTS, stamp
from scipy import sparse

import vxpress as vx

KEY, CONTROL = "condition", "control"
METHODS = {"additive": {}, "decoded": {"anchor": 0.0}, "least squares": {"anchor": 1.0}}
MEASURES = ("weighted_r2_change", "r2_change", "pearson_change", "slope_change")
TIMED = 3


def norman() -> ad.AnnData:
    """Read the K562 cells and the genes with counts."""
    adata = ad.read_h5ad(DATA / "norman_mcfaline_perturbench.h5ad")
    adata = adata[adata.obs["cell_type"] == "k562"]
    adata = adata[:, np.asarray(adata.X.sum(0)).reshape(-1) > 0].copy()
    adata.obs["library_size"] = adata.obs["n_counts_all_genes"]
    return adata


def simulated(
    seed: int, n_cells: int = 100, n_genes: int = 250, n_singles: int = 12, n_doubles: int = 10
) -> ad.AnnData:
    """Simulate cells of one type with perturbations whose log effects add up, except that a fifth is lost in each double."""
    rng = np.random.default_rng(seed)
    base = rng.normal(-8.5, 1.2, n_genes)
    size = rng.choice([0.1, 0.3, 0.6], n_singles)
    effect = rng.normal(size=(n_singles, n_genes)) * size[:, None] * (rng.random((n_singles, n_genes)) < 0.3)
    names = [f"P{i}" for i in range(n_singles)]
    pairs = [rng.choice(n_singles, 2, replace=False) for _ in range(n_doubles)]
    conditions = {CONTROL: np.zeros(n_genes)} | dict(zip(names, effect, strict=True))
    for i, j in pairs:
        lost = rng.random(n_genes) < 0.2
        conditions[f"{names[i]}+{names[j]}"] = (effect[i] + effect[j]) * np.where(lost, 0.3, 1.0)
    programs = 0.4 * rng.normal(size=(4, n_genes))
    counts, label, library = [], [], []
    for name, change in conditions.items():
        depth = rng.lognormal(9.3, 0.4, n_cells)
        rate = np.exp(base + change + rng.normal(size=(n_cells, 4)) @ programs) * depth[:, None]
        counts.append(rng.poisson(rate * rng.gamma(3.0, 1 / 3.0, rate.shape)))
        label += [name] * n_cells
        library.append(np.maximum(np.round(depth), counts[-1].sum(1)))
    obs = pd.DataFrame({KEY: label, "library_size": np.concatenate(library)})
    obs.index = [f"cell-{i}" for i in range(len(obs))]
    return ad.AnnData(sparse.csr_matrix(np.concatenate(counts).astype(np.float32)), obs=obs)


def testable(adata: ad.AnnData) -> list[str]:
    """Return the doubles whose single perturbations were both observed."""
    names = set(adata.obs[KEY].astype(str))
    return sorted(name for name in names if "+" in name and set(name.split("+")) <= names)


def fit(adata: ad.AnnData, seed: int, **arguments: Any) -> float:
    """Fit the cells and return the seconds it took."""
    start = time.perf_counter()
    vx.tl.fit_vae(adata, library="library_size", denoised=False, rng=seed, device="cpu", **arguments)
    return time.perf_counter() - start


def scores(seen: ad.AnnData, held_out: ad.AnnData, target: str, seed: int) -> list[dict[str, Any]]:
    """Predict a double that ``seen`` lacks by all methods and score it; each row is a method or a floor."""
    predicted = {}
    for name, more in METHODS.items():
        predicted[name] = vx.tl.predict_perturbation(
            seen, KEY, control=CONTROL, target=target, method="additive", rng=seed, **more
        )
    found = vx.tl.evaluate_perturbation(
        predicted, held_out, seen[seen.obs[KEY] == CONTROL], library_key="library_size", rng=seed
    )
    table = found.table
    table = table[(table["genes"] == "all") & table["measure"].isin(MEASURES)]
    columns = ["method", "kind", "measure", "score", "low", "high", "ceiling", "difference"]
    return [{"target": target, "seed": seed, **row} for row in table[columns].to_dict("records")]


def held_out(adata: ad.AnnData, seed: int, targets: list[str], *, together: bool) -> list[dict[str, Any]]:
    """Return the scores of all targets, each left out alone or all together."""
    rows = []
    for part in [targets] if together else [[target] for target in targets]:
        condition = adata.obs[KEY].astype(str)
        seen = adata[~condition.isin(part).to_numpy()].copy()
        fit(seen, seed, perturbation_key=KEY, control=CONTROL)
        for target in part:
            rows += scores(seen, adata[(condition == target).to_numpy()].copy(), target, seed)
        print(f"seed {seed}: held out {', '.join(part)}", flush=True)
    return rows


def main() -> None:
    """Run and store."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--only-one", action="store_true", help="leave out the case of all doubles held out at once")
    args = parser.parse_args()
    set_threads(args.threads)
    sc.settings.verbosity = 0
    warnings.filterwarnings("ignore")
    path = RESULTS / "combinations.json"
    out = json.loads(path.read_text()) if path.exists() else {}
    rows: dict[str, list[dict[str, Any]]] = {"one": [], "all": []}
    for seed in args.seeds:
        adata = simulated(seed) if args.simulated else norman()
        targets = testable(adata)
        rows["one"] += held_out(adata, seed, targets, together=False)
        if not args.only_one:
            rows["all"] += held_out(adata, seed, targets, together=True)
    name = "simulated" if args.simulated else "norman"
    out[name] = rows
    if not args.simulated:
        seconds = {
            which: [fit(norman(), 0, **more) for _ in range(TIMED)]
            for which, more in {"plain": {}, "perturbations": {"perturbation_key": KEY, "control": CONTROL}}.items()
        }
        out["seconds"] = seconds
    path.write_text(json.dumps(out, indent=1) + "\n")
    stamp("combinations", [name] if args.simulated else [name, "seconds"])


if __name__ == "__main__":
    main()
