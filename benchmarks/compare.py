"""Compare fits of vxpress and scvi-tools: parity of ``preset="scvi"``, and likelihood.

    python benchmarks/fit_scvi.py && python benchmarks/fit_ours.py && python benchmarks/compare.py

Reads the files of the other two scripts, prints tables and writes ``benchmarks/results/compare.json``. Likelihoods are in
nats per test cell, which no fit has seen; higher is better. Intervals are over cells (the difference of each cell averaged
over seeds). ``integration.py`` compares latent spaces.
"""

from __future__ import annotations

import argparse
import json
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from _sets import SETS
from _versions import stamp

HERE = Path(__file__).parent


@cache
def result(folder: Path, model: str, name: str, seed: int) -> dict[str, np.ndarray]:
    """Read a cached fit."""
    with np.load(folder / f"{model}-{name}-{seed}.npz") as file:
        return {key: file[key] for key in file.files}


def likelihood(folder: Path, ours: str, name: str, seeds: list[int], score: str) -> dict[str, float]:
    """Compute the mean scores of both, and the gain in percent of scvi-tools with a paired 95 % interval over cells."""
    mine = np.mean([result(folder, ours, name, s)[score] for s in seeds], axis=0)
    peer = np.mean([result(folder, "scvi-zinb", name, s)[score] for s in seeds], axis=0)
    difference = mine - peer
    unit = 100 / abs(peer.mean())
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference)) * unit
    gain = difference.mean() * unit
    return {"ours": mine.mean(), "peer": peer.mean(), "gain_%": gain, "low_%": gain - half, "high_%": gain + half}


def likelihood_table(folder: Path, ours: str, sets: list[str], seeds: list[int]) -> pd.DataFrame:
    """Compare ELBO and IWAE on every data set."""
    rows = []
    for name in sets:
        ess = [float(np.median(result(folder, ours, name, s)["ess"])) for s in seeds]
        ess_peer = [float(np.median(result(folder, "scvi-zinb", name, s)["ess"])) for s in seeds]
        for score in ("elbo", "iwae"):
            row = {"set": name, "score": score} | likelihood(folder, ours, name, seeds, score)
            rows.append(row | {"ESS": np.mean(ess), "ESS peer": np.mean(ess_peer)})
    return pd.DataFrame(rows)


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=[k for k, v in SETS.items() if v.purpose == "report"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--parity-seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", default=["vx-default", "vx-likelihood"])
    parser.add_argument("--skip", nargs="*", default=[], choices=["parity", "likelihood"])
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    tables: dict[str, pd.DataFrame] = {}
    if "parity" not in args.skip:
        tables["parity: preset='scvi'"] = likelihood_table(args.cache, "vx-scvi", args.sets, args.parity_seeds)
    if "likelihood" not in args.skip:
        for model in args.models:
            tables[f"likelihood: {model}"] = likelihood_table(args.cache, model, args.sets, args.seeds)
    for title, table in tables.items():
        print(f"\n{title}\n{table.to_string(index=False, float_format='{:.3f}'.format)}")
    out = HERE / "results" / "compare.json"
    out.parent.mkdir(exist_ok=True)
    known = json.loads(out.read_text()) if out.exists() else {}
    out.write_text(json.dumps(known | {k: t.to_dict("records") for k, t in tables.items()}, indent=1) + "\n")
    stamp("compare", tables)


if __name__ == "__main__":
    main()
