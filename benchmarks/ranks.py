"""What does a fit in several processes cost and gain? Two processes of one thread, compared with one of two threads.

    python benchmarks/ranks.py --parts message throughput quality steps delay

Each run is a new process or two, started by torchrun, in turn. ``message``: its bytes. ``throughput``: cells per second of the epochs after the
first, of default fits to simulated cells. ``quality``: the held-out ELBO of default fits, for several seeds and the same
held-out cells. ``steps``: the parts of a step of two processes, by number of genes: computation, the exchange of
messages with its wait for the slower process, and the exchange alone of processes that start it together.
``delay``: the same with every exchange delayed, as by a slower network, and what the model of the estimate in
``docs/scaling.md`` predicts: a step takes its computation, the exchange, and the delay.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

from _speed import save, set_threads, simulated, spread

# processes and threads of each
WAYS = {"1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}
MARK = "RESULT "


def launch(work: str, n: int, threads: int, **arguments: Any) -> dict[str, Any]:
    """Run ``work`` in ``n`` processes and return what the first one reports."""
    environment = os.environ | {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "NUMBA", "VXPRESS")}
    command = [sys.executable]
    if n > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    command += [__file__, "--work", work, "--arguments", json.dumps(arguments | {"threads": threads})]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        raise RuntimeError(done.stdout + done.stderr)
    return json.loads(lines[-1].removeprefix(MARK))


# what a process does


class Clock:
    """Times of the epochs, the steps and the exchanges of all trainings of this process; ``delay`` is added to an exchange."""

    def __init__(self, delay: float = 0.0) -> None:
        from vxpress.core.parallel import GradientSum
        from vxpress.core.training import Training

        self.epochs: list[float] = []
        self.steps: list[float] = []
        self.exchanges: list[float] = []
        self.n_bytes = 0
        self._around(Training, "epoch", self.epochs)
        self._around(Training, "step", self.steps)
        exchange = GradientSum.__call__

        def timed(whole: Any, loss: Any, n_cells: int) -> Any:
            self.n_bytes = whole.message.numel() * whole.message.element_size()
            start = time.perf_counter()
            out = exchange(whole, loss, n_cells)
            if delay:
                time.sleep(delay)
            self.exchanges.append(time.perf_counter() - start)
            return out

        GradientSum.__call__ = timed

    @staticmethod
    def _around(owner: type, name: str, times: list[float]) -> None:
        method = getattr(owner, name)

        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            out = method(*args)
            times.append(time.perf_counter() - start)
            return out

        setattr(owner, name, timed)


def work_throughput(n_cells: int, n_genes: int, epochs: int, threads: int, batch_size: int) -> dict[str, Any]:
    """Fit simulated cells; return cells per second of the epochs after the first."""
    import vxpress as vx

    set_threads(threads)
    clock, adata = Clock(), simulated(n_cells, n_genes)
    vx.tl.fit_vae(
        adata, "batch", max_epochs=epochs, early_stopping=False, batch_size=batch_size, denoised=False, progress=False
    )
    n_train = int((adata.obs["vae_split"] == "train").sum())
    rates = [n_train / seconds for seconds in clock.epochs[1:]]
    return {"cells/s": rates, "elbo": float(adata.uns["vae"]["history"]["elbo_validation"][-1])}


def work_quality(name: str, seeds: list[int], threads: int) -> dict[str, Any]:
    """Fit a data set at the defaults with each seed; return the held-out ELBO of the kept epoch and the time."""
    from _sets import SETS, load

    import vxpress as vx

    set_threads(threads)
    fit, _ = load(name)
    batch = "batch" if SETS[name].batch else None
    out: dict[str, list[float]] = {"elbo": [], "seconds": []}
    for seed in seeds:
        adata = fit.copy()
        start = time.perf_counter()
        vx.tl.fit_vae(adata, batch, rng=seed, mask_var=None, denoised=False, progress=False)
        out["seconds"].append(time.perf_counter() - start)
        params, history = adata.uns["vae"]["params"], adata.uns["vae"]["history"]
        out["elbo"].append(float(history["elbo_validation"][int(params["best_epoch"])]))
    return out


def work_steps(n_cells: int, n_genes: int, batch_size: int, epochs: int, threads: int, delay: float) -> dict[str, Any]:
    """Fit simulated cells; return medians of the parts of a step, in milliseconds, and the bytes of a message."""
    import torch

    import vxpress as vx
    from vxpress.core.parallel import world_from_environment

    set_threads(threads)
    clock, adata = Clock(delay), simulated(n_cells, n_genes)
    vx.tl.fit_vae(
        adata, "batch", max_epochs=epochs, early_stopping=False, batch_size=batch_size, denoised=False, progress=False
    )
    # the first epoch loads compiled code
    n_warm = len(clock.steps) // epochs
    steps, exchanges = (values[n_warm:] for values in (clock.steps, clock.exchanges))
    world = world_from_environment()
    exchange = world.exchange()
    message = exchange.zeros(clock.n_bytes // 4, torch.float32, torch.device("cpu"))
    alone = []
    for _ in range(60):
        world.barrier()
        start = time.perf_counter()
        exchange.sum_(message)
        alone.append(time.perf_counter() - start)
    return {
        "step": 1e3 * median(steps),
        "computation": 1e3 * median(step - exchange for step, exchange in zip(steps, exchanges, strict=True)),
        "exchange": 1e3 * median(exchanges),
        "exchange alone": 1e3 * median(alone[10:]),
        "bytes": clock.n_bytes,
        "cells/s": batch_size / median(steps),
    }


# parts


def throughput(args: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(args.repeats):
        for way, (n, threads) in WAYS.items():
            settings = {
                "n_cells": args.cells,
                "n_genes": args.genes,
                "epochs": args.epochs,
                "batch_size": args.batch_size,
            }
            runs[way].append(launch("throughput", n, threads, **settings))
            print(way, runs[way][-1], flush=True)
    rates = {way: [median(run["cells/s"]) for run in found] for way, found in runs.items()}
    one, two = (rates[way] for way in WAYS)
    return {
        "cells": args.cells,
        "genes": args.genes,
        "batch_size": args.batch_size,
        "rates": {way: spread(values) for way, values in rates.items()},
        "ratio": spread([b / a for a, b in zip(one, two, strict=True)]),
        "elbo": {way: [run["elbo"] for run in found] for way, found in runs.items()},
    }


def quality(args: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for name in args.sets:
        for way, (n, threads) in WAYS.items():
            found = launch("quality", n, threads, name=name, seeds=args.seeds)
            rows.append({"set": name, "way": way, **found})
            print(rows[-1], flush=True)
    return {"seeds": args.seeds, "rows": rows}


def steps(args: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for n_genes in args.step_genes:
        settings = {"n_cells": args.step_cells, "n_genes": n_genes, "batch_size": args.batch_size, "epochs": 3}
        rows.append({"genes": n_genes, **launch("steps", 2, 1, **settings, delay=0.0)})
        print(rows[-1], flush=True)
    return {"batch_size": args.batch_size, "rows": rows}


def delay(args: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for milliseconds in args.delays:
        settings = {"n_cells": args.step_cells, "n_genes": args.genes, "batch_size": args.batch_size, "epochs": 3}
        found = launch("steps", 2, 1, **settings, delay=milliseconds / 1e3)
        rows.append({"delay": milliseconds, **found})
        print(rows[-1], flush=True)
    plain = next(row for row in rows if row["delay"] == 0)
    for row in rows:
        row["predicted step"] = plain["step"] + row["delay"]
    return {"batch_size": args.batch_size, "genes": args.genes, "rows": rows}


def message(args: argparse.Namespace) -> dict[str, Any]:
    settings = {"n_cells": 2_000, "n_genes": args.genes, "batch_size": args.batch_size, "epochs": 2}
    return {"genes": args.genes, "bytes": launch("steps", 2, 1, **settings, delay=0.0)["bytes"]}


PARTS = {"message": message, "throughput": throughput, "quality": quality, "steps": steps, "delay": delay}
WORK = {"throughput": work_throughput, "quality": work_quality, "steps": work_steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sets", nargs="+", default=["pbmc3k", "kang", "pbmc_3studies"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--step-cells", type=int, default=10_000)
    parser.add_argument("--step-genes", nargs="+", type=int, default=[500, 1_000, 2_000, 4_000, 8_000])
    parser.add_argument("--delays", nargs="+", type=float, default=[0, 1, 2, 5, 10, 20])
    parser.add_argument("--work", choices=list(WORK))
    parser.add_argument("--arguments", default="{}")
    args = parser.parse_args()
    if args.work:
        found = WORK[args.work](**json.loads(args.arguments))
        if os.environ.get("RANK", "0") == "0":
            print(MARK + json.dumps(found), flush=True)
        return
    for name in args.parts:
        part = PARTS[name](args)
        if not os.environ.get("DRY"):
            save("ranks", {name: part})


if __name__ == "__main__":
    main()
