"""Compare objectives, floors and decoders: held-out likelihood, active dimensions, information, and time.

    python benchmarks/objectives.py

Fits 800 cells x 1,000 genes of each of three tuning data sets with every option and three seeds, on one thread,
and scores 200 cells that no fit has seen by the importance-weighted bound with 100 samples. Time is processor time of
``fit_vae`` without the layer of denoised expression. Takes about six minutes on a free core.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import _sets
import numpy as np
from _sets import SETS, load
from _speed import save, set_threads
from scipy import stats

import vxpress as vx
from vxpress.metrics import active_units, mutual_information
from vxpress.tl import FitOptions

NAMES = ("paul15", "cite", "glioblastoma")
N_CELLS, N_GENES, N_SEEDS, N_SAMPLES = 1_000, 1_000, 3, 100
FITS: dict[str, dict[str, Any]] = {
    "elbo": {},
    "iwae, K = 5": {"objective": "iwae", "options": FitOptions(n_samples=5)},
    "dreg, K = 5": {"objective": "dreg", "options": FitOptions(n_samples=5)},
    "skip": {"options": FitOptions(decoder="skip")},
    "linear": {"options": FitOptions(decoder="linear")},
    "split": {"options": FitOptions(decoder="split")},
    "free bits, soft .1": {"free_bits": 0.1},
    "free bits, hard .1": {"free_bits": 0.1, "options": FitOptions(free_bits_form="hard")},
    "cyclical": {"options": FitOptions(kl_schedule="cyclical")},
    "encoder ahead, 2": {"options": FitOptions(encoder_steps=2)},
}


def measure(fit: Any, test: Any, batch: str | None, settings: dict[str, Any], seed: int) -> dict[str, float]:
    """Time one fit and score the test cells."""
    adata, query = fit.copy(), test.copy()
    start = time.process_time()
    vx.tl.fit_vae(adata, batch, mask_var=None, denoised=False, rng=seed, device="cpu", **settings)
    seconds = time.process_time() - start
    vx.tl.encode(query, model=adata, device="cpu")
    vx.tl.log_likelihood(query, model=adata, n_samples=N_SAMPLES)
    return {
        "iwae": float(query.obs["vae_log_likelihood"].mean()),
        "elbo": float(query.obs["vae_elbo"].mean()),
        "active": float(active_units(adata.obsm["X_vae"]).sum()),
        "information": mutual_information(adata.obsm["X_vae"], adata.obsm["X_vae_var"]),
        "seconds": seconds,
        "epochs": float(len(adata.uns["vae"]["history"]["lr"])),
    }


def main() -> None:
    """Run the benchmark, print the table and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=N_SEEDS)
    parser.add_argument("--sets", nargs="+", default=list(NAMES), choices=list(SETS))
    parser.add_argument("--fits", nargs="+", default=list(FITS), choices=list(FITS))
    arguments = parser.parse_args()
    set_threads(1)
    quiet()
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in arguments.sets:
        _sets.SETS[name] = replace(SETS[name], max_cells=N_CELLS, n_genes=N_GENES)
        fit, test = load(name)
        batch = "batch" if SETS[name].batch is not None else None
        # compile before timing
        measure(fit, test, batch, {"max_epochs": 2}, 0)
        for label in arguments.fits:
            runs = [measure(fit, test, batch, FITS[label], seed) for seed in range(arguments.seeds)]
            found.setdefault(name, {})[label] = runs
            print(name, label, row(runs, found[name].get("elbo")), flush=True)
    save("objectives", {"sets": found})
    print(
        "\n| fit | IWAE minus that of elbo, nats (95 % interval) | active of 10 | information | time, s |\n|---|---|---|---|---|"
    )
    for label in arguments.fits:
        runs = [run for name in arguments.sets for run in found[name][label]]
        base = [run for name in arguments.sets for run in found[name].get("elbo", found[name][label])]
        print(f"| {label} | {' | '.join(row(runs, base))} |")


def row(runs: list[dict[str, float]], base: list[dict[str, float]] | None) -> list[str]:
    """Format a row; the interval (Student's t) is over data sets and seeds, paired with the plain fits."""
    difference = np.array([a["iwae"] - b["iwae"] for a, b in zip(runs, base or runs, strict=True)])
    half = stats.t.ppf(0.975, len(difference) - 1) * stats.sem(difference) if len(difference) > 1 else np.nan
    means = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    return [
        f"{difference.mean():+.2f} ± {half:.2f}",
        f"{means['active']:.1f}",
        f"{means['information']:.2f}",
        f"{means['seconds']:.1f}",
    ]


def quiet() -> None:
    """Suppress warnings about verdicts between the rows."""
    import scanpy as sc

    sc.settings.verbosity = 0


if __name__ == "__main__":
    main()
