"""Evaluate counterfactual expression of simulated cells whose expression under treatment is known.

    python benchmarks/counterfactual.py --seeds 0 1 2 --threads 1

The batch of the simulator is treated as a condition, and the treated cells of one group are removed before fitting.
``strong`` groups differ by twice the fold changes of the simulator's ``default`` groups, in twice as many genes. The
distance is the median over control cells and genes of the absolute log2 ratio to the true composition under treatment.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
from _speed import machine, save, set_threads

EFFECTS = {"strong": {"de_fraction": 0.6, "de_log_fold_change": 1.5}, "default": {}}
COLUMNS = ("correlation", "distance", "left as is", "median support", "below 0.2")
FLOOR = 1e-12


def one(effects: dict[str, float], seed: int) -> dict[str, list[float]]:
    """Compute the scores of control cells in groups seen under treatment, and in the group never treated."""
    import vxpress as vx

    adata = vx.datasets.simulate(
        3000, 300, n_groups=4, n_batches=2, library_mean=2000, keep_truth=True, rng=seed, **effects
    )
    control, treated = adata.obs["batch"].cat.categories
    held_out = adata.obs["group"].cat.categories[-1]
    is_control = (adata.obs["batch"] == control).to_numpy()
    never = (adata.obs["group"] == held_out).to_numpy()
    adata = adata[is_control | ~never].copy()
    adata.obs["condition"] = adata.obs["batch"].astype(str).astype("category")
    vx.tl.fit_vae(adata, categorical_covariate_keys=["condition"], rng=seed, target_sum=1.0, device="cpu")
    vx.tl.counterfactual(adata, "condition", treated, target_sum=1.0)
    factors = adata.varm["batch_log_fold_change_true"]
    change_g = factors[:, 1] - factors[:, 0]
    is_control, never = (adata.obs["batch"] == control).to_numpy(), (adata.obs["group"] == held_out).to_numpy()
    found = {}
    for name, rows in (("seen", is_control & ~never), ("never treated", is_control & never)):
        truth = adata.layers["rho_true"][rows] * 2.0**change_g
        before, after = (adata.layers[layer][rows] for layer in ("vae_normalized", "vae_counterfactual"))
        log_fold_change = np.log2(after.mean(0) / before.mean(0))
        support = adata.obs["vae_counterfactual_support"].to_numpy()[rows]
        found[name] = [
            float(np.corrcoef(log_fold_change, change_g)[0, 1]),
            *(float(np.median(np.abs(np.log2(np.maximum(v, FLOOR) / truth)))) for v in (after, before)),
            float(np.median(support)),
            float((support < 0.2).mean()),
        ]
    return found


def main() -> None:
    """Fit, decode, print a table and write ``results/counterfactual.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    set_threads(args.threads)
    out = {"seeds": args.seeds, "columns": COLUMNS, "machine": machine(), "effects": {}}
    print(f"{'':<26}" + "".join(f"{name:>24}" for name in COLUMNS))
    for effects, settings in EFFECTS.items():
        runs = [one(settings, seed) for seed in args.seeds]
        for cells in runs[0]:
            values = np.array([run[cells] for run in runs])
            out["effects"][f"{effects}, {cells}"] = values.tolist()
            spread = zip(values.mean(0), values.min(0), values.max(0), strict=True)
            row = "".join(f"{f'{mean:.3f} ({low:.3f}-{high:.3f})':>24}" for mean, low, high in spread)
            print(f"{f'{effects}, {cells}':<26}" + row, flush=True)
    print(f"written to {save('counterfactual', out)}")


if __name__ == "__main__":
    main()
