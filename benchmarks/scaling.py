"""Measure time and memory of a fit by number of cells, on a CPU with the counts in memory.

    python benchmarks/scaling.py --parts epochs memory whole --threads 2

``epochs``: seconds per epoch of training, including validation, at several numbers of cells, and the growth relative to
linear. ``memory``: the peak of a fit in a new process, above the memory of the process that holds the counts and has
fitted a few cells before, and the bytes of the counts. ``whole``: one fit at the defaults in a new process, wall time from the call
to its return, and its peak. Each with the held-out ELBO in nats per cell; see ``_speed.simulated`` for the meaning of held-out here.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from _speed import alternate, machine, save, set_threads, simulated, spread


def warm_up(args: argparse.Namespace) -> None:
    """Compile, or load compiled code, before timing; with few cells nothing would be compiled."""
    import vxpress as vx

    set_threads(args.threads)
    vx.tl.fit_vae(simulated(5_000, args.genes), "batch", max_epochs=1, denoised=False, device="cpu")


def held_out(adata: Any) -> float:
    """Return the validation ELBO of the last epoch."""
    return float(adata.uns["vae"]["history"]["elbo_validation"][-1])


def epochs(args: argparse.Namespace) -> dict[str, Any]:
    """Time an epoch at each size, with the sizes in turn."""
    import vxpress as vx
    from vxpress.bridge.fits import runner as carried_out

    train, seconds = carried_out.train, []

    def timed(*arguments: Any, **settings: Any) -> Any:
        start = time.perf_counter()
        outcome = train(*arguments, **settings)
        seconds.append((time.perf_counter() - start) / len(outcome.history["lr"]))
        return outcome

    elbo: dict[str, float] = {}

    def one(n: int) -> float:
        # the refit of the dispersions takes the same time for any number of cells
        options = vx.tl.FitOptions(refit_dispersion=False)
        vx.tl.fit_vae(sets[n], "batch", max_epochs=args.epochs, denoised=False, device="cpu", options=options)
        elbo[str(n)] = held_out(sets[n])
        return seconds[-1]

    sets = {n: simulated(n, args.genes) for n in args.cells}
    carried_out.train = timed
    try:
        found = alternate({str(n): lambda n=n: one(n) for n in args.cells}, args.repeats)
    finally:
        carried_out.train = train
    first = args.cells[0]
    base = spread(found[str(first)])["median"] / first
    out: dict[str, Any] = {}
    print(f"\n{'cells':>10}{'s/epoch':>10}{'range':>16}{'cells/s':>10}{'of linear':>11}{'ELBO':>10}")
    for n in args.cells:
        s = spread(found[str(n)])
        growth = s["median"] / n / base
        out[str(n)] = s | {"cells_per_second": n / s["median"], "times_linear": growth, "elbo_validation": elbo[str(n)]}
        span = f"{s['min']:.2f}-{s['max']:.2f}"
        print(f"{n:>10,}{s['median']:>10.2f}{span:>16}{n / s['median']:>10,.0f}{growth:>11.2f}{elbo[str(n)]:>10.1f}")
    return {"epochs_per_fit": args.epochs, "sizes": out}


def _resident() -> int:
    """Return the resident memory of this process in bytes, or its peak if the system does not report it."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return _peak()


def _peak() -> int:
    """Return the largest resident memory so far, or since :func:`_forget_peak`, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _forget_peak() -> None:
    """Reset the peak, if the system supports it (Linux)."""
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5")


def child(args: argparse.Namespace) -> None:
    """Run one fit and print its time and peak memory as JSON on the last line."""
    import vxpress as vx

    warm_up(args)
    adata = simulated(args.memory_cells, args.genes)
    gc.collect()
    _forget_peak()
    before, built = _resident(), _peak()
    start = time.perf_counter()
    vx.tl.fit_vae(adata, "batch", max_epochs=args.epochs or None, denoised=False, device="cpu")
    seconds, peak, stored = time.perf_counter() - start, _peak(), adata.uns["vae"]
    print(json.dumps({
        "cells": args.memory_cells, "counts_bytes": sum(p.nbytes for p in (adata.X.data, adata.X.indices, adata.X.indptr)),
        "above_baseline_bytes": peak - before, "is_upper_bound": peak <= built, "baseline_bytes": before,
        "seconds": seconds, "epochs": len(stored["history"]["lr"]), "steps": int(stored["params"]["n_steps"]),
        "elbo_validation": held_out(adata), "verdict": str(stored["diagnostics"]["verdict"]),
    }))  # fmt: skip


def in_new_process(args: argparse.Namespace, n_cells: int, n_epochs: int) -> dict[str, Any]:
    """Run a fit in a new process, at the default number of epochs if ``n_epochs`` is 0; return what it found."""
    command = [
        sys.executable, __file__, "--child", "--memory-cells", str(n_cells), "--genes", str(args.genes),
        "--threads", str(args.threads), "--epochs", str(n_epochs),
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the peak memory of new processes."""
    runs = [in_new_process(args, args.memory_cells, args.epochs) for _ in range(args.repeats)]
    above = spread(run["above_baseline_bytes"] for run in runs)
    counts = runs[0]["counts_bytes"]
    bound = " (at most: building the counts took more)" if any(run["is_upper_bound"] for run in runs) else ""
    print(
        f"\nmemory, {args.memory_cells:,} cells: {above['median'] / 1e6:,.0f} MB above the process with its counts"
        f" ({above['min'] / 1e6:,.0f}-{above['max'] / 1e6:,.0f}); counts {counts / 1e6:,.0f} MB,"
        f" {above['median'] / counts:.2f} times{bound}; ELBO {runs[0]['elbo_validation']:.1f}"
    )
    return {"above_baseline_bytes": above, "times_counts": above["median"] / counts, "runs": runs}


def whole(args: argparse.Namespace) -> dict[str, Any]:
    """Run one fit at the defaults, in a new process."""
    found = in_new_process(args, args.whole_cells, 0)
    print(
        f"\nwhole, {found['cells']:,} cells at the defaults: {found['seconds']:,.0f} s, {found['epochs']} epochs, "
        f"{found['steps']:,} steps, ELBO {found['elbo_validation']:.1f}; {found['above_baseline_bytes'] / 1e6:,.0f} MB above the "
        f"process with its counts ({found['counts_bytes'] / 1e6:,.0f} MB); {found['verdict']}"
    )
    return found


PARTS = {"epochs": epochs, "memory": memory, "whole": whole}


def main() -> None:
    """Run the requested parts, print their tables and write ``results/scaling.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--cells", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--memory-cells", type=int, default=100_000)
    parser.add_argument("--whole-cells", type=int, default=1_000_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=2, help="epochs per timed fit, except a whole one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.child:
        child(args)
        return
    warm_up(args)
    print(f"{args.genes:,} genes, {args.threads} threads")
    for part in args.parts:
        set_threads(args.threads)
        path = save("scaling", {part: PARTS[part](args) | {"genes": args.genes, "machine": machine()}})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
