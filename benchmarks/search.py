"""Search for the defaults on the tuning data sets.

    python benchmarks/search.py --sets paul15 cite kang_ctrl --seeds 0

Computes the held-out IWAE bound (nats per test cell), the agreement of leiden clusters with the labels, mixing of batches
and steps, for the defaults and one change at a time.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import pandas as pd
from _sets import SETS, load
from _speed import mean_scores
from _versions import stamp
from compare import structure
from fit_ours import judge_fit

import vxpress as vx

HERE = Path(__file__).parent
CHANGES: dict[str, dict] = {
    "defaults": {},
    "preset likelihood": {"preset": "likelihood"},
    "64 hidden units": {"n_hidden": 64},
    "32 hidden units": {"n_hidden": 32},
    "20 dimensions": {"n_latent": 20},
    "dropout 0.3": {"options": {"dropout": 0.3}},
    "layer norm": {"options": {"norm": "layer"}},
    "covariates at the output": {"options": {"condition_output": True}},
    "dispersions as trained": {"options": {"refit_dispersion": False}},
    "weight decay 0.3": {"options": {"weight_decay": 0.3}},
    "weight decay 1": {"options": {"weight_decay": 1.0}},
    "warm-up 0.1": {"kl_warmup": 0.1},
    "256 cells a step, rate 0.01": {"batch_size": 256, "options": {"learning_rate": 0.01}},
    "128 cells a step, rate 0.005": {"batch_size": 128, "options": {"learning_rate": 0.005}},
    "rate 0.01": {"options": {"learning_rate": 0.01}},
    "zinb": {"likelihood": "zinb"},
}


def run(name: str, change: dict, seed: int) -> dict[str, float]:
    """Fit once and compute the scores."""
    adata, test = load(name)
    batch = "batch" if SETS[name].batch else None
    arguments = change | {"options": vx.tl.FitOptions(**change.get("options", {}))}
    vx.tl.fit_vae(adata, batch, rng=seed, denoised=False, **arguments)
    scores, _ = judge_fit(adata, test)
    found = structure(adata.obsm["X_vae"], adata.obs[SETS[name].labels], adata.obs["batch"] if batch else None)
    return {"IWAE": scores.iwae_n.mean(), **found, "steps": int(adata.uns["vae"]["params"]["n_steps"])}


def main() -> None:
    """Print a row per change and data set, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["paul15", "cite", "kang_ctrl"])
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), choices=list(CHANGES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    for title in args.changes:
        for name in args.sets:
            scores = mean_scores(lambda seed, t=title, n=name: run(n, CHANGES[t], seed), args.seeds, args.threads)
            rows.append({"change": title, "set": name} | scores)
            print(rows[-1], flush=True)
    print(pd.DataFrame(rows).drop(columns="each").to_string(index=False, float_format="{:.3f}".format))
    out = HERE / "results" / "search.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")
    stamp("search")


if __name__ == "__main__":
    main()
