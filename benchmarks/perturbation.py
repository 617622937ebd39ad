"""Predict the response of each group from the others, and compare with floors, other tools and a repetition.

    python benchmarks/perturbation_peers.py --sets kang --methods scgen
    python benchmarks/perturbation.py --sets kang glioblastoma kang_cd4 --seeds 0 1 2 3 4 --threads 1

The treated cells of one group at a time are kept from all models, also while they are fitted. ``evaluate_perturbation``
scores the predicted cells against them on the scale log1p(1e4 x / l), with floors and ceiling. Defaults were chosen on
``glioblastoma`` and in part on ``kang``. Methods in brackets have other options than the default.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import anndata as ad
import numpy as np
from _perturbation import RESPONSES, Fold, fold, groups_of, logged
from _speed import RESULTS, machine, save, set_threads
from perturbation_peers import path_of
from scipy import sparse

# method, which fit it needs, and arguments
OURS = {
    "shift": ("shift", "plain", {}),
    "shift [as decoded]": ("shift", "plain", {"anchor": 0.0, "check": False}),
    "shift [anchor alone]": ("shift", "plain", {"anchor": 1.0, "check": False}),
    "counterfactual": ("counterfactual", "condition", {}),
}
# methods whose drawn cells are scored too
DRAWN = ("shift",)
MEASURES = (
    "pearson_change",
    "r2_change",
    "weighted_r2_change",
    "slope_change",
    "r2_sd",
    "energy_distance",
    "mmd",
)
# of the default; of other methods only the score
KEPT = ("score", "low", "high", "ceiling", "difference", "difference_low", "difference_high")


def fits(cells: Fold, seed: int, wanted: set[str]) -> tuple[dict[str, ad.AnnData], dict[str, float]]:
    """Fit the models that the methods need; return them and the seconds of each."""
    import vxpress as vx

    batch = RESPONSES[cells.name].batch
    more = {"plain": {}, "condition": {"categorical_covariate_keys": ["condition"]}}
    found, seconds = {}, {}
    for name in sorted(wanted):
        start = time.perf_counter()
        found[name] = vx.tl.fit_vae(
            cells.seen, "batch" if batch else None, rng=seed, denoised=False, device="cpu", copy=True, **more[name]
        )
        seconds[name] = time.perf_counter() - start
    return found, seconds


def as_log(predicted: ad.AnnData, *, drawn: bool) -> ad.AnnData:
    """Return predicted cells on the scale of the scores: drawn counts, or control cells plus the predicted change.

    The latter have no sampling noise, as the floors and the cells that scGen decodes.
    """
    record = predicted.uns["perturbation"]
    values = (
        logged(predicted.X)
        if drawn
        else sparse.csr_matrix(logged(predicted.layers["control"]).toarray() + record["change"][0].astype(np.float32))
    )
    out = ad.AnnData(values, obs=predicted.obs[["group", "condition", "source_cell"]], var=predicted.var[[]])
    out.uns = predicted.uns
    return out


def peer(cells: Fold, seed: int) -> ad.AnnData | None:
    """Return the cells that scGen predicted, if they are in the cache."""
    path = path_of("scgen", cells.name, cells.held_out, seed)
    if not path.exists():
        return None
    obs = cells.control.obs[["group"]].copy()
    obs["condition"], obs["source_cell"] = RESPONSES[cells.name].target, obs.index.astype(str)
    values = np.load(path)["log_values"].astype(np.float32)
    return ad.AnnData(sparse.csr_matrix(values), obs=obs, var=cells.seen.var[[]])


def plain_correlations(
    cells: Fold, predicted: dict[str, ad.AnnData], floors: dict[str, np.ndarray], seed: int
) -> dict[str, float]:
    """Correlate changes with all control cells subtracted from both, as the notebook of scvi-tools does."""
    treated_g, control_g = (np.asarray(logged(part.X).mean(0)).reshape(-1) for part in (cells.treated, cells.control))
    changes = {name: np.asarray(part.X.mean(0)).reshape(-1) - control_g for name, part in predicted.items()}
    changes |= {name: change[0] for name, change in floors.items()}
    path = path_of("scvi", cells.name, cells.held_out, seed)
    if path.exists():
        changes["scVI"] = np.load(path)["change"]
    return {name: float(np.corrcoef(change, treated_g - control_g)[0, 1]) for name, change in changes.items()}


def one(cells: Fold, seed: int, methods: list[str]) -> dict[str, object]:
    """Predict and score one held-out group."""
    import vxpress as vx

    which = RESPONSES[cells.name]
    fitted, seconds = fits(cells, seed, {OURS[name][1] for name in methods})
    predicted, took = {}, {}
    for name in methods:
        method, fit, arguments = OURS[name]
        start = time.perf_counter()
        found = vx.tl.predict_perturbation(
            fitted[fit],
            "condition",
            control=which.control,
            target=which.target,
            groupby="group",
            groups=cells.held_out,
            method=method,
            rng=seed,
            **arguments,
        )
        took[name] = time.perf_counter() - start
        predicted[name] = as_log(found, drawn=False)
        if name in DRAWN:
            predicted[f"{name}, drawn"] = as_log(found, drawn=True)
    support = float(np.median(found.obs["support"]))
    other = peer(cells, seed)
    if other is not None:
        predicted["scGen"] = other
        took["scGen"] = float(np.load(path_of("scgen", cells.name, cells.held_out, seed))["seconds"])
    observed, control = (
        ad.AnnData(logged(part.X), obs=part.obs[["group", "condition"]], var=part.var[[]])
        for part in (cells.treated, cells.control)
    )
    result = vx.tl.evaluate_perturbation(
        predicted,
        observed,
        control,
        groupby="group",
        perturbation_key="condition",
        log_transformed=True,
        n_top=(100,),
        n_resamples=60,
        n_cells=200,
        rng=seed,
    )
    whole = plain_correlations(cells, predicted, found.uns["perturbation"]["floors"], seed)
    table = result.table
    table = table[table["measure"].isin(MEASURES)]
    rows = {}
    for row in table.to_dict("records"):
        kept = KEPT if row["method"].startswith("shift") else KEPT[:1]
        found_here = {key: _number(row[key]) for key in kept}
        rows.setdefault(row["method"], {})[f"{row['measure']} {row['genes']}"] = found_here
    return {
        "scores": rows,
        "plain correlation": whole,
        "fit seconds": seconds,
        "seconds": took,
        "support": support,
        "cells": [cells.control.n_obs, cells.treated.n_obs],
        "said": found.uns["perturbation"].get("verdict", ""),
    }


def _number(value: object) -> object:
    return (
        float(f"{value:.5g}")
        if isinstance(value, (float, np.floating)) and np.isfinite(value)
        else (None if isinstance(value, (float, np.floating)) else value)
    )


def main() -> None:
    """Predict and score every set, group and seed, and write ``results/perturbation.json``; what is there is kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(RESPONSES), choices=list(RESPONSES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=list(OURS), choices=list(OURS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--with-peers", action="store_true", help="only groups that scGen has predicted")
    parser.add_argument("--again", action="store_true", help="measure again what is there")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    set_threads(args.threads)
    path = RESULTS / "perturbation.json"
    out = json.loads(path.read_text()) if path.exists() else {}
    for seed in args.seeds:
        for name in args.sets:
            for group in groups_of(name):
                place = out.setdefault(name, {}).setdefault(group, {})
                if str(seed) in place and not args.again:
                    continue
                if args.with_peers and not path_of("scgen", name, group, seed).exists():
                    continue
                start = time.perf_counter()
                place[str(seed)] = one(fold(name, group), seed, args.methods)
                out["machine"] = machine()
                save("perturbation", out)
                scores = place[str(seed)]["scores"]
                known = {m: s["pearson_change all"]["score"] for m, s in scores.items()}
                text = ", ".join(f"{m} {value:.3f}" for m, value in known.items() if value is not None)
                print(f"{name} {group} {seed}: {time.perf_counter() - start:.0f} s; {text}", flush=True)


if __name__ == "__main__":
    main()
