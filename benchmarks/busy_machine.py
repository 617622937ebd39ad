"""Time a fit next to other busy programs, with idle threads that spin (the default of OpenMP) or sleep.

    python benchmarks/busy_machine.py --busy 0 2

Every fit runs in a new process; the settings take turns. The time is that of the second fit in a process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from _speed import machine, save

FIT = """
import sys, time, scanpy as sc
sc.settings.verbosity = 0
adata = vx.datasets.simulate(3000, 1000, rng=0)
vx.tl.fit_vae(adata, max_epochs=1, denoised=False, device="cpu")
start = time.perf_counter()
vx.tl.fit_vae(adata, max_epochs=int(sys.argv[1]), denoised=False, device="cpu")
print(time.perf_counter() - start)
"""
IMPORTS = {"vxpress": "import vxpress as vx, torch\n", "torch": "import torch, vxpress as vx\n"}
# order of imports, and environment: the default of the runtime, set explicitly so that vxpress does not change it;
# the choice of vxpress, in both orders of import; one thread
SETTINGS: dict[str, tuple[str, dict[str, str]]] = {
    "spinning": ("vxpress", {"GOMP_SPINCOUNT": "300000"}),
    "sleeping": ("vxpress", {}),
    "sleeping, torch first": ("torch", {}),
    "one thread": ("vxpress", {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}),
}


def seconds(epochs: int, first: str, environment: dict[str, str]) -> float:
    """Measure the wall time of a fit in a new process."""
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORTS[first] + FIT, str(epochs)],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(ran.stdout.split()[-1])


def main() -> None:
    """Time all settings, print a table and write ``results/busy_machine.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 2], help="numbers of other busy programs")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    out = {"epochs": args.epochs, "machine": machine(), "seconds": {}}
    print(f"{'busy programs':<16}" + "".join(f"{name:>22}" for name in SETTINGS))
    for n_busy in args.busy:
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_busy)]
        try:
            runs = [{name: seconds(args.epochs, *s) for name, s in SETTINGS.items()} for _ in range(args.repeats)]
        finally:
            for other in others:
                other.kill()
        found = {name: sorted(run[name] for run in runs) for name in SETTINGS}
        out["seconds"][str(n_busy)] = found
        cells = [f"{statistics.median(v):.2f} ({v[0]:.2f}-{v[-1]:.2f})" for v in found.values()]
        print(f"{n_busy:<16}" + "".join(f"{cell:>22}" for cell in cells), flush=True)
    print(f"written to {save('busy_machine', out)}")


if __name__ == "__main__":
    main()
