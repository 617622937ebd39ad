"""Compare learned priors with N(0, I): likelihood of test cells, and time.

    python benchmarks/priors.py --sets pbmc3k kang pbmc_3studies --seeds 0 1 2 3 4
    python benchmarks/priors.py --only timing

For every data set and seed, one fit at the defaults is scored under its standard normal prior and under each prior that
``vx.tl.fit_prior`` learns on it afterwards ("after"). The same fit is repeated with each prior learned together with
the model ("joint", ``fit_vae(prior=...)``). The score is the importance-weighted bound of ``vx.tl.log_likelihood`` on test
cells that no fit has seen. Every result is stored as a file, and a rerun continues where the last one stopped.
"""

from __future__ import annotations

import time
import warnings

import _cache
import numpy as np
import torch
from _sets import SETS, load
from _speed import machine, save, set_threads
from anndata import AnnData

import vxpress as vx

PRIORS = ("mixture", "vamp", "flow", "diffusion", "flow_matching")
TARGET_SECONDS = 90.0


def score(test: AnnData, fitted: AnnData, key: str, samples: int) -> dict[str, np.ndarray]:
    """Compute the bound of the test cells."""
    vx.tl.log_likelihood(test, fitted, key=key, n_samples=samples, device="cpu")
    names = {"iwae": "log_likelihood", "elbo": "elbo", "ess": "log_likelihood_ess"}
    return {name: test.obs[f"{key}_{column}"].to_numpy() for name, column in names.items()}


def measure(args: object) -> None:
    """Compute results that are not in the cache."""
    for seed in args.seeds:
        for name in args.sets:
            missing = [v for v in variants(args) if not path_of(args, name, v, seed).exists()]
            if not missing:
                continue
            adata, test = load(name)
            test = test[np.sort(np.random.default_rng(0).permutation(test.n_obs)[: args.cells])].copy()
            batch = "batch" if SETS[name].batch else None
            if any(v == "normal" or v.startswith("after") for v in missing):
                vx.tl.fit_vae(adata, batch, rng=seed, denoised=False, device="cpu")
            for variant in missing:
                form, _, kind = variant.partition("-")
                key, start = "vae", time.perf_counter()
                if form == "joint":
                    key = "joint"
                    vx.tl.fit_vae(adata, batch, prior=kind, rng=seed, denoised=False, key_added=key, device="cpu")
                elif form == "after":
                    key = "after"
                    vx.tl.fit_prior(adata, kind, key_added=key, rng=seed, device="cpu")
                seconds = time.perf_counter() - start
                kept = key in adata.uns
                # a prior that was refused does not change the fit
                found = score(test, adata, key if kept else "vae", args.samples)
                record = adata.uns[key].get("prior", {}) if kept else {}
                for left in ("after", "joint"):
                    adata.uns.pop(left, None)
                    for slot in (adata.obs, adata.obsm):
                        for column in [c for c in slot if c == left or c.startswith(f"{left}_")]:
                            del slot[column]
                found |= {"seconds": np.array(seconds), "kept": np.array(kept)}
                found |= {k: np.array(record[k]) for k in ("gain", "gain_se", "kl", "kl_se") if k in record}
                np.savez_compressed(path_of(args, name, variant, seed), **found)
                print(
                    f"{name} {seed} {variant:<20} {seconds:>6.1f} s, scored in "
                    f"{time.perf_counter() - start - seconds:.0f} s: IWAE {found['iwae'].mean():.2f}"
                    + ("" if kept else " (refused)"),
                    flush=True,
                )


def variants(args: object) -> list[str]:
    """List the reference, and each prior learned afterwards and jointly."""
    return ["normal", *(f"{form}-{kind}" for form in args.forms for kind in args.priors)]


def path_of(args: object, name: str, variant: str, seed: int) -> object:
    """Return the file of a result."""
    return args.out / f"prior-{variant}-{name}-{seed}.npz"


def report(args: object) -> dict[str, object]:
    """Compute the gain over N(0, I) per data set, averaged over seeds and cells, with its 95 % interval over seeds."""
    out: dict[str, object] = {}
    print(f"\nIWAE over N(0, I), nats per test cell (and %), {len(args.seeds)} seed(s)")
    print(f"{'':<22}" + "".join(f"{name:>28}" for name in args.sets) + f"{'mean %':>10}")
    for variant in variants(args)[1:]:
        row, shares = {}, []
        for name in args.sets:
            pairs = [
                [np.load(path_of(args, name, v, seed))["iwae"].mean() for v in ("normal", variant)]
                for seed in args.seeds
            ]
            gain = np.array([b - a for a, b in pairs])
            share = 100 * gain / np.abs([a for a, _ in pairs])
            half = interval(gain)
            row[name] = {"gain": float(gain.mean()), "half": half, "percent": float(share.mean()), "all": gain.tolist()}
            row[name]["normal"] = float(np.mean([a for a, _ in pairs]))
            row[name]["worst_percent"] = float(share.min())
            files = [np.load(path_of(args, name, variant, seed)) for seed in args.seeds]
            row[name]["seconds"] = float(np.median([f["seconds"] for f in files]))
            row[name]["refused"] = int(sum(not f["kept"] for f in files))
            shares.append(share.mean())
        cells = "".join(f"{r['gain']:>+12.2f} +-{r['half']:5.2f} ({r['percent']:+.2f})" for r in row.values())
        print(f"{variant:<22}{cells}{np.mean(shares):>+10.3f}")
        met = bool(np.mean(shares) > 0 and min(r["percent"] for r in row.values()) > -0.1)
        out[variant] = {"sets": row, "mean_percent": float(np.mean(shares)), "target_met": met}
    return out


def interval(values: np.ndarray) -> float:
    """Compute half the width of the 95 % interval of a mean (Student's t); NaN for one value."""
    from scipy import stats

    n = len(values)
    return float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


def timing(args: object) -> dict[str, object]:
    """Time each prior on 10,000 latent vectors of ten dimensions, scored on 1,000 more; also draws and densities."""
    from vxpress.core.config import PriorConfig
    from vxpress.core.normal import DiagonalNormal
    from vxpress.core.priors.fitting import build_prior, learn

    # clusters of unequal size and shape, with posteriors as wide as in fits
    rng = np.random.default_rng(0)
    clump = rng.choice(12, size=10_000, p=rng.dirichlet(np.ones(12)))
    loc = rng.normal(size=(12, 10))[clump] + 0.3 * rng.normal(size=(10_000, 10)) * rng.gamma(2.0, 0.5, (12, 10))[clump]
    q = DiagonalNormal(torch.tensor(loc, dtype=torch.float32), torch.full((10_000, 10), 0.3))
    out: dict[str, object] = {}
    print(
        f"\nseconds on 10,000 latents, {args.threads} thread(s); target {TARGET_SECONDS:.0f} s for flow and diffusion"
    )
    for kind in args.priors:
        prior = build_prior(PriorConfig.of(kind, n_components=500 if kind == "vamp" else 50), 10, 0)
        clock, processor = [time.perf_counter()], time.process_time()
        learned = learn(prior, q, None, seed=0)
        processor = time.process_time() - processor
        clock.append(time.perf_counter())
        z = prior.sample(10_000, torch.Generator().manual_seed(0))
        clock.append(time.perf_counter())
        with torch.no_grad():
            prior.log_prob(z[:1000])
        clock.append(time.perf_counter())
        fit, draw, density = np.diff(clock)
        out[kind] = {
            "fit": fit,
            "fit_processor": processor,
            "steps": learned.n_steps,
            "draw_10000": draw,
            "density_1000": density,
        }
        print(
            f"{kind:<16} fit {fit:6.1f} s ({processor:.1f} of processor, {learned.n_steps} steps), 10,000 draws {draw:5.2f} s, 1,000 densities {density:5.2f} s"
        )
    return out


def main() -> None:
    """Compute missing results, print tables and write ``results/priors.json``."""
    options = _cache.parser(__doc__.splitlines()[0])
    options.add_argument("--priors", nargs="+", default=list(PRIORS), choices=list(PRIORS))
    options.add_argument("--forms", nargs="+", default=["after", "joint"], choices=["after", "joint"])
    options.add_argument("--cells", type=int, default=300, help="number of test cells to score")
    options.add_argument("--samples", type=int, default=100)
    options.add_argument("--only", choices=["quality", "timing"])
    args = options.parse_args()
    warnings.filterwarnings("ignore")
    set_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    out: dict[str, object] = {"machine": machine()}
    if args.only != "timing":
        measure(args)
        table = {"cells": args.cells, "samples": args.samples, "seeds": args.seeds, "gain": report(args)}
        out |= {"quality " + " ".join(args.sets): table}
    if args.only != "quality":
        out["timing"] = timing(args)
    print(f"written to {save('priors', out)}")


if __name__ == "__main__":
    main()
