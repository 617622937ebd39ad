"""Time a fit next to other busy programs: one thread, two, and the number that follows the load; both orders of import.

    python benchmarks/busy_machine.py

Every setting has a process of its own, which waits while those of the others compute. They take turns, in several rounds for
each group of other programs. With equal shares, a thread of k next to b threads of other programs gets 2 / (k + b) of a
processor, at most one; the time at fair shares is the quiet time divided by that. Written to ``results/busy_machine.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _speed import machine, save

CORES, EPOCHS, GENES = 2, 15, 1000
# processors that other programs use before the benchmark, above which the machine is not quiet to begin with
QUIET = 0.2
WORKER = """
import json, os, sys, time
sys.path.insert(0, {folder!r})
import {first}
import torch, vxpress as vx
import numpy as np, scanpy as sc
from _sets import load
from vxpress.core.kernels import helpers
sc.settings.verbosity = 0
torch.set_num_threads({cores})
adata = load("kang")[0][:, :{genes}].copy()
used, run = [], helpers.run

def counting(n_threads, *args):
    used.append(n_threads)
    run(n_threads, *args)

helpers.run = counting

def fit(epochs):
    used.clear()
    wall, own = time.perf_counter(), time.process_time()
    vx.tl.fit_vae(
        adata, "batch", max_epochs=epochs, early_stopping=False, denoised=False, device="cpu", n_threads={n_threads},
        progress=False,
    )
    return [time.perf_counter() - wall, time.process_time() - own, float(np.mean(used))]

import warnings
warnings.simplefilter("ignore")
fit(1)
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(fit(int(line))), flush=True)
"""
# of the other programs: a loop that never waits, and matrix products in two threads, which wait for one another
LOOP = "while True: pass"
PRODUCTS = "import numpy as np\nx = np.ones((1200, 1200))\nwhile True: x @ x"
# other programs: code, how many, and the number of their threads
OTHERS: dict[str, tuple[str, int, int]] = {
    "none": (LOOP, 0, 0),
    "two loops": (LOOP, 2, 2),
    "three loops": (LOOP, 3, 3),
    "matrix products in two threads": (PRODUCTS, 1, 2),
}
# number of threads, and what is imported first
SETTINGS: dict[str, tuple[int | None, str]] = {
    "one thread": (1, "vxpress"),
    "two threads": (2, "vxpress"),
    "two threads, torch first": (2, "torch"),
    "automatic": (None, "vxpress"),
    "automatic, torch first": (None, "torch"),
}


class Worker:
    """A process that fits when it is asked to."""

    def __init__(self, n_threads: int | None, first: str) -> None:
        code = WORKER.format(
            folder=str(Path(__file__).parent), first=first, n_threads=n_threads, cores=CORES, genes=GENES
        )
        environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
        # an environment like that of a user, who limits nothing
        environment = {k: v for k, v in environment.items() if not k.endswith("_NUM_THREADS")}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.read()

    def read(self) -> str:
        """Return the next line that the process prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            msg = f"the process ended with status {self.process.wait()}"
            raise RuntimeError(msg)
        return line

    def fit(self, epochs: int) -> dict[str, float]:
        """Return wall time and processor time of a fit, in seconds, and the mean number of threads."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{epochs}\n")
        self.process.stdin.flush()
        return dict(zip(("wall", "own", "threads"), json.loads(self.read()), strict=True))


@contextmanager
def busy(code: str, n: int) -> Iterator[None]:
    """Run other programs within the block."""
    environment = os.environ | {f"{name}_NUM_THREADS": str(CORES) for name in ("OMP", "OPENBLAS", "MKL")}
    programs = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(n)]
    try:
        time.sleep(1.0 if n else 0.0)
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def in_use(seconds: float = 3.0) -> float:
    """Return how many processors are in use now."""

    def busy_time() -> float:
        times = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
        return (sum(times) - sum(times[3:5])) / os.sysconf("SC_CLK_TCK")

    start = busy_time()
    time.sleep(seconds)
    return (busy_time() - start) / seconds


def summary(found: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Add the medians, and compare with the quiet time with the number of threads that a fit used, and with fair shares."""
    quiet = {1: median(found["none"]["one thread"], "wall"), 2: median(found["none"]["two threads"], "wall")}
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for others, (_, _, n_others) in OTHERS.items():
        if others not in found:
            continue
        one = median(found[others]["one thread"], "wall")
        out[others] = {}
        for name, runs in found[others].items():
            wall, threads = median(runs, "wall"), max(1, min(CORES, round(median(runs, "threads"))))
            share = min(1.0, CORES / (threads + n_others))
            out[others][name] = {
                "wall": wall,
                "range": [min(run["wall"] for run in runs), max(run["wall"] for run in runs)],
                "own": median(runs, "own"),
                "threads": median(runs, "threads"),
                "over_quiet": wall / quiet[threads],
                "over_fair": wall * share / quiet[threads],
                "over_one_thread": wall / one,
            }
    return out


def median(runs: list[dict[str, float]], name: str) -> float:
    """Return the median of one of the numbers of several fits."""
    return statistics.median(run[name] for run in runs)


def main() -> None:
    """Time all settings next to all programs, print a table and write ``results/busy_machine.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--others", nargs="+", choices=OTHERS, default=list(OTHERS), help="groups of other programs")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    args = parser.parse_args()
    groups = list(dict.fromkeys(("none", *args.others)))
    before = in_use()
    if before > QUIET:
        print(f"other programs run already and use {before:.1f} processors")
    workers = {name: Worker(*setting) for name, setting in SETTINGS.items()}
    found: dict[str, dict[str, list[dict[str, float]]]] = {group: {name: [] for name in workers} for group in groups}
    for _ in range(args.repeats):
        for group in groups:
            code, n, _ = OTHERS[group]
            with busy(code, n):
                for name, worker in workers.items():
                    found[group][name].append(worker.fit(args.epochs))
    for worker in workers.values():
        worker.process.kill()
    medians = summary(found)
    for group, rows in medians.items():
        print(f"next to: {group}")
        for name, row in rows.items():
            low, high = row["range"]
            print(
                f"  {name:<26} {row['wall']:5.2f} s ({low:.2f}-{high:.2f}), own {row['own']:5.2f} s, {row['threads']:.2f} threads, "
                f"{row['over_quiet']:.2f} x quiet, {row['over_fair']:.2f} x fair, {row['over_one_thread']:.2f} x one thread"
            )
    if not args.dry:
        print(
            f"written to {save('busy_machine', {'epochs': args.epochs, 'machine': machine(), 'before': before, 'runs': found, 'medians': medians})}"
        )


if __name__ == "__main__":
    main()
