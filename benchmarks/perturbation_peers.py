"""Predict the held-out responses with other tools and store the predicted cells.

    python benchmarks/perturbation_peers.py --sets kang glioblastoma --methods scgen --seeds 0 1 2 3 4
    python benchmarks/perturbation_peers.py --sets kang_cd4 --methods scgen scvi

Needs pertpy 1.4 with JAX and scvi-tools 1.5 (Python 3.12 or later). ``scgen`` has the settings of pertpy's tutorial.
``scvi`` is SCVI at its defaults with the condition as batch, decoded under the target (``transform_batch``). Writes one
``.npz`` per method, set, group and seed to ``benchmarks/cache``: log values of the predicted cells on the scale
log1p(1e4 x / l), for ``scvi`` the change of their mean, and the seconds of the fit. Existing files are kept.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
from _perturbation import PER, RESPONSES, Fold, fold, groups_of, logged

FOLDER = Path(__file__).parent / "cache"


def by_scgen(cells: Fold, seed: int) -> dict[str, np.ndarray]:
    """Predict with pertpy's scGen."""
    import pertpy as pt

    which = RESPONSES[cells.name]
    train = cells.seen.copy()
    train.X = logged(train.X).toarray()
    pt.tl.Scgen.setup_anndata(train, batch_key="condition", labels_key="group")
    model = pt.tl.Scgen(train)
    model.train(max_epochs=100, batch_size=32, early_stopping=True, early_stopping_patience=25, seed=seed)
    control = train[cells.control.obs_names].copy()
    predicted, _ = model.predict(ctrl_key=which.control, stim_key=which.target, adata_to_predict=control)
    return {"log_values": np.asarray(predicted.X, dtype=np.float16)}


def by_scvi(cells: Fold, seed: int) -> dict[str, np.ndarray]:
    """Decode control cells with SCVI under the target condition."""
    import scvi

    which = RESPONSES[cells.name]
    train = cells.seen.copy()
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(train, batch_key="condition")
    model = scvi.model.SCVI(train)
    model.train(accelerator="cpu", enable_progress_bar=False, logger=False)
    control = train[cells.control.obs_names].copy()
    after, before = (
        np.log1p(model.get_normalized_expression(control, transform_batch=name, library_size=PER, return_numpy=True))
        for name in (which.target, which.control)
    )
    return {"change": (after.mean(0) - before.mean(0)).astype(np.float64)}


METHODS = {"scgen": by_scgen, "scvi": by_scvi}


def path_of(method: str, name: str, group: str, seed: int) -> Path:
    """Return the file of a prediction."""
    return FOLDER / f"perturbation-{method}-{name}-{group.replace(' ', '_')}-{seed}.npz"


def main() -> None:
    """Predict every set, group and seed without a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(RESPONSES), choices=list(RESPONSES))
    parser.add_argument("--methods", nargs="+", default=["scgen"], choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for name in args.sets:
            for group in groups_of(name):
                for method in args.methods:
                    path = path_of(method, name, group, seed)
                    if path.exists():
                        continue
                    cells, start = fold(name, group), time.perf_counter()
                    found = METHODS[method](cells, seed)
                    seconds = time.perf_counter() - start
                    np.savez_compressed(path, seconds=seconds, **found)
                    print(f"{path.name}: {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
