"""Time what follows a training on a CPU, compared with scvi-tools.

    python benchmarks/after_training.py --repeats 3 --draws 5 --threads 2

Both models (NB) are trained for one epoch on the same simulated cells, because quality does not matter here. Then they take
turns: latent means of all cells; denoised expression of all genes; that of ``--few`` genes, as a DataFrame; and the
importance-weighted log likelihood of ``--scored`` cells. The numbers of posterior draws per cell are the same. The times
of vxpress are those of the public functions, with checks and writing. ``differential_expression.py speed`` times
differential expression. Diagnosis and the refit of dispersions, which scvi-tools does not have, are timed as shares of a
default fit of ``--fitted`` cells. Takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

from _speed import alternate, machine, save, set_threads, simulated, spread, timed


def parts_of_a_fit(n_cells: int, n_genes: int, threads: int, repeats: int) -> dict[str, object]:
    """Time a default fit, and the diagnosis and the refit of dispersions of the result; return their seconds."""
    import numpy as np
    import torch

    import vxpress as vx
    from vxpress._keys import DEFAULT_KEY
    from vxpress.bridge.fits.find_fit import find_fit
    from vxpress.bridge.fits.query import read_scored
    from vxpress.core.threads import OneThread
    from vxpress.core.training.dispersion import refit

    adata = simulated(n_cells, n_genes)
    set_threads(threads)
    whole = [timed(lambda: vx.tl.fit_vae(adata, "batch", device="cpu")) for _ in range(2)]
    fit = find_fit(adata, None, DEFAULT_KEY)
    cells = read_scored(adata, fit, None)
    rows = [torch.from_numpy(np.flatnonzero(adata.obs["vae_split"] == part)) for part in ("train", "validation")]

    def refitted() -> None:
        with OneThread():
            refit(fit.model, cells, *rows, seed=0)

    calls = {"diagnosis": lambda: vx.tl.diagnose(adata), "refit of dispersions": refitted}
    for call in calls.values():
        call()
    found = alternate({name: lambda call=call: timed(call) for name, call in calls.items()}, repeats)
    # the first fit may compile
    return {"whole fit": spread(whole[1:])} | {name: spread(values) for name, values in found.items()}


def main() -> None:
    """Time both packages, print a table and write ``results/after_training.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--few", type=int, default=50, help="number of genes of the denoised subset")
    parser.add_argument("--scored", type=int, default=20_000, help="number of cells whose log likelihood is computed")
    parser.add_argument("--samples", type=int, default=10, help="samples of each for the log likelihood")
    parser.add_argument("--fitted", type=int, default=10_000, help="number of cells of the fit whose parts are timed")
    parser.add_argument("--scvi-batch", type=int, default=None, help="minibatch size of scvi-tools (default: its own)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    import scvi

    import vxpress as vx

    adata = simulated(args.cells, args.genes)
    density = adata.X.nnz / (args.cells * args.genes)
    set_threads(args.threads)
    vx.tl.fit_vae(adata, "batch", max_epochs=1, denoised=False, device="cpu")
    theirs = adata.copy()
    scvi.model.SCVI.setup_anndata(theirs, batch_key="batch")
    model = scvi.model.SCVI(theirs, gene_likelihood="nb")
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False, logger=False)
    model.to_device("cpu")
    few = list(adata.var_names[: args.few])
    batch = {"batch_size": args.scvi_batch}

    def scvi_expression(genes: list[str] | None) -> object:
        # one batch to decode under, as for vxpress below; both average the same number of draws
        return model.get_normalized_expression(
            transform_batch=first,
            gene_list=genes,
            n_samples=args.draws,
            library_size=1e4,
            return_numpy=genes is None,
            **batch,
        )

    first = adata.obs["batch"].cat.categories[0]
    denoise = {"transform_batch": first, "n_draws": args.draws}
    questions: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "encode": (
            lambda: vx.tl.encode(adata, device="cpu"),
            lambda: model.get_latent_representation(**batch),
        ),
        "denoise, all genes": (lambda: vx.tl.denoise(adata, **denoise), lambda: scvi_expression(None)),
        f"denoise, {args.few} genes": (
            lambda: vx.tl.denoise(adata, genes=few, **denoise),
            lambda: scvi_expression(few),
        ),
    }
    scored = adata[: args.scored].copy()
    questions[f"log likelihood of {args.scored:,} cells, {args.samples} samples"] = (
        lambda: vx.tl.log_likelihood(scored, n_samples=args.samples, device="cpu"),
        lambda: model.get_marginal_ll(
            indices=range(args.scored), n_mc_samples=args.samples, return_mean=False, **batch
        ),
    )
    payload = {
        "cells": args.cells, "genes": args.genes, "density": density, "draws": args.draws, "repeats": args.repeats, "fitted": args.fitted,
        "scvi_batch": args.scvi_batch, "machine": machine(), "seconds": {},
    }  # fmt: skip
    print(
        f"{args.cells:,} cells x {args.genes:,} genes, {density:.1%} stored, {args.draws} draws, {args.threads} threads"
    )
    print(f"{'':<44}{'vxpress s':>12}{'range':>16}{'scvi-tools s':>14}{'range':>16}{'times':>8}")
    for name, (ours, peer) in questions.items():
        set_threads(args.threads)
        ours()
        found = alternate(
            {"vxpress": lambda call=ours: timed(call), "scvi-tools": lambda call=peer: timed(call)}, args.repeats
        )
        a, b = (spread(found[who]) for who in ("vxpress", "scvi-tools"))
        ratio = b["median"] / a["median"]
        payload["seconds"][name] = {"vxpress": a, "scvi-tools": b, "times": ratio}
        ranges = [f"{s['min']:.2f}-{s['max']:.2f}" for s in (a, b)]
        print(
            f"{name:<44}{a['median']:>12.2f}{ranges[0]:>16}{b['median']:>14.2f}{ranges[1]:>16}{ratio:>8.1f}", flush=True
        )
    payload["parts"] = parts_of_a_fit(args.fitted, args.genes, args.threads, args.repeats)
    for name, found in payload["parts"].items():
        print(f"{name:<44}{found['median']:>12.2f}  of a default fit of {args.fitted:,} cells")
    print(f"written to {save('after_training', payload)}")


if __name__ == "__main__":
    main()
