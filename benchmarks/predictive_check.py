"""Check the calibration of the posterior predictive distribution on test cells, simulated and real.

    python benchmarks/predictive_check.py --seeds 0 1 2 --threads 1

``simulated`` are negative binomial counts, so "nb" is the correct family and "poisson" a deliberate misfit.
Coverage is that of entries expected to be expressed; ranges are over seeds of the fit (and of the simulation).
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
from _sets import SETS, load
from _speed import machine, save, set_threads


def cells_of(name: str, seed: int) -> tuple[object, object, str | None]:
    """Return the cells to fit, the test cells and the batch column."""
    import vxpress as vx

    if name != "simulated":
        return *load(name), "batch" if SETS[name].batch else None
    adata = vx.datasets.simulate(2500, 1000, n_batches=2, library_mean=2000, rng=seed)
    test = np.random.default_rng(seed).permutation(2500) < 500
    return adata[~test].copy(), adata[test].copy(), "batch"


def main() -> None:
    """Fit and check, print a table and write ``results/predictive_check.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["simulated", "kang", "pbmc3k"])
    parser.add_argument("--distributions", nargs="+", default=["nb", "poisson"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--cells", type=int, default=500, help="number of test cells to check")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    set_threads(args.threads)

    import vxpress as vx

    out = {"draws": args.draws, "seeds": args.seeds, "machine": machine(), "sets": {}}
    print(f"{'':<22}{'50 % interval':>22}{'90 % interval':>22}{'variance ratio':>16}{'zeros':>9}")
    for name in args.sets:
        for distribution in args.distributions:
            rows = []
            for seed in args.seeds:
                adata, test, batch = cells_of(name, seed)
                vx.tl.fit_vae(adata, batch, likelihood=distribution, rng=seed, denoised=False, device="cpu")
                test = test[: args.cells].copy()
                vx.tl.predictive_check(test, adata, n_draws=args.draws)
                found = test.uns["vae_predictive_check"]
                genes = found["genes"][found["genes"]["variance"] > 0]
                rows.append(
                    [
                        *found["coverage"]["expressed"],
                        (genes["variance_predicted"] / genes["variance"]).median(),
                        genes["zero_fraction_predicted"].mean() - genes["zero_fraction"].mean(),
                    ]
                )
            rows = np.array(rows)
            out["sets"][f"{name}, {distribution}"] = rows.tolist()
            cells = [
                f"{m:.3f} ({lo:.3f}-{hi:.3f})" for m, lo, hi in zip(rows.mean(0), rows.min(0), rows.max(0), strict=True)
            ]
            ratio, zeros = rows[:, 2].mean(), rows[:, 3].mean()
            print(
                f"{name + ', ' + distribution:<22}{cells[0]:>22}{cells[1]:>22}{ratio:>16.3f}{zeros:>+9.4f}", flush=True
            )
    print(f"written to {save('predictive_check', out)}")


if __name__ == "__main__":
    main()
