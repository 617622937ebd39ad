"""Compare training throughput with scvi-tools in settings that users have: one thread, a busy machine, other data and models.

    python benchmarks/throughput.py --repeats 3

In each setting both packages train the same layers on the same simulated cells in turn, with the same number of threads: one hidden
layer of 128 unless the setting says otherwise, 10 latent dimensions, NB, no covariate. scvi-tools uses its minibatches of 128 cells,
vxpress 128 and its default. Without bfloat16, vxpress multiplies in float32, as on processors that lack these instructions. The
busy machine runs two other programs, which never pause.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from _speed import alternate, save, set_threads, simulated, spread
from anndata import AnnData

from vxpress.core import rule
from vxpress.core.config import ModelConfig, PriorConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts
from vxpress.core.model import build
from vxpress.core.settings import preset_settings
from vxpress.core.training import train

HIDDEN, LATENT, SCVI_BATCH = 128, 10, 128


@dataclass(frozen=True)
class Setting:
    """What differs from NB with one layer on 2,000 genes, two threads, bfloat16 and an idle machine."""

    n_genes: int = 2_000
    density: float | None = None
    """Share of counts above 0; None leaves that of the simulation, 11 %."""
    threads: int = 2
    bfloat16: bool = True
    n_busy: int = 0
    n_batches: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of ``ModelConfig``."""
    scvi: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``SCVI``."""


SETTINGS = {
    "NB, 2,000 genes, 2 threads": Setting(),
    "one thread": Setting(threads=1),
    "without bfloat16": Setting(bfloat16=False),
    "without bfloat16, one thread": Setting(bfloat16=False, threads=1),
    "next to two busy programs": Setting(n_busy=2),
    "next to two busy programs, one thread": Setting(n_busy=2, threads=1),
    "20,000 genes": Setting(n_genes=20_000),
    "5 % of the counts above 0": Setting(density=0.05),
    "15 % of the counts above 0": Setting(density=0.15),
    "two layers": Setting(model={"n_layers": 2}, scvi={"n_layers": 2}),
    "latent library": Setting(model={"latent_library": True}, scvi={"use_observed_lib_size": False}),
    "VampPrior (scvi-tools: standard normal)": Setting(model={"prior": PriorConfig("vamp")}),
    "40 batches": Setting(n_batches=40),
    "ZINB": Setting(model={"likelihood": "zinb"}, scvi={"gene_likelihood": "zinb"}),
    "layer norm (scvi-tools: batch norm)": Setting(model={"norm": "layer"}),
}


def data(setting: Setting, n_cells: int) -> AnnData:
    """Simulate counts with the genes, density and batches of a setting."""
    adata = simulated(n_cells, setting.n_genes, n_batches=max(2, setting.n_batches))
    if setting.density is not None:
        adata.X = _with_density(adata.X, setting.density)
    return adata


def _with_density(x: sp.csr_matrix, density: float) -> sp.csr_matrix:
    """Remove entries at random, or add ones at random, until this share is above zero."""
    rng, found = np.random.default_rng(0), x.nnz / np.prod(x.shape)
    if density <= found:
        x = x.copy()
        x.data[rng.random(x.nnz) > density / found] = 0
    else:
        share = (density - found) / (1 - found)
        new = sp.random(*x.shape, share, format="csr", dtype=np.float32, random_state=rng)
        new.data[:] = 1
        x = (x + new).tocsr()
    x.eliminate_zeros()
    return x


class Ours:
    """vxpress; every run trains a new model."""

    def __init__(self, adata: AnnData, setting: Setting, batch_size: int, epochs: int) -> None:
        code = adata.obs["batch"].cat.codes.to_numpy().astype(np.int64)[:, None] if setting.n_batches else None
        n = adata.n_obs
        categories = torch.zeros(n, 0, dtype=torch.int64) if code is None else torch.from_numpy(code)
        library = np.log(np.asarray(adata.X.sum(1)))
        self.cells = Cells(
            Counts.from_scipy(adata.X),
            torch.tensor(library, dtype=torch.float32),
            Covariates(categories, torch.zeros(n, 0)),
        )
        settings: dict[str, Any] = {"norm": "batch"} | setting.model
        self.config = ModelConfig(
            n_genes=adata.n_vars, n_latent=LATENT, n_hidden=HIDDEN, condition_output=False,
            n_categories=(setting.n_batches,) if setting.n_batches else (), has_batch=setting.n_batches > 0, **settings,
        )  # fmt: skip
        self.setting, self.batch_size, self.epochs = setting, batch_size, epochs

    def __call__(self) -> float:
        """Measure the cells per second."""
        rows, held_out = torch.arange(len(self.cells)), torch.arange(0)
        config = TrainConfig(max_epochs=self.epochs, batch_size=self.batch_size)
        model = build(self.config, 0)
        model.start_from(self.cells, rows)
        with _products(bfloat16=self.setting.bfloat16):
            start = time.perf_counter()
            train(model, self.cells, rows, held_out, config, seed=0)
            return self.epochs * len(rows) / (time.perf_counter() - start)


@contextlib.contextmanager
def _products(*, bfloat16: bool) -> Iterator[None]:
    if bfloat16:
        yield
        return
    with patch.object(rule, "product_dtype", lambda *_, **__: torch.float32):
        yield


class Scvi:
    """scvi-tools; every run trains a new model."""

    def __init__(self, adata: AnnData, setting: Setting, epochs: int) -> None:
        self.adata, self.setting, self.epochs = adata.copy(), setting, epochs

    def __call__(self) -> float:
        """Measure the cells per second of the epochs alone."""
        import scvi
        from lightning.pytorch import Callback

        seconds: list[float] = []

        class Timer(Callback):
            def on_train_epoch_start(self, *_: object) -> None:
                self.start = time.perf_counter()

            def on_train_epoch_end(self, *_: object) -> None:
                seconds.append(time.perf_counter() - self.start)

        scvi.settings.seed = 0
        scvi.model.SCVI.setup_anndata(self.adata, batch_key="batch" if self.setting.n_batches else None)
        model = scvi.model.SCVI(self.adata, **({"gene_likelihood": "nb"} | self.setting.scvi))
        model.train(
            max_epochs=self.epochs, train_size=1.0, accelerator="cpu", enable_progress_bar=False, logger=False,
            callbacks=[Timer()],
        )  # fmt: skip
        return self.epochs * self.adata.n_obs / sum(seconds)


@contextlib.contextmanager
def busy(n: int) -> Iterator[None]:
    """Run ``n`` programs that never pause."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(setting: Setting, n_cells: int, repeats: int) -> dict[str, Any]:
    """Return cells per second of both packages, and the ratios of every round."""
    adata = data(setting, n_cells)
    default = preset_settings().sized(10_000).batch_size
    # epochs of a second or more
    long = 1 if setting.n_genes > 10_000 else 8
    runs: dict[str, Ours | Scvi] = {"scvi-tools": Scvi(adata, setting, 1 if n_cells > 2_000 else 2)}
    runs |= {f"vxpress, {n}": Ours(adata, setting, n, long) for n in (SCVI_BATCH, default)}
    set_threads(setting.threads)
    for run in runs.values():
        # the first call imports and compiles
        run()
    with busy(setting.n_busy):
        speeds = alternate(runs, repeats)
    found: dict[str, Any] = {name: {"cells/s": spread(values)} for name, values in speeds.items()}
    for name, values in speeds.items():
        found[name]["times"] = spread(a / b for a, b in zip(values, speeds["scvi-tools"], strict=True))
    return found


def main() -> None:
    """Print the table and write ``results/throughput.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=4_096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    rows = []
    for name in args.settings:
        found = measure(SETTINGS[name], args.cells, args.repeats)
        rows.append({"setting": name, "runs": found})
        shown = [f"{run}: {f['cells/s']['median']:.0f}/s, {f['times']['median']:.1f}x" for run, f in found.items()]
        print(f"{name:42s} {'; '.join(shown)}", flush=True)
    print(
        pd.DataFrame({r["setting"]: {k: v["times"]["median"] for k, v in r["runs"].items()} for r in rows}).T.round(1)
    )
    print(save("throughput", {"cells": args.cells, "rows": rows}))


if __name__ == "__main__":
    main()
