"""Labels carried over from a reference to a batch it has not seen: ``vx.tl.encode`` against scvi-tools' scArches.

    python benchmarks/mapping_peer.py && python benchmarks/mapping.py

The reference is all but one batch; 15 nearest reference cells in the latent space give each query cell its label.  Seconds
are of processor time of the query step (encode, or load, train and encode), at one thread.  Prints a table and writes
``benchmarks/results/mapping.json``.  The interval is of the mean difference over seeds (Student's t).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _mapping import HELD_OUT, load_task, tasks, transfer
from scipy import stats

import vxpress as vx

HERE = Path(__file__).parent
# the encoder of a default fit sees no covariate, so that fine-tuning changes what is decoded, not where cells lie
WAYS = {
    "average": (False, False),
    "average, covariates encoded": (True, False),
    "fine_tune, covariates encoded": (True, True),
}


def ours(name: str, held_out: str, seed: int, folder: Path) -> list[dict[str, object]]:
    """One reference, mapped to in every way; kept as a file, so that an interrupted run goes on."""
    path = folder / f"mapping-{name}-{held_out.replace('/', '_')}-{seed}.json"
    if path.exists():
        kept: list[dict[str, object]] = json.loads(path.read_text())
        return kept
    reference, query = load_task(name, held_out)
    labels, truth = reference.obs["label"].to_numpy(), query.obs["label"].to_numpy()
    for encoded in (False, True):
        options, key = vx.tl.FitOptions(encode_covariates=encoded), str(encoded)
        vx.tl.fit_vae(reference, "batch", denoised=False, rng=seed, options=options, key_added=key)
        vx.tl.encode(query, reference, key=key, copy=True, fine_tune=1)  # what is compiled is compiled
    rows = []
    for way, (encoded, fine_tune) in WAYS.items():
        start = time.process_time()
        mapped = vx.tl.encode(query, reference, key=str(encoded), fine_tune=fine_tune, copy=True, rng=seed)
        seconds = time.process_time() - start
        scores = transfer(reference.obsm[str(encoded)], labels, mapped.obsm[str(encoded)], truth)
        rows.append({"way": way, "seconds": seconds} | scores)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return rows


def peer(name: str, held_out: str, seed: int, folder: Path) -> list[dict[str, object]]:
    """What the peer's script kept."""
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
    """Means over seeds of every way, and the paired difference to the peer where there are three seeds."""
    rows = []
    for (name, held_out, way), part in runs.groupby(["set", "held out", "way"], sort=False):
        row = {"set": name, "held out": held_out, "way": way, "seeds": len(part)}
        row |= part[["accuracy", "macro_F1", "seconds"]].mean().to_dict()
        other = runs[(runs["set"] == name) & (runs["held out"] == held_out) & (runs["way"] == "scArches")]
        both = part.merge(other, on="seed", suffixes=("", "_peer"))
        if way != "scArches" and len(both):
            difference = (both["accuracy"] - both["accuracy_peer"]).to_numpy()
            row["difference"] = difference.mean()
            if len(both) > 2:
                row["half width"] = stats.t.ppf(0.975, len(both) - 1) * stats.sem(difference)
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(HELD_OUT))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = []
    for name, held_out in tasks(args.sets):
        for seed in args.seeds:
            for row in ours(name, held_out, seed, args.cache) + peer(name, held_out, seed, args.cache):
                rows.append({"set": name, "held out": held_out, "seed": seed} | row)
    table = summary(pd.DataFrame(rows))
    print(table.to_string(index=False, float_format="{:.3f}".format))
    out = HERE / "results" / "mapping.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"runs": rows, "summary": table.to_dict("records")}, indent=1) + "\n")


if __name__ == "__main__":
    main()
