"""Choose a likelihood and a number of dimensions by held-out likelihood. Is the choice correct, and does it hold on new cells?

    python benchmarks/choosing.py real --sets pbmc3k kang pbmc_3studies
    python benchmarks/choosing.py likelihood

``real`` fits several settings with three seeds each, ranks them by ``vx.tl.compare`` on the validation cells, and again on
test cells that no fit has seen. The default setting has six seeds. The true difference between these fits is zero, so
they show how often a verdict would be wrong, with one and with three fits per model.
``likelihood`` simulates negative binomial counts, sets a share of them to zero, and lets ``likelihood="auto"`` choose.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings

import numpy as np
from _sets import SETS, load
from _speed import machine, save, set_threads

SETTINGS: dict[str, dict[str, object]] = {
    "default": {},
    "zinb": {"likelihood": "zinb"},
    "d2": {"n_latent": 2},
    "d20": {"n_latent": 20},
}


def real(args: argparse.Namespace) -> None:
    """Rank settings on the reported data sets, and count differences found between equal models."""
    import vxpress as vx
    from vxpress.bridge.fits.find_fit import find_fit
    from vxpress.bridge.fits.query import read_scored
    from vxpress.core.inference.comparison import Scores, difference
    from vxpress.core.inference.importance import log_likelihoods

    for name in args.sets:
        adata, test = load(name)
        test = test[: args.cells].copy()
        batch = "batch" if SETS[name].batch else None
        start = time.perf_counter()
        for setting, values in SETTINGS.items():
            for seed in range(2 * args.seeds if setting == "default" else args.seeds):
                key = f"{setting}_{seed}"
                vx.tl.fit_vae(adata, batch, rng=seed, denoised=False, device="cpu", key_added=key, **values)
        fitted = time.perf_counter() - start
        keys = [f"{setting}_{seed}" for setting in SETTINGS for seed in range(args.seeds)]
        start = time.perf_counter()
        vx.tl.compare(adata, keys, n_cells=args.cells, device="cpu")
        seconds = (time.perf_counter() - start) / len(keys)
        vx.tl.compare(test, {key: (adata, key) for key in keys}, n_cells=args.cells, device="cpu")
        found = {part: a.uns["vae_compare"] for part, a in (("validation", adata), ("test", test))}
        shown = [
            "log_likelihood",
            "se",
            "log_likelihood_fewer",
            "ess_median",
            "difference",
            "ci_low",
            "ci_high",
            "gap",
            "verdict",
        ]
        for part, result in found.items():
            print(f"\n{name}, {result['params']['n_cells']} {part} cells, {args.seeds} seeds each")
            print(result["table"][shown].round(2).to_string(), flush=True)
        print(
            f"{fitted:.0f} s for {2 * args.seeds + args.seeds * (len(SETTINGS) - 1)} fits, {seconds:.1f} s a fit to compare"
        )
        scores = []
        for seed in range(2 * args.seeds):
            fit = find_fit(adata, None, f"default_{seed}")
            few, many = log_likelihoods(fit.model, read_scored(test, fit, None), (100, 1000), seed=seed)
            scores.append((many.log_likelihood_n, few.log_likelihood_n))

        def pool(members: tuple[int, ...], scores: list[tuple[np.ndarray, np.ndarray]] = scores) -> Scores:
            return Scores(*(np.stack([scores[i][which] for i in members]) for which in (0, 1)))

        everyone = range(2 * args.seeds)
        halves = [
            (half, tuple(i for i in everyone if i not in half))
            for half in itertools.combinations(everyone, args.seeds)
            if 0 in half
        ]
        null = {}
        for kind, pairs in (
            ("one fit each", [((i,), (j,)) for i, j in itertools.combinations(everyone, 2)]),
            ("three fits each", halves),
        ):
            differences = [difference(pool(a), pool(b)) for a, b in pairs]
            null[kind] = {
                "pairs": len(pairs),
                "largest": max(abs(d.estimate) for d in differences),
                "interval_without_0": sum(d.low > 0 or d.high < 0 for d in differences),
                "decided": sum(d.decided for d in differences),
            }
            print(f"equal models, {kind}: {null[kind]}", flush=True)
        payload = {
            part: result["table"].drop(columns="fits").reset_index().to_dict("records")
            for part, result in found.items()
        }
        payload |= {"n_cells": {part: r["params"]["n_cells"] for part, r in found.items()}}
        print(f"written to {save('choosing_real', {name: payload | {'null': null, 'seconds_per_fit': seconds}})}")


def likelihood(args: argparse.Namespace) -> None:
    """Let ``likelihood="auto"`` choose for simulated counts with an increasing share of extra zeros."""
    from scipy import sparse

    import vxpress as vx

    out: dict[str, object] = {"machine": machine(), "runs": []}
    print(
        f"{'extra zeros':>12}{'seed':>6}{'chosen':>8}{'zinb - nb':>11}{'interval':>20}{'gap':>7}{'s nb':>7}{'s auto':>8}"
    )
    for zeros in args.zeros:
        for seed in range(args.seeds):
            adata = vx.datasets.simulate(2000, 500, n_groups=4, library_mean=1500, rng=seed)
            x = adata.X.toarray()
            x *= np.random.default_rng(seed).uniform(size=x.shape) >= zeros
            del adata.obs["library_size"]
            adata.X = sparse.csr_matrix(x)
            start = time.perf_counter()
            vx.tl.fit_vae(adata, denoised=False, device="cpu", rng=seed)
            one = time.perf_counter() - start
            vx.tl.fit_vae(adata, likelihood="auto", denoised=False, device="cpu", rng=seed)
            both = time.perf_counter() - start - one
            c = adata.uns["vae"]["choice"]
            interval = f"{c['ci_low']:+.2f} to {c['ci_high']:+.2f}"
            print(
                f"{zeros:>12.0%}{seed:>6}{c['likelihood']:>8}{c['difference']:>+11.2f}{interval:>20}{c['gap']:>7.2f}"
                f"{one:>7.1f}{both:>8.1f}",
                flush=True,
            )
            numbers = {k: c[k] for k in ("likelihood", "difference", "ci_low", "ci_high", "gap", "n_cells")}
            out["runs"].append({"zeros": zeros, "seed": seed, "seconds_nb": one, "seconds_auto": both} | numbers)  # type: ignore[attr-defined]
    print(f"written to {save('choosing_likelihood', out)}")


def main() -> None:
    """Run one of the two parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=["real", "likelihood"])
    parser.add_argument("--sets", nargs="+", default=["pbmc3k", "kang", "pbmc_3studies"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=300, help="maximum number of cells for the comparison")
    parser.add_argument("--zeros", type=float, nargs="+", default=[0.0, 0.02, 0.1, 0.3])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    set_threads(args.threads)
    {"real": real, "likelihood": likelihood}[args.question](args)


if __name__ == "__main__":
    main()
