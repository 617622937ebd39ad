"""The importance-weighted bound: against an independent judge in double precision, and its speed beside scvi-tools.

    python benchmarks/log_likelihood.py --sets kang pbmc3k --threads 1

Each set is fitted once at the defaults.  On its test cells ``vx.tl.log_likelihood`` and the judge, which writes the law
out term by term in float64 and draws noise of its own, estimate the same bound with the same number of samples.  Then the
peer is fitted to the same cells for a few epochs (quality is not the question) and both score the test cells in turns.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
from _sets import SETS, load
from _speed import alternate, machine, save, set_threads, spread, timed
from fit_ours import judge_fit


def main() -> None:
    """Compare, print a table and write ``results/log_likelihood.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["kang", "pbmc3k"])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--cells", type=int, default=400, help="test cells that are scored")
    parser.add_argument("--likelihood", default="nb", choices=["nb", "zinb"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-epochs", type=int, default=3)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    out = {"samples": args.samples, "likelihood": args.likelihood, "machine": machine(), "sets": {}}
    for name in args.sets:
        out["sets"][name] = compare(name, args)
    print(f"written to {save('log_likelihood', out)}")


def compare(name: str, args: argparse.Namespace) -> dict[str, object]:
    """One set: our bound, the judge's, and the seconds of ours and the peer's."""
    import scvi

    import vxpress as vx

    set_threads(args.threads)
    adata, test = load(name)
    batch = "batch" if SETS[name].batch else None
    test = test[: args.cells].copy()
    vx.tl.fit_vae(adata, batch, likelihood=args.likelihood, denoised=False, device="cpu")
    vx.tl.log_likelihood(test, adata, n_samples=args.samples, device="cpu")
    ours = test.obs
    judged, _ = judge_fit(adata, test, n_samples=args.samples)
    difference = ours["vae_log_likelihood"].to_numpy() - judged.iwae_n
    found: dict[str, object] = {
        "cells": test.n_obs,
        "genes": test.n_vars,
        "ours": float(ours["vae_log_likelihood"].mean()),
        "judge": float(judged.iwae_n.mean()),
        "difference": float(difference.mean()),
        "difference_se": float(difference.std(ddof=1) / np.sqrt(len(difference))),
        "elbo_difference": float(ours["vae_elbo"].mean() - judged.elbo_n.mean()),
        "ess_median": float(ours["vae_log_likelihood_ess"].median()),
        "judge_ess_median": float(np.median(judged.ess_n)),
    }
    print(f"{name}: {test.n_obs} cells x {test.n_vars} genes, {args.samples} samples, {args.likelihood}")
    print(
        f"  bound {found['ours']:.3f}, judge {found['judge']:.3f}, difference {found['difference']:+.4f} "
        f"+- {found['difference_se']:.4f}; ELBO {found['elbo_difference']:+.4f}; median ESS {found['ess_median']:.1f}, "
        f"judge's {found['judge_ess_median']:.1f}",
        flush=True,
    )
    theirs, scored = adata.copy(), test.copy()
    scvi.model.SCVI.setup_anndata(theirs, batch_key=batch)
    peer = scvi.model.SCVI(theirs, gene_likelihood=args.likelihood)
    peer.train(max_epochs=args.peer_epochs, accelerator="cpu", enable_progress_bar=False, logger=False)
    peer.to_device("cpu")
    set_threads(args.threads)
    n = args.samples
    calls = {
        "vxpress": lambda: vx.tl.log_likelihood(test, adata, n_samples=n, device="cpu"),
        "scvi-tools": lambda: peer.get_marginal_ll(scored, n_mc_samples=n),
        "scvi-tools, 10 a pass": lambda: peer.get_marginal_ll(scored, n_mc_samples=n, n_mc_samples_per_pass=10),
    }
    for call in calls.values():
        call()
    seconds = alternate({key: lambda call=call: timed(call) for key, call in calls.items()}, args.repeats)
    found["seconds"] = times = {key: spread(value) for key, value in seconds.items()}
    mine = times["vxpress"]["median"]
    for key, value in times.items():
        print(
            f"  {key:<24}{value['median']:>8.2f} s ({value['min']:.2f}-{value['max']:.2f}), x{value['median'] / mine:.1f}",
            flush=True,
        )
    return found


if __name__ == "__main__":
    main()
