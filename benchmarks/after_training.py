"""Time encoding and denoising on a CPU, compared with scvi-tools.

    python benchmarks/after_training.py --cells 100000 --genes 2000 --threads 2

Both models are trained for one epoch on the same simulated cells, because quality does not matter here. Then they take
turns: latent means of all cells; denoised expression of all genes; and of ``--few`` genes, as a DataFrame. The number of
posterior draws per cell is the same. The times of vxpress are those of the public functions, with checks and writing.
``differential_expression.py speed`` times differential expression.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

from _speed import alternate, machine, save, set_threads, simulated, spread, timed


def main() -> None:
    """Time both packages, print a table and write ``results/after_training.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--few", type=int, default=50, help="number of genes of the denoised subset")
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
    model = scvi.model.SCVI(theirs)
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
    payload = {
        "cells": args.cells, "genes": args.genes, "density": density, "draws": args.draws, "repeats": args.repeats,
        "scvi_batch": args.scvi_batch, "machine": machine(), "seconds": {},
    }  # fmt: skip
    print(
        f"{args.cells:,} cells x {args.genes:,} genes, {density:.1%} stored, {args.draws} draws, {args.threads} threads"
    )
    print(f"{'':<22}{'vxpress s':>12}{'range':>16}{'scvi-tools s':>14}{'range':>16}{'times':>8}")
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
            f"{name:<22}{a['median']:>12.2f}{ranges[0]:>16}{b['median']:>14.2f}{ranges[1]:>16}{ratio:>8.1f}", flush=True
        )
    print(f"written to {save('after_training', payload)}")


if __name__ == "__main__":
    main()
