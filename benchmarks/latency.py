"""Time to the first result: imports, the very first fit, the first fit of a later process, and compilation.

    python benchmarks/latency.py --threads 2

Every measurement uses new processes. Imports: ``import scanpy`` and ``import scanpy, vxpress`` take turns. Fits: the
embedded demo data, once with an empty cache of compiled code (``NUMBA_CACHE_DIR``) and once with the cache of the first
process. ``call`` is the time of ``vx.tl.fit_vae`` including imports such as torch, ``fit`` the time without these imports, and ``processor``
the processor time of the whole process. Nothing is compiled for data as small as these. Compilation: the processor time by
which the first fit of 10,000 cells x 2,000 genes with an empty cache exceeds that of a later process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from _speed import alternate, machine, save, set_threads, spread

IMPORT = """
import json, sys, time
start = time.perf_counter()
import {modules}
seconds = time.perf_counter() - start
print(json.dumps({{"seconds": seconds, "torch": "torch" in sys.modules}}))
"""
FIT = """
import json, time
import vxpress as vx
adata = vx.datasets.pbmc68k_reduced()
start = time.perf_counter()
fit_vae = vx.tl.fit_vae
ready = time.perf_counter()
fit_vae(adata, device="cpu")
end = time.perf_counter()
elbo = float(adata.uns["vae"]["history"]["elbo_validation"][-1])
print(json.dumps({"call": end - start, "fit": end - ready, "elbo_validation": elbo, "processor": time.process_time()}))
"""
COMPILE = """
import json, time
import vxpress as vx
adata = vx.datasets.simulate(10_000, 2_000, library_mean=300, rng=0)
# imports and the parts that small data use
vx.tl.fit_vae(adata[:200].copy(), likelihood="{likelihood}", max_epochs=1, device="cpu", progress=False)
start = time.process_time()
vx.tl.fit_vae(adata, likelihood="{likelihood}", max_epochs=1, device="cpu", progress=False)
print(json.dumps({{"call": time.process_time() - start}}))
"""


def child(code: str, threads: int, **environment: str) -> dict[str, float]:
    """Run code in a new Python; return its last line as JSON, and the total seconds."""
    counts = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "VXPRESS_NUM_THREADS"), str(threads)
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, text=True, check=True, env=os.environ | counts | environment,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1]) | {"process": time.perf_counter() - start}


def imports(args: argparse.Namespace) -> dict:
    """Time both imports, and return the difference of their medians."""
    loads_torch = child(IMPORT.format(modules="vxpress"), args.threads)["torch"]
    found = alternate(
        {
            name: lambda name=name: child(IMPORT.format(modules=name), args.threads)["seconds"]
            for name in ("scanpy", "scanpy, vxpress")
        },
        args.import_repeats,
    )
    alone, both = (spread(found[name]) for name in found)
    beyond = both["median"] - alone["median"]
    print(f"{'import scanpy':<30}{alone['median']:>8.3f} s  ({alone['min']:.3f}-{alone['max']:.3f})")
    print(f"{'import scanpy, vxpress':<30}{both['median']:>8.3f} s  ({both['min']:.3f}-{both['max']:.3f})")
    print(f"{'beyond scanpy':<30}{beyond:>8.3f} s  torch imported: {loads_torch}", flush=True)
    return {"scanpy": alone, "scanpy, vxpress": both, "beyond": beyond, "imports_torch": loads_torch}


def fits(args: argparse.Namespace) -> dict:
    """Time the first and second process, each time with a new cache folder."""
    runs: dict[str, list[dict[str, float]]] = {"first": [], "second": []}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for found in runs.values():
                found.append(child(FIT, args.threads, NUMBA_CACHE_DIR=folder))
    out = {}
    for which, found in runs.items():
        out[which] = {key: spread(run[key] for run in found) for key in ("call", "fit", "process", "processor")}
        for key, s in out[which].items():
            print(f"{which + ' process: ' + key:<30}{s['median']:>8.2f} s  ({s['min']:.2f}-{s['max']:.2f})")
        out[which]["elbo_validation"] = found[0]["elbo_validation"]
        print(f"{which + ' process: ELBO':<30}{found[0]['elbo_validation']:>8.1f}", flush=True)
    return out


def compilation(args: argparse.Namespace) -> dict:
    """Measure the processor time that the first fit of larger data takes longer than the same fit in a later process."""
    out = {}
    for likelihood in ("nb", "zinb"):
        code, seconds = COMPILE.format(likelihood=likelihood), []
        for _ in range(args.repeats):
            with tempfile.TemporaryDirectory() as folder:
                first, later = (child(code, 1, NUMBA_CACHE_DIR=folder)["call"] for _ in range(2))
                seconds.append(first - later)
        out[likelihood] = found = spread(seconds)
        print(
            f"{f'compiling, {likelihood}':<30}{found['median']:>8.2f} s  ({found['min']:.2f}-{found['max']:.2f})",
            flush=True,
        )
    return out


def main() -> None:
    """Print all tables and write ``results/latency.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--import-repeats", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    set_threads(args.threads)
    payload = {"machine": machine(), "imports": imports(args), "fits": fits(args), "compilation": compilation(args)}
    print(f"written to {save('latency', payload)}")


if __name__ == "__main__":
    main()
