"""Shared code of the timings: description of the machine, calls in turn, and writing of results."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from _versions import stamp

RESULTS = Path(__file__).parent / "results"
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
PACKAGES = ("vxpress", "torch", "numba", "numpy", "scanpy", "anndata", "scvi-tools")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> tuple[str, set[str]]:
    """Return name and flags of the processor from Linux; on other systems only the name from Python."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return platform.processor(), set()
    fields = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    return fields.get("model name", platform.processor()), set(fields.get("flags", fields.get("Features", "")).split())


def set_threads(n: int) -> None:
    """Set the number of threads of torch, of numba, and of vxpress, which would otherwise use fewer next to other programs."""
    import numba
    import torch

    os.environ["VXPRESS_NUM_THREADS"] = str(n)
    numba.set_num_threads(min(n, numba.config.NUMBA_NUM_THREADS))
    # starting the threads of numba may change the number of torch, so torch is set last
    torch.set_num_threads(n)


def machine() -> dict[str, Any]:
    """Return versions, processor with relevant features, and the present number of threads."""
    import numba
    import torch

    name, flags = _processor()
    return {
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "processor": name,
        "features": {feature: feature in flags for feature in FEATURES},
        "threads": {"torch": torch.get_num_threads(), "numba": numba.get_num_threads()},
    }


def alternate(functions: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call every function in turn for ``repeats`` rounds, and collect what each returns (usually seconds).

    Taking turns distributes other load of the machine evenly. There is no warm-up round, so a function that needs one
    must be called before.
    """
    out: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            out[name].append(float(function()))
    return out


def timed(call: Callable[[], object]) -> float:
    """Measure the seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def mean_scores(score: Callable[[int], Mapping[str, float]], seeds: Iterable[int], threads: int) -> dict[str, Any]:
    """Average the result of ``score`` over seeds, without NaN; ``"each"`` holds all values."""
    import pandas as pd

    runs = []
    for seed in seeds:
        # numba raises the number of threads of torch when it builds a neighbour graph
        set_threads(threads)
        runs.append(score(seed))
    table = pd.DataFrame(runs)
    return {**table.mean().dropna().to_dict(), "each": table.dropna(axis=1).round(4).to_dict("list")}


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Return median, minimum and maximum of timings, and all of them."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "all": values}


def save(name: str, payload: Mapping[str, Any]) -> Path:
    """Write ``results/<name>.json`` with the description of the machine; parts that are not replaced are kept."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {"machine": machine()} | dict(payload), indent=1) + "\n")
    stamp(name, payload)
    return path


def simulated(n_cells: int, n_genes: int, *, n_block: int = 10_000, n_batches: int = 2, seed: int = 0) -> Any:
    """Make an AnnData of simulated counts (float32 CSR, about a tenth stored) as fast as copying.

    A block of at most ``n_block`` cells is drawn from the model of ``vx.datasets.simulate``. Further cells repeat this
    block, each time in another order. With more than one block, held-out cells therefore have copies among the training
    cells: suitable for timings and for comparing settings on the same data, not for evaluating generalisation.
    """
    import anndata as ad
    import numpy as np
    import pandas as pd
    from scipy import sparse

    import vxpress as vx

    block = vx.datasets.simulate(
        min(n_cells, n_block), n_genes, n_groups=8, n_batches=n_batches, library_mean=0.15 * n_genes, rng=seed
    )
    rng = np.random.default_rng(seed)
    n_tiles = -(-n_cells // block.n_obs)
    rows = np.concatenate([rng.permutation(block.n_obs) for _ in range(n_tiles)])[:n_cells]
    x = sparse.csr_matrix(block.X, dtype=np.float32)
    lengths = np.diff(x.indptr)[rows]
    indptr = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    index = np.int32 if indptr[-1] < 2**31 else np.int64
    indices, data = np.empty(indptr[-1], index), np.empty(indptr[-1], np.float32)
    for start in range(0, n_cells, block.n_obs):
        part = x[rows[start : start + block.n_obs]]
        here = slice(indptr[start], indptr[start] + part.nnz)
        indices[here], data[here] = part.indices, part.data
    counts = sparse.csr_matrix((data, indices, indptr.astype(index)), shape=(n_cells, n_genes))
    obs = pd.DataFrame({"batch": block.obs["batch"].to_numpy()[rows]}, index=np.arange(n_cells).astype(str))
    obs["batch"] = obs["batch"].astype("category")
    return ad.AnnData(counts, obs=obs, var=block.var[[]])
