"""Predict labels by SCANVI, for ``annotation.py``, and store them; timed next to a fit of vxpress with the same labels.

    python benchmarks/annotation_peers.py --seeds 0 1 --sets pbmc3k kang

Needs scvi-tools 1.5 and Python 3.12 or later. SCVI at its defaults (at most 400 epochs) is trained on all cells, then SCANVI
from it at its defaults, as in the tutorials of scvi-tools. Existing files are kept.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
from _annotation import NO_LABEL, REPORTED, SCENARIOS, load, tasks

import vxpress as vx

FOLDER = Path(__file__).parent / "cache"


def by_scanvi(name: str, given_n: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return probabilities of the labels for the cells without one, and the seconds of the training."""
    import scvi

    adata = load(name).copy()
    adata.obs["label"] = np.where(given_n, adata.obs["type"].astype(str), NO_LABEL)
    batch = "batch" if "batch" in adata.obs else None
    scvi.settings.seed = seed
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
    start = time.perf_counter()
    scvi.model.SCVI.setup_anndata(adata, batch_key=batch, labels_key="label")
    first = scvi.model.SCVI(adata)
    first.train(**quiet)
    model = scvi.model.SCANVI.from_scvi_model(first, unlabeled_category=NO_LABEL)
    model.train(**quiet)
    prob = model.predict(soft=True)
    seconds = time.perf_counter() - start
    vx.tl.fit_vae(load(name)[:300].copy(), max_epochs=2, denoised=False, progress=False)  # compiles the loops
    ours = load(name).copy()
    ours.obs["label"] = adata.obs["label"].to_numpy()
    start = time.perf_counter()
    vx.tl.fit_vae(
        ours, batch, labels_key="label", unlabeled_category=NO_LABEL, rng=seed, denoised=False, progress=False
    )
    vx.tl.annotate(ours, progress=False)
    return {
        "prob": prob.to_numpy()[~given_n],
        "names": np.array(list(map(str, prob.columns))),
        "seconds": np.array(seconds),
        "seconds_vxpress": np.array(time.perf_counter() - start),
    }


def main() -> None:
    """Predict for every data set, scenario and seed without a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(REPORTED))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS))
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, scenario, seed, given_n in tasks(args.sets, args.seeds):
        path = args.out / f"annotation-{name}-{scenario.split(maxsplit=1)[0]}-{seed}.npz"
        if path.exists() or scenario not in args.scenarios:
            continue
        found = by_scanvi(name, given_n, seed)
        np.savez_compressed(path, set=name, scenario=scenario, seed=seed, **found)
        print(
            path.name, f"{float(found['seconds']):.0f} s, vxpress {float(found['seconds_vxpress']):.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
