"""Time a training step, also of two versions of the code in turn.

    python benchmarks/step_time.py
    python benchmarks/step_time.py --pair ../before/src ../after/src

A step is timed through ``vx.tl.fit_vae``: the difference between a long and a short fit, divided by the difference of
their steps, so that reading the data and checking the fit cancel out. Counts are simulated, 2,000 genes, held in
memory. Both the elapsed time and the time of the processor are reported; the second depends less on what else the
machine does. ``--pair`` starts one process after the other with either folder first on the path, and prints the ratio
of the second to the first: the geometric mean over rounds, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from _speed import set_threads, simulated

# cells of a minibatch, and arguments of the fit
SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "nb 128": (128, {}),
    "nb 512": (512, {}),
    "layer norm 128": (128, {"options": {"norm": "layer"}}),
    "layer norm 512": (512, {"options": {"norm": "layer"}}),
    "zinb 512": (512, {"likelihood": "zinb"}),
    "latent library 512": (512, {"library": "latent"}),
    "vamp 512": (512, {"prior": "vamp"}),
}
N_GENES, N_BATCHES_OF_CELLS = 2_000, 10
CLOCKS = {"elapsed": time.perf_counter, "processor": time.process_time}


def measure(names: list[str], steps: int, repeats: int, threads: int) -> dict[str, dict[str, list[float]]]:
    """Return the milliseconds per step of every repeat, by setting and clock."""
    import scanpy as sc

    import vxpress as vx

    set_threads(threads)
    sc.settings.verbosity = 0
    warnings.filterwarnings("ignore")
    out: dict[str, dict[str, list[float]]] = {}
    for name in names:
        size, arguments = SETTINGS[name]
        options = vx.tl.FitOptions(refit_dispersion=False, **arguments.get("options", {}))
        adata = simulated(size * N_BATCHES_OF_CELLS, N_GENES)

        def fit(
            epochs: int, adata: Any = adata, size: int = size, given: Any = arguments | {"options": options}
        ) -> dict[str, float]:
            start = {clock: now() for clock, now in CLOCKS.items()}
            vx.tl.fit_vae(
                adata,
                batch_size=size,
                max_epochs=epochs,
                validation_fraction=0.0,
                denoised=False,
                progress=False,
                device="cpu",
                **given,
            )
            return {clock: now() - start[clock] for clock, now in CLOCKS.items()}

        # a small minibatch takes less time, so more of them are needed for the same precision
        short, long = 1, 1 + max(1, steps * 512 // size // N_BATCHES_OF_CELLS)
        fit(short)
        n_steps = (long - short) * N_BATCHES_OF_CELLS
        rounds = [(fit(short), fit(long)) for _ in range(repeats)]
        out[name] = {clock: [1e3 * (b[clock] - a[clock]) / n_steps for a, b in rounds] for clock in CLOCKS}
    return out


def child(source: Path, args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Measure in a new process that imports the package from ``source``."""
    command = [sys.executable, __file__, "--json", "--steps", args.steps, "--repeats", args.repeats]
    command += ["--threads", args.threads, "--settings", *args.settings]
    environment = os.environ | {"PYTHONPATH": str(source.resolve())}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    if not Path(found["source"]).is_relative_to(source.resolve()):
        msg = f"vxpress was imported from {found['source']}, not from {source}"
        raise RuntimeError(msg)
    return found["times"]


def pair(args: argparse.Namespace) -> None:
    """Alternate both versions, and print the ratio of the second to the first."""
    import numpy as np
    from scipy import stats

    ratios: dict[tuple[str, str], list[float]] = {}
    for i in range(args.rounds):
        # each is first in every other round
        order = args.pair if i % 2 == 0 else args.pair[::-1]
        found = {source: child(source, args) for source in order}
        for name in args.settings:
            for clock in CLOCKS:
                first, second = (min(found[source][name][clock]) for source in args.pair)
                ratios.setdefault((name, clock), []).append(second / first)
        print(
            f"round {i + 1}: " + ", ".join(f"{n} {ratios[n, 'processor'][-1]:.3f}" for n in args.settings), flush=True
        )
    print(f"\nratio of {args.pair[1]} to {args.pair[0]}, {args.rounds} rounds")
    for (name, clock), values in ratios.items():
        logs = np.log(values)
        half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)) if len(logs) > 1 else np.nan
        low, middle, high = np.exp(logs.mean() + np.array([-half, 0.0, half]))
        print(f"{name:20s} {clock:10s} {middle:.3f}  [{low:.3f}, {high:.3f}]  median {np.median(values):.3f}")


def main() -> None:
    """Print the time of a step, or the ratio between two versions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument(
        "--steps", type=int, default=150, help="difference of steps between the two fits, with 512 cells"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pair", nargs=2, type=Path, metavar=("SRC_A", "SRC_B"))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    args = parser.parse_args()
    if args.pair:
        pair(args)
        return
    times = measure(args.settings, args.steps, args.repeats, args.threads)
    if args.json:
        import vxpress

        print(json.dumps({"source": str(Path(vxpress.__file__).resolve()), "times": times}))
        return
    print(f"{'ms per step':20s} {'clock':10s} {'min':>8s} {'median':>8s}")
    for name, by_clock in times.items():
        for clock, values in by_clock.items():
            print(f"{name:20s} {clock:10s} {min(values):8.2f} {statistics.median(values):8.2f}")


if __name__ == "__main__":
    main()
