"""Do cells that are read by blocks, of a file sorted by batch and cell type, train a model as well as shuffled ones?

    OMP_NUM_THREADS=1 python benchmarks/shuffle_buffer.py --seeds 0 1 2

20,000 simulated cells x 500 genes in 10 batches and 10 types, sorted by both, as concatenated samples are: 200 neighbouring
cells are of one type and batch. ``memory`` shuffles all cells, which is the default in memory. The others read blocks of neighbours
in random order and shuffle the cells of one window at a time, which holds a share of all cells: ``FitOptions(source="stored")``
with other sizes. ``one block`` shuffles within each block alone, and ``file order`` not at all, which is known to be bad. Every
seed draws the initial weights, the noise and the order; the held-out cells are the same. The bound of the training cells is that
during the last epoch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import anndata as ad
import numpy as np
import torch
from _speed import set_threads
from _versions import RESULTS, stamp

import vxpress as vx
from vxpress.core.covariates import Covariates
from vxpress.core.data import SOURCES, Counts, Sampler, Stored
from vxpress.core.data.windows import ENTRY

CELLS, GENES, GROUPS = 20_000, 500, 10
# windows as a share of all cells, and cells per block
ORDERS = {
    "memory": None,
    "one window": (1, 128),
    "1/4": (4, 128),
    "1/16": (16, 128),
    "1/64": (64, 128),
    "1/16, blocks of 16": (16, 16),
    "1/16, blocks of 1024": (16, 1024),
    "one block": (10_000, 128),
    "file order": (16, 0),
}


class InOrder(Sampler):
    """Cells in the order of the file, the same in every epoch."""

    def epoch(self) -> Sequence[torch.Tensor]:
        return self.rows.sort().values.tensor_split(self.n_minibatches)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: there is no state."""


def data() -> ad.AnnData:
    """Simulate the cells and sort them."""
    adata = vx.datasets.simulate(CELLS, GENES, n_groups=GROUPS, n_batches=GROUPS, library_mean=500, rng=0)
    order = np.lexsort((adata.obs["group"], adata.obs["batch"]))
    return adata[order].copy()


def source(windows: int, block: int) -> type[Stored]:
    """Return a source with windows and blocks of these sizes; without blocks, cells are visited in their order."""

    class Sized(Stored):
        @classmethod
        def of(
            cls, counts: Counts, log_library_n1: torch.Tensor, covariates: Covariates, device: torch.device
        ) -> Stored:
            found = super().of(counts, log_library_n1, covariates, device)
            found.reader.block, found.limit = block or 128, max(ENTRY, ENTRY * len(counts.data) // windows)
            return found

        def sampler(self, rows: torch.Tensor, n_minibatches: int, seed: int) -> Sampler:
            return super().sampler(rows, n_minibatches, seed) if block else InOrder(rows, n_minibatches)

    return Sized


def fit(adata: ad.AnnData, name: str, seed: int, epochs: int | None) -> dict[str, Any]:
    """Fit once; return the bounds of the last epoch and the best held-out one."""
    copy, order = adata.copy(), ORDERS[name]
    options = vx.tl.FitOptions(source=None if order is None else "sized")
    if order is not None:
        SOURCES.register("sized", source(*order))
    try:
        given: dict[str, Any] = {"early_stopping": False} | ({} if epochs is None else {"max_epochs": epochs})
        vx.tl.fit_vae(copy, "batch", rng=seed, split_rng=0, denoised=False, device="cpu", options=options, **given)
    finally:
        if order is not None:
            SOURCES.remove("sized")
    history = copy.uns["vae"]["history"]
    return {
        "train": float(history["elbo_train"][-1]),
        "held_out": float(np.max(history["elbo_validation"])),
        "epochs": len(history["elbo_train"]),
    }


def main() -> None:
    """Run what is missing and save after every fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", nargs="+", choices=list(ORDERS), default=list(ORDERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=None, help="number of epochs, by default that of fit_vae")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="also run what is there")
    args = parser.parse_args()
    set_threads(args.threads)
    path = RESULTS / "shuffle_buffer.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() and not args.again else {}
    adata = data()
    for seed in args.seeds:
        for name in args.orders:
            of_order = found.setdefault(name, {})
            if str(seed) in of_order:
                continue
            of_order[str(seed)] = fit(adata, name, seed, args.epochs)
            print(name, seed, of_order[str(seed)], flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
            stamp(path.stem, [name])


if __name__ == "__main__":
    main()
