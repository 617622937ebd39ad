"""Search for the defaults on the tuning data sets: one change of the settings at a time.

    python benchmarks/search.py --around 0.1 --out rescore      # the search behind the defaults of 0.1
    python benchmarks/search.py --out search                    # around the present defaults
    python benchmarks/search.py --scib --out search_scib        # the same, with totals of scib-metrics

The data sets and scores are those of ``integration.py``: held-out IWAE bound (nats per test cell), purity of neighbours,
agreement of clusters with labels at the best and at the matched resolution, mixing of batches within labels, and steps.
Rows are stored after every fit, so that an interrupted search continues.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from _integration import SETS, load, scib, structure
from _settings import SETTINGS, arguments
from _speed import save, set_threads
from fit_ours import judge_fit

import vxpress as vx

HERE = Path(__file__).parent
# differences between settings need fewer importance samples than reported bounds
N_SAMPLES = 30
# around the settings of release 0.1
FROM_0_1: dict[str, dict[str, Any]] = {
    "none": {},
    "20 dimensions": {"n_latent": 20},
    "dropout 0.3": {"options": {"dropout": 0.3}},
    "layer norm": {"options": {"norm": "layer"}},
    "covariates at the output": {"options": {"condition_output": True}},
    "layer norm, covariates at the output": {
        "options": {"norm": "layer", "condition_output": True},
    },
    "64 hidden units": {"n_hidden": 64},
    "weight decay 0.3": {"options": {"weight_decay": 0.3}},
    "weight decay 1": {"options": {"weight_decay": 1.0}},
    "warm-up 0.1": {"kl_warmup": 0.1},
    "256 cells a step": {"batch_size": 256},
    "rate 0.01": {"options": {"learning_rate": 0.01}},
    "preset likelihood": {"preset": "likelihood"},
    "dispersions as trained": {"options": {"refit_dispersion": False}},
    "32 hidden units": {"n_hidden": 32},
    "zinb": {"likelihood": "zinb"},
}
# around the present defaults
FROM_DEFAULTS: dict[str, dict[str, Any]] = {
    "none": {},
    "10 dimensions": {"n_latent": 10},
    "30 dimensions": {"n_latent": 30},
    "64 hidden units": {"n_hidden": 64},
    "256 hidden units": {"n_hidden": 256},
    "two layers": {"n_layers": 2},
    "dropout 0.1": {"options": {"dropout": 0.1}},
    "dropout 0.5": {"options": {"dropout": 0.5}},
    "no thinning": {"options": {"thinning": 0.0}},
    "thinning 0.7": {"options": {"thinning": 0.7}},
    "batch norm": {"options": {"norm": "batch"}},
    "covariates at the first layer only": {"options": {"condition_output": False}},
    "covariates encoded": {"options": {"encode_covariates": True}},
    "start at the mean profile": {"options": {"start": "mean"}},
    "weight decay 0.1": {"options": {"weight_decay": 0.1}},
    "weight decay 0.3": {"options": {"weight_decay": 0.3}},
    "weight decay 1": {"options": {"weight_decay": 1.0}},
    "beta 1.5": {"beta": 1.5},
    "beta 2": {"beta": 2.0},
    "128 cells a step": {"batch_size": 128},
    "130 epochs": {"max_epochs": 130},
    "dispersions as trained": {"options": {"refit_dispersion": False}},
    "mixture prior": {"prior": "mixture"},
    "Vamp prior": {"prior": "vamp"},
    "covariates embedded": {"options": {"covariate_code": "embedding"}},
    "three fits": {"n_fits": 3},
    "preset likelihood": {"preset": "likelihood"},
    "preset integration": {"preset": "integration"},
    # what is handed to neighbours, instead of the posterior means
    "means of unit variance": {"handed": "unit variance"},
    "means weighted by divergence": {"handed": "divergence"},
}
# changes and data sets of each search
AROUND = {
    "0.1": (FROM_0_1, ["paul15", "cite", "kang_ctrl"]),
    "defaults": (
        FROM_DEFAULTS,
        ["paul15", "cite", "kang_ctrl", "worm", "simulated_tune", "kang_ctrl_400", "simulated_400"],
    ),
}


def handed_on(adata: ad.AnnData, how: str | None) -> np.ndarray:
    """Return the embedding that neighbours are searched in."""
    z = np.asarray(adata.obsm.get("X_vae_ensemble", adata.obsm["X_vae"]))
    divergence = np.asarray(adata.uns["vae"]["diagnostics"]["kl_per_dim"])
    if how == "unit variance":
        # empty dimensions would be scaled up to noise
        active = divergence > 0.01
        return z[:, active] / z[:, active].std(0)
    return z * np.sqrt(divergence) if how == "divergence" else z


def run(name: str, given: dict[str, Any], seed: int, *, with_scib: bool = False) -> dict[str, float]:
    """Fit once and compute the scores; ``with_scib`` adds those of scib-metrics."""
    fit, test = load(name)
    adata = fit.copy()
    how = given.pop("handed", None)
    vx.tl.fit_vae(adata, "batch" if "batch" in fit.obs else None, rng=seed, denoised=False, **given)
    scores, _ = judge_fit(adata, test, n_samples=N_SAMPLES)
    latent = handed_on(adata, how)
    found = structure(latent, fit.obs["label"], fit.obs.get("batch")) | (scib(latent, name) if with_scib else {})
    return {"IWAE": float(scores.iwae_n.mean()), **found, "steps": int(adata.uns["vae"]["params"]["n_steps"])}


def main() -> None:
    """Fit every data set, change and seed that has no row yet; print the means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), help="by default, those of this search")
    parser.add_argument("--changes", nargs="+", help="names of changes; by default, all of this search")
    parser.add_argument("--around", default="defaults", choices=list(AROUND))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--scib", action="store_true", help="also compute scib-metrics (needs the library)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="search")
    args = parser.parse_args()
    changes, sets = AROUND[args.around]
    unknown = sorted(set(args.changes or ()) - set(changes))
    if unknown:
        parser.error(f"--changes: {unknown} are not among {list(changes)}")
    warnings.filterwarnings("ignore")
    path = HERE / "results" / f"{args.out}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    for seed in args.seeds:
        for name in args.sets or sets:
            for change in args.changes or changes:
                key = {"change": change, "set": name, "seed": seed}
                if any(key.items() <= row.items() for row in rows):
                    continue
                set_threads(args.threads)
                # a preset is compared as it is, not on top of settings that would override it
                base = {} if "preset" in changes[change] else SETTINGS[args.around]
                rows.append(key | run(name, arguments(base, changes[change]), seed, with_scib=args.scib))
                print(rows[-1], flush=True)
                save(args.out, {"rows": rows, "around": args.around})
    means = pd.DataFrame(rows).groupby(["change", "set"], sort=False).mean().drop(columns="seed")
    print(means.to_string(float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
