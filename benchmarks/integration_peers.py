"""Fit the other methods of the integration benchmark and store their embeddings.

    python benchmarks/integration_peers.py --sets pbmc3k kang --methods pca harmony scvi --seeds 0 1 2 3 4

Needs scvi-tools 1.5, harmonypy and Python 3.12 or later. Writes one ``.npz`` per method, data set and seed, with the
embedding of the cells to fit, the seconds, and for ``scvi`` the scores of the test cells (``_judge.py``). Existing files
are kept. ``pca`` has 30 components of log-normalised counts; ``harmony`` corrects them; ``scvi``, ``sysvi`` and ``drvi``
are models of scvi-tools at their defaults.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _integration import SETS, load, pca
from fit_scvi import fit_and_judge

from vxpress.core.split import split_cells

FOLDER = Path(__file__).parent / "cache"
# these see the same counts; an embedding of a set whose cells another set also has is the same
SAME_FIT = {"pbmc_3studies_sorted": "pbmc_3studies"}


def rows_of(adata, fraction: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw training and validation rows as ``vx.tl.fit_vae(split_rng=seed)`` does."""
    codes = adata.obs["batch"].cat.codes.to_numpy().astype(np.int64)[:, None] if "batch" in adata.obs else None
    return split_cells(adata.n_obs, fraction, np.random.default_rng(seed), codes)


def by_pca(name: str, seed: int) -> dict[str, np.ndarray]:
    """Return principal components."""
    return {"latent_fit": pca(name)}


def by_harmony(name: str, seed: int) -> dict[str, np.ndarray]:
    """Return principal components corrected by Harmony."""
    import harmonypy

    adata = load(name)[0]
    found = harmonypy.run_harmony(pca(name), adata.obs, "batch", random_state=seed, verbose=False).Z_corr
    found = np.asarray(found)
    return {"latent_fit": found if len(found) == adata.n_obs else found.T}


def by_scvi(name: str, seed: int) -> dict[str, np.ndarray]:
    """Fit SCVI at its defaults."""
    fit, test = (part.copy() for part in load(name))
    return fit_and_judge(fit, test, "batch" if "batch" in fit.obs else None, rows_of(fit), seed=seed)


def by_drvi(name: str, seed: int) -> dict[str, np.ndarray]:
    """Fit DRVI at its defaults."""
    import scvi

    fit = load(name)[0].copy()
    scvi.settings.seed = seed
    scvi.external.DRVI.setup_anndata(fit, batch_key="batch" if "batch" in fit.obs else None)
    model = scvi.external.DRVI(fit)
    model.train(accelerator="cpu", enable_progress_bar=False, logger=False)
    return {"latent_fit": np.asarray(model.get_latent_representation())}


def by_sysvi(name: str, seed: int) -> dict[str, np.ndarray]:
    """Fit SysVI at its defaults, to log-normalised counts, with the batch as the system."""
    import scanpy as sc
    import scvi

    fit = load(name)[0].copy()
    sc.pp.normalize_total(fit)
    sc.pp.log1p(fit)
    scvi.settings.seed = seed
    scvi.external.SysVI.setup_anndata(fit, batch_key="batch")
    model = scvi.external.SysVI(fit)
    model.train(accelerator="cpu", enable_progress_bar=False, logger=False)
    return {"latent_fit": np.asarray(model.get_latent_representation())}


METHODS = {"pca": by_pca, "harmony": by_harmony, "scvi": by_scvi, "drvi": by_drvi, "sysvi": by_sysvi}
# methods without randomness, and those that need batches
DETERMINISTIC, NEEDS_BATCH = {"pca"}, {"harmony", "sysvi"}


def main() -> None:
    """Fit every method, data set and seed that is not in the cache."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=[name for name in SETS if name not in SAME_FIT])
    parser.add_argument("--methods", nargs="+", default=["pca", "harmony", "scvi"], choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=FOLDER)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    args.cache.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for name in args.sets:
            for method in args.methods:
                path = args.cache / f"integration-{method}-{name}-{seed}.npz"
                without = method in NEEDS_BATCH and SETS[name].batch is None
                if path.exists() or without or (method in DETERMINISTIC and seed != args.seeds[0]):
                    continue
                start = time.perf_counter()
                found = METHODS[method](name, seed)
                seconds = {} if "seconds" in found else {"seconds": np.array(time.perf_counter() - start)}
                np.savez_compressed(path, **found, **seconds)
                took = float({**found, **seconds}["seconds"])
                print(pd.Timestamp.now().strftime("%H:%M:%S"), path.name, f"{took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
