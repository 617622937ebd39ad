"""Compare the importance-weighted bound with an independent float64 implementation, and its speed with scvi-tools.

    python benchmarks/log_likelihood.py --sets kang pbmc3k --threads 1

Each data set is fitted once at the defaults. On its test cells, ``vx.tl.log_likelihood`` and ``_judge.py`` estimate the same
bound with the same number of samples. ``_judge.py`` computes the distribution term by term in float64 and draws its own
noise. Then scvi-tools is fitted to the same cells for a few epochs, because quality does not matter here, and both packages
score the test cells in turn.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import torch
from _judge import zinb_log_prob
from _sets import SETS, load
from _speed import alternate, machine, save, set_threads, spread, timed
from fit_ours import judge_fit

from vxpress.bridge.fits.find_fit import find_fit
from vxpress.bridge.fits.query import read_query
from vxpress.core.data import walk
from vxpress.core.inference.importance import CellProposal, importance_bound


class Judged(CellProposal):
    """Score the same samples with the likelihood of ``_judge.py``; the remaining difference is rounding."""

    def weigh(self, eps_knd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k, n = eps_knd.shape[:2]
        z_knd, batch = self.q.at(eps_knd)["z"], self.batch.repeated(k)
        distribution = self.model.likelihood({"z": z_knd.flatten(0, 1).float()}, batch.covariates, batch.log_library_n1)
        base = getattr(distribution, "base", distribution)
        gate = distribution.gate_logits.double() if base is not distribution else None
        # of the logarithms, whose exponentials are computed in double precision
        mean, theta = base.log_mean.double().exp(), base.log_theta.double().exp()
        value = zinb_log_prob(batch.x_ng.double(), mean, theta, gate).sum(-1)
        return value.view(k, n), super().weigh(eps_knd)[1]


def main() -> None:
    """Compare, print a table and write ``results/log_likelihood.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["kang", "pbmc3k"])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--cells", type=int, default=400, help="number of test cells to score")
    parser.add_argument("--likelihood", default="nb", choices=["nb", "zinb"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scvi-epochs", type=int, default=3)
    parser.add_argument("--no-scvi", action="store_true", help="compare only with _judge.py")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    out = {"samples": args.samples, "likelihood": args.likelihood, "machine": machine(), "sets": {}}
    for name in args.sets:
        out["sets"][name] = compare(name, args)
    print(f"written to {save('log_likelihood' + ('_judge' if args.no_scvi else ''), out)}")


def compare(name: str, args: argparse.Namespace) -> dict[str, object]:
    """Compute both bounds for one data set, and the seconds of vxpress and scvi-tools."""
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
    fit = find_fit(adata, None, "vae")
    few = read_query(test[:100].copy(), fit, None).cells
    pair = [
        importance_bound(
            lambda size, kind=kind: [kind(fit.model, batch) for _, batch in walk(few, size=size)],
            20,
            rows_per_pass=400,
            seed=0,
        ).log_likelihood_n
        for kind in (CellProposal, Judged)
    ]
    found["rounding"] = float(np.abs(pair[0] - pair[1]).max())
    print(f"  same samples in double precision: at most {found['rounding']:.1e} nats a cell")
    print(
        f"  bound {found['ours']:.3f}, judge {found['judge']:.3f}, difference {found['difference']:+.4f} "
        f"+- {found['difference_se']:.4f}; ELBO {found['elbo_difference']:+.4f}; median ESS {found['ess_median']:.1f}, "
        f"judge's {found['judge_ess_median']:.1f}",
        flush=True,
    )
    if args.no_scvi:
        return found

    import scvi

    theirs, scored = adata.copy(), test.copy()
    scvi.model.SCVI.setup_anndata(theirs, batch_key=batch)
    peer = scvi.model.SCVI(theirs, gene_likelihood=args.likelihood)
    peer.train(max_epochs=args.scvi_epochs, accelerator="cpu", enable_progress_bar=False, logger=False)
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
