"""How long does a prediction take with each method, and how much longer does scGen take?

    python benchmarks/perturbation_cost.py           # 10,000 control and 10,000 treated cells, every method
    python benchmarks/perturbation_cost.py --peer    # one cell type of kang_ifnb held out, next to scGen of pertpy, in turn

Simulated cells, 2,000 genes, four groups. A prediction of all 10,000 control cells is timed with its check on left-out groups, after a
fit, each method in a process of its own. The second command times fit and prediction of both packages in one process, without the first
compilation (a prediction of few cells comes before), and needs pertpy with JAX (Python 3.12 or later).
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import anndata as ad
from _speed import machine, save, set_threads

import vxpress as vx

NAME = "perturbation_cost"
LATENT = ("shift", "bures", "sinkhorn", "icnn", "flow_matching")
FLOORS = ("control", "mean_shift", "ridge")
N_CELLS, N_GENES, N_EPOCHS = 20_000, 2_000, 4
SCENARIO = {"control": "control", "target": "treated", "groupby": "group"}
# name of the fit that a method needs
FIT_OF = dict.fromkeys((*LATENT, "counterfactual", *FLOORS), "optional") | {"additive": "perturbed"}


def prepare(path: Path) -> None:
    """Simulate cells, fit both kinds of models for a few epochs, and write the file."""
    adata = vx.datasets.simulate_perturbation(N_CELLS, N_GENES, n_groups=4, library_mean=2_000)
    settings = {"max_epochs": N_EPOCHS, "denoised": False, "progress": False}
    vx.tl.fit_vae(adata, optional_covariate_keys=["condition"], key_added="optional", **settings)
    vx.tl.fit_vae(adata, perturbation_key="condition", control="control", key_added="perturbed", **settings)
    adata.write_h5ad(path)


def cost(path: Path, method: str, threads: int, results: multiprocessing.Queue) -> None:
    """Measure the seconds of a prediction."""
    set_threads(threads)
    adata = ad.read_h5ad(path)
    few = adata[::40].copy()
    options = SCENARIO | {"method": method, "key": FIT_OF[method], "progress": False}
    vx.tl.predict_perturbation(few, "condition", **options)
    start = time.perf_counter()
    predicted = vx.tl.predict_perturbation(adata, "condition", **options)
    results.put({"seconds": time.perf_counter() - start, "cells": predicted.n_obs})


def every_method(threads: int) -> dict[str, Any]:
    """Time every method in a process of its own."""
    found: dict[str, Any] = {}
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        prepare(path)
        for method in FIT_OF:
            results = spawn.Queue()
            process = spawn.Process(target=cost, args=(path, method, threads, results))
            process.start()
            found[method] = results.get()
            process.join()
            print(method, found[method], flush=True)
    return {"threads": threads, "genes": N_GENES, "methods": found, "machine": machine()}


def next_to_scgen(threads: int) -> dict[str, Any]:
    """Time fit and prediction of one held-out cell type with both packages."""
    from _perturbation import RESPONSES, fold
    from perturbation_peers import by_scgen

    cells = fold("kang", "B cells")
    which, seen = RESPONSES["kang"], cells.seen.copy()

    def ours(max_epochs: int | None) -> float:
        start = time.perf_counter()
        vx.tl.fit_vae(seen, "batch", denoised=False, progress=False, max_epochs=max_epochs, key_added="timed")
        vx.tl.predict_perturbation(
            seen,
            "condition",
            control=which.control,
            target=which.target,
            groupby="group",
            groups=cells.held_out,
            key="timed",
            progress=False,
        )
        return time.perf_counter() - start

    ours(1)
    found = {"vxpress": ours(None)}
    print(found, flush=True)
    start = time.perf_counter()
    by_scgen(cells, 0)
    found["scGen"] = time.perf_counter() - start
    print(found, flush=True)
    return {"threads": threads, "cells": seen.n_obs, "genes": seen.n_vars, "seconds": found, "machine": machine()}


def main() -> None:
    """Measure one of the two and store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    set_threads(args.threads)
    save(NAME, {"scgen": next_to_scgen(args.threads)} if args.peer else {"methods": every_method(args.threads)})


if __name__ == "__main__":
    main()
