"""Check identities of the terms of the objective on real fits.

    python benchmarks/identities.py --sets pbmc3k kang pbmc_3studies --seeds 3

For every fit: the rate KL(q(z|x) || p(z)) in closed form and from draws of the same cells; the information I_q(x; z) and the
prior gap KL(q(z) || p(z)), where q(z) is the mean posterior of the cells, each from independent draws; and the difference
rate - information - gap, which is 0 up to sampling error. On test cells: the ELBO and the importance-weighted bound with
1, 10, 100 and 1,000 samples, with paired standard errors of each step.
"""

from __future__ import annotations

import argparse
import warnings
from itertools import pairwise

import numpy as np
from _sets import SETS, load
from _speed import save, set_threads

SAMPLES = (1, 10, 100, 1000)


def mean_se(values: list[float] | np.ndarray) -> tuple[float, float]:
    """Compute the mean of independent values and its standard error."""
    values = np.asarray(values)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def divergences(mean_nd: np.ndarray, var_nd: np.ndarray, n_draws: int, seed: int) -> dict[str, float]:
    """Compute rate, information and prior gap of some cells in nats, with standard errors of the sampled terms."""
    from vxpress.metrics import kl_per_dimension, log_aggregate_posterior, mutual_information

    def log_normal(z_nd: np.ndarray, loc: np.ndarray | float = 0.0, var: np.ndarray | float = 1.0) -> np.ndarray:
        return -0.5 * ((z_nd - loc) ** 2 / var + np.log(2 * np.pi * var)).sum(1)

    rng = np.random.default_rng([seed, 1])
    sampled, gaps = [], []
    for _ in range(n_draws):
        z_nd = mean_nd + np.sqrt(var_nd) * rng.normal(size=mean_nd.shape)
        sampled.append((log_normal(z_nd, mean_nd, var_nd) - log_normal(z_nd)).mean())
        z_nd = mean_nd + np.sqrt(var_nd) * rng.normal(size=mean_nd.shape)
        gaps.append((log_aggregate_posterior(z_nd, mean_nd, var_nd) - log_normal(z_nd)).mean())
    other = np.random.default_rng([seed, 2])
    known = [mutual_information(mean_nd, var_nd, n_cells=len(mean_nd), rng=other) for _ in range(n_draws)]
    rate = float(kl_per_dimension(mean_nd, var_nd).sum())
    out = {"rate": rate, "cap": float(np.log(len(mean_nd)))}
    for name, values in (("rate_sampled", sampled), ("information", known), ("gap", gaps)):
        out[name], out[f"{name}_se"] = mean_se(values)
    out["left"] = rate - out["information"] - out["gap"]
    out["left_se"] = float(np.hypot(out["information_se"], out["gap_se"]))
    return out


def bounds(adata: object, test: object) -> dict[str, object]:
    """Compute ELBO and bounds of the test cells, and each step between them with its paired standard error."""
    from vxpress.bridge.fits.find_fit import find_fit
    from vxpress.bridge.fits.query import read_scored
    from vxpress.core.inference.importance import log_likelihoods

    fit = find_fit(adata, None, "vae")
    found = log_likelihoods(fit.model, read_scored(test, fit, None), SAMPLES, seed=0)
    steps = [mean_se(more.log_likelihood_n - fewer.log_likelihood_n) for fewer, more in pairwise(found)]
    first = mean_se(found[0].log_likelihood_n - found[-1].elbo_n)
    return {
        "elbo": float(found[-1].elbo_n.mean()),
        "bound": [float(b.log_likelihood_n.mean()) for b in found],
        "one_minus_elbo": first,
        "steps": steps,
        "ess_median": float(np.median(found[-1].ess_n)),
    }


def main() -> None:
    """Fit, check, print a table and write ``results/identities.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["pbmc3k", "kang", "pbmc_3studies"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=20, help="draws per cell for each sampled term")
    parser.add_argument("--cells", type=int, default=200, help="number of test cells for the bounds")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    set_threads(args.threads)
    import vxpress as vx

    worst = 0.0
    for name in args.sets:
        adata, test = load(name)
        test = test[: args.cells].copy()
        print(f"{name}: {adata.n_obs} cells x {adata.n_vars} genes, bounds of {test.n_obs} test cells")
        print(f"{'seed':>6}{'rate':>9}{'sampled':>17}{'I_q':>17}{'gap':>17}{'rate - I_q - gap':>20}")
        runs = []
        for seed in range(args.seeds):
            vx.tl.fit_vae(adata, "batch" if SETS[name].batch else None, rng=seed, denoised=False, device="cpu")
            moments = (adata.obsm[key].astype(np.float64) for key in ("X_vae", "X_vae_var"))
            terms, bound = divergences(*moments, args.draws, seed), bounds(adata, test)
            runs.append(terms | bound)
            shown = [f"{terms[key]:.3f} ± {terms[key + '_se']:.3f}" for key in ("rate_sampled", "information", "gap")]
            print(f"{seed:>6}{terms['rate']:>9.3f}" + "".join(f"{s:>17}" for s in shown), end="")
            print(f"{terms['left']:>+12.4f} ± {terms['left_se']:.4f}", flush=True)
            worst = max(worst, abs(terms["left"]) / terms["left_se"])
        print(
            f"{'seed':>6}{'ELBO':>11}" + "".join(f"{f'K = {k}':>12}" for k in SAMPLES) + f"{'smallest step / se':>22}"
        )
        for seed, run in enumerate(runs):
            ratio = min(step / se for step, se in run["steps"])
            print(f"{seed:>6}{run['elbo']:>11.2f}" + "".join(f"{b:>12.2f}" for b in run["bound"]) + f"{ratio:>22.1f}")
        path = save("identities", {name: {"draws": args.draws, "samples": SAMPLES, "cells": test.n_obs, "runs": runs}})
    print(f"largest |rate - I_q - gap| in standard errors: {worst:.2f}")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
