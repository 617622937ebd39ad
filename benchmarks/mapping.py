"""Transfer labels from a reference to an unseen batch: ``vx.tl.encode`` compared with scArches in scvi-tools.

    python benchmarks/mapping_scvi.py && python benchmarks/mapping.py

The reference contains all batches except one. The 15 nearest reference cells in the latent space determine the label of a
query cell. Seconds are processor time of the query step (encode, or load, train and encode) with one thread. Prints a table
and writes ``benchmarks/results/mapping.json``. Both packages fit every seed; intervals are of the mean difference of the
two fits with the same seed (Student's t).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from _mapping import HELD_OUT, load_task, tasks, transfer
from _versions import stamp
from scipy import stats

import vxpress as vx

HERE = Path(__file__).parent
ENCODED = vx.tl.FitOptions(encode_covariates=True)
# the encoder of a default fit sees no covariate, so fine-tuning changes what is decoded but not the latent space
MODELS: dict[str, tuple[dict[str, object], tuple[bool, ...]]] = {
    "default": ({}, (False,)),
    "covariates encoded": ({"options": ENCODED}, (False, True)),
}


def ours(name: str, held_out: str, seed: int, folder: Path, *, fit: bool = True) -> list[dict[str, object]]:
    """Map to one reference of each kind; results are stored as files, so that an interrupted run continues.

    Without ``fit``, only stored results are read.
    """
    rows: list[dict[str, object]] = []
    for model, (arguments, ways) in MODELS.items():
        path = folder / f"mapping-{model}-{name}-{held_out.replace('/', '_')}-{seed}.json"
        if not path.exists() and not fit:
            continue
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(_map(*load_task(name, held_out), seed, model, arguments, ways)))
        rows += json.loads(path.read_text())
    return rows


def _map(
    reference: ad.AnnData, query: ad.AnnData, seed: int, model: str, arguments: dict, ways: tuple[bool, ...]
) -> list[dict[str, object]]:
    vx.tl.fit_vae(reference, "batch", denoised=False, rng=seed, **arguments)
    vx.tl.encode(query, reference, copy=True, fine_tune=1)  # compile before timing
    rows = []
    for fine_tune in ways:
        start = time.process_time()
        mapped = vx.tl.encode(query, reference, fine_tune=fine_tune, copy=True, rng=seed)
        seconds = time.process_time() - start
        labels, truth = reference.obs["label"].to_numpy(), query.obs["label"].to_numpy()
        scores = transfer(reference.obsm["X_vae"], labels, mapped.obsm["X_vae"], truth)
        rows.append({"way": f"{model}, {'fine_tune' if fine_tune else 'average'}", "seconds": seconds} | scores)
    return rows


def peer(name: str, held_out: str, seed: int, folder: Path) -> list[dict[str, object]]:
    """Read the results of ``mapping_scvi.py``."""
    path = folder / f"scarches-{name}-{held_out.replace('/', '_')}-{seed}.npz"
    if not path.exists():
        return []
    reference, query = load_task(name, held_out)
    with np.load(path) as file:
        scores = transfer(
            file["reference"], reference.obs["label"].to_numpy(), file["query"], query.obs["label"].to_numpy()
        )
        return [{"way": "scArches", "seconds": float(file["cpu_query"])} | scores]


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Average every method over seeds, with the difference from scArches and its interval, paired by seed."""
    rows = []
    for (name, held_out, way), part in runs.groupby(["set", "held out", "way"], sort=False):
        row = {"set": name, "held out": held_out, "way": way, "seeds": len(part)}
        row |= part[["accuracy", "macro_F1", "seconds"]].mean().to_dict()
        other = runs[(runs["set"] == name) & (runs["held out"] == held_out) & (runs["way"] == "scArches")]
        both = part.merge(other, on="seed", suffixes=("", "_peer"))
        if way != "scArches" and len(both) > 1:
            row["pairs"] = len(both)
            for score in ("accuracy", "macro_F1"):
                difference = (both[score] - both[f"{score}_peer"]).to_numpy()
                half = stats.t.ppf(0.975, len(both) - 1) * stats.sem(difference)
                row[f"{score} difference"] = difference.mean()
                row[f"{score} low"], row[f"{score} high"] = difference.mean() - half, difference.mean() + half
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(HELD_OUT))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    parser.add_argument(
        "--stored", action="store_true", help="only summarise what is in the cache, without further fits"
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = []
    every = tasks(args.sets)
    for seed in args.seeds:
        for name, held_out in every:
            for row in ours(name, held_out, seed, args.cache, fit=not args.stored) + peer(
                name, held_out, seed, args.cache
            ):
                rows.append({"set": name, "held out": held_out, "seed": seed} | row)
    table = summary(pd.DataFrame(rows))
    print(table.to_string(index=False, float_format="{:.3f}".format))
    out = HERE / "results" / "mapping.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"runs": rows, "summary": table.to_dict("records")}, indent=1) + "\n")
    stamp("mapping", ("runs", "summary"))


if __name__ == "__main__":
    main()
