"""Compare the time of a whole call of ``vx.tl.fit_vae`` at its defaults with that of scanpy's PCA of the same cells.

    python benchmarks/whole_call.py

The question is what a user waits for who replaces ``sc.pp.normalize_total``, ``sc.pp.log1p`` and ``sc.pp.pca`` in a script. The
cells are those of pbmc3k, with the 2,000 most variable genes alone, and with all genes of which these are modelled and the others
read out, and 10,000 simulated cells. Both run in turn in the same process, after one call of each. The stages of a
call of ``fit_vae`` are timed in further calls.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import anndata as ad
import numpy as np
from _sets import DATA
from _speed import alternate, machine, save, set_threads, simulated, spread, timed
from anndata import AnnData

PCA, FIT = "scanpy's normalize_total, log1p and pca", "vx.tl.fit_vae at its defaults"
# the functions of each stage; what they take is their own time and that of what they call
STAGES = {
    "start at principal components": "vxpress.bridge.fits.runner.start_at_components",
    "steps of the training": "vxpress.core.training.training.Training.step",
    "validation after each epoch": "vxpress.core.training.training.Training.validate",
    "refit of dispersions": "vxpress.core.training.training.refit",
    "diagnosis": "vxpress.bridge.fitting.diagnose_trained",
    "genes outside the model": "vxpress.bridge.fits.runner.Runner.read_out",
    "denoised expression and other results": "vxpress.bridge.fitting._results",
}


def pbmc3k(*, all_genes: bool) -> AnnData:
    """Read the cells, and choose 2,000 genes."""
    import scanpy as sc

    import vxpress as vx

    read = ad.read_h5ad(DATA / "pbmc3k_raw.h5ad")
    sc.pp.filter_genes(read, min_cells=1)
    adata = AnnData(read.X.astype(np.float32), obs=read.obs[[]], var=read.var[[]])
    vx.pp.highly_variable_genes(adata)
    return adata if all_genes else adata[:, adata.var["highly_variable"]].copy()


def calls(adata: AnnData) -> dict[str, Callable[[], None]]:
    """Return what is compared."""
    import scanpy as sc

    import vxpress as vx

    def pca() -> None:
        logged = adata.copy()
        sc.pp.normalize_total(logged)
        sc.pp.log1p(logged)
        sc.pp.pca(logged)

    return {PCA: pca, FIT: lambda: vx.tl.fit_vae(adata.copy(), device="cpu") and None}


def stages(call: Callable[[], None], repeats: int) -> dict[str, Any]:
    """Time the stages of a call; the rest is what the stages do not take."""
    found: dict[str, list[float]] = {name: [] for name in (*STAGES, "rest")}
    for _ in range(repeats):
        seconds = dict.fromkeys(STAGES, 0.0)
        with ExitStack() as patches:
            for name, path in STAGES.items():
                patches.enter_context(patch(path, _timing(_resolve(path), name, seconds)))
            whole = timed(call)
        for name, value in (seconds | {"rest": whole - sum(seconds.values())}).items():
            found[name].append(value)
    return {name: spread(values) for name, values in found.items()}


def _resolve(path: str) -> Callable[..., Any]:
    from pkgutil import resolve_name

    return resolve_name(path)


def _timing(function: Callable[..., Any], name: str, seconds: dict[str, float]) -> Callable[..., Any]:
    def timing(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - start

    return timing


def main() -> None:
    """Print both tables and write ``results/whole_call.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    sets = {
        "pbmc3k, its 2,000 most variable genes": lambda: pbmc3k(all_genes=False),
        "pbmc3k, all genes": lambda: pbmc3k(all_genes=True),
        "10,000 simulated cells x 2,000 genes": lambda: simulated(10_000, 2_000, n_batches=1),
    }
    rows, shares = [], {}
    for name, make in sets.items():
        adata = make()
        run = calls(adata)
        for call in run.values():
            call()
        set_threads(args.threads)
        times = alternate({which: lambda call=call: timed(call) for which, call in run.items()}, args.repeats)
        ratio = [fit / pca for fit, pca in zip(times[FIT], times[PCA], strict=True)]
        row = {"set": name, "genes": adata.n_vars, **{which: spread(values) for which, values in times.items()}}
        rows.append(row | {"ratio": spread(ratio)})
        shares[name] = stages(run[FIT], args.repeats)
        print(
            f"{name}: {row[FIT]['median']:.2f} s, PCA {row[PCA]['median']:.2f} s, {spread(ratio)['median']:.1f} times"
        )
        for stage, found in shares[name].items():
            print(f"    {stage:<40}{found['median']:>7.3f} s", flush=True)
    print(f"written to {save('whole_call', {'rows': rows, 'stages': shares, 'machine': machine()})}")


if __name__ == "__main__":
    main()
