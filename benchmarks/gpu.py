"""Compare training throughput on a GPU with scvi-tools, on the same card in the same run, in turn.

    python benchmarks/gpu.py

Both train the same layers (one hidden layer of 128, 10 latent dimensions, batch norm) on the same simulated cells. vxpress
is timed with the minibatch size of scvi-tools and with its default, also without CUDA graphs, and with the counts on the
host. Rates are those of the epochs after the first, which loads kernels and captures graphs; the first is listed separately.
Without a GPU the script prints a message and ends.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from _speed import alternate, save, simulated, spread
from anndata import AnnData

from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts, Source, place
from vxpress.core.model import build
from vxpress.core.settings import preset_settings
from vxpress.core.training import Training

HIDDEN, LATENT = 128, 10
SCVI_BATCH = 128


def as_cells(adata: AnnData) -> Cells:
    """Counts and library in the format of the core."""
    library = np.log(np.asarray(adata.X.sum(1)))
    nothing = Covariates(torch.zeros(adata.n_obs, 0, dtype=torch.int64), torch.zeros(adata.n_obs, 0))
    return Cells(Counts.from_scipy(adata.X), torch.tensor(library, dtype=torch.float32), nothing)


@dataclass
class Clock:
    """Start and end of each epoch, with the device synchronised."""

    seconds: list[float] = field(default_factory=list)

    def start(self) -> None:
        torch.cuda.synchronize()
        self.begun = time.perf_counter()

    def stop(self) -> None:
        torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.begun)

    def rate(self, n: int) -> float:
        """Compute the cells per second after the first epoch."""
        return n * (len(self.seconds) - 1) / sum(self.seconds[1:])


class Timed(Training):
    """A training whose epochs are timed."""

    clock: Clock

    def epoch(self) -> None:
        """Time the epoch."""
        self.clock.start()
        super().epoch()
        self.clock.stop()


@dataclass
class Ours:
    """vxpress on these cells; every run trains a new model."""

    cells: Source
    likelihood: str
    batch_size: int
    epochs: int
    captured: bool = True
    first: list[float] = field(default_factory=list)
    failure: str | None = None

    def __call__(self) -> float:
        """Measure the cells per second."""
        device = self.cells.device
        rows, held_out = torch.arange(len(self.cells), device=device), torch.arange(0, device=device)
        config = ModelConfig(
            n_genes=self.cells.n_genes, likelihood=self.likelihood, n_latent=LATENT, n_hidden=HIDDEN,
            norm="batch", condition_output=False,
        )  # fmt: skip
        model = build(config, 0).to(device)
        model.start_from(self.cells, rows)
        settings = TrainConfig(max_epochs=self.epochs, batch_size=self.batch_size)
        training = Timed(model, self.cells, rows, held_out, settings, seed=0)
        training.clock = clock = Clock()
        if not self.captured:
            training.stepper.replay.failure = "switched off"
        training.run()
        self.failure = training.stepper.replay.failure
        self.first.append(clock.seconds[0])
        return clock.rate(len(rows))


@dataclass
class Scvi:
    """scvi-tools on the same cells."""

    adata: AnnData
    likelihood: str
    batch_size: int
    epochs: int
    first: list[float] = field(default_factory=list)
    failure: str | None = None

    def __call__(self) -> float:
        """Measure the cells per second."""
        import scvi
        from lightning.pytorch import Callback

        clock = Clock()

        class Timer(Callback):
            def on_train_epoch_start(self, *_) -> None:
                clock.start()

            def on_train_epoch_end(self, *_) -> None:
                clock.stop()

        scvi.settings.seed = 0
        scvi.model.SCVI.setup_anndata(self.adata)
        model = scvi.model.SCVI(self.adata, gene_likelihood=self.likelihood)
        model.train(
            max_epochs=self.epochs, train_size=1.0, batch_size=self.batch_size, accelerator="gpu", devices=1,
            enable_progress_bar=False, logger=False, callbacks=[Timer()],
        )  # fmt: skip
        self.first.append(clock.seconds[0])
        return clock.rate(self.adata.n_obs)


def runs_of(adata: AnnData, likelihood: str, epochs: int) -> dict[str, Callable[[], float]]:
    """List the calls that take turns; vxpress and scvi-tools alternate."""
    device = torch.device("cuda")
    cells = as_cells(adata)
    resident, on_host = (place(cells, device, source) for source in ("resident", "streamed"))
    default = preset_settings().sized(adata.n_obs).batch_size
    return {
        f"scvi-tools, {SCVI_BATCH}": Scvi(adata.copy(), likelihood, SCVI_BATCH, epochs),
        f"ours, {SCVI_BATCH}": Ours(resident, likelihood, SCVI_BATCH, epochs),
        f"scvi-tools, {default}": Scvi(adata.copy(), likelihood, default, epochs),
        f"ours, {default}": Ours(resident, likelihood, default, epochs),
        f"ours without graphs, {SCVI_BATCH}": Ours(resident, likelihood, SCVI_BATCH, epochs, captured=False),
        f"ours from the host, {SCVI_BATCH}": Ours(on_host, likelihood, SCVI_BATCH, epochs),
    }


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=5, help="at least 2: the first is not in the rate")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--likelihoods", nargs="+", default=["nb", "zinb"])
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("No GPU: torch finds no CUDA device on this machine, so there is nothing to measure.")
        return
    if args.epochs < 2:
        parser.error("--epochs must be 2 or more")
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    adata = simulated(args.cells, args.genes)
    card = torch.cuda.get_device_properties(0)
    print(f"{args.cells} x {args.genes} on {card.name}")
    settings = {"cells": args.cells, "genes": args.genes, "epochs": args.epochs}
    settings |= {"card": card.name, "cuda": torch.version.cuda}
    rows: list[dict[str, Any]] = []
    for likelihood in args.likelihoods:
        runs = runs_of(adata, likelihood, args.epochs)
        speeds = alternate(runs, args.repeats)
        for name, run in runs.items():
            n = name.rsplit(", ", 1)[1]
            ratios = [a / b for a, b in zip(speeds[name], speeds[f"scvi-tools, {n}"], strict=True)]
            rows.append(
                {
                    "likelihood": likelihood,
                    "run": name,
                    "cells/s": spread(speeds[name]),
                    "times scvi-tools": spread(ratios),
                    "first epoch s": spread(run.first),
                    "not captured because": run.failure,
                }
            )
        # after each, so that an interrupted run keeps what it measured
        print(save("gpu", settings | {"rows": rows}))
    table = pd.DataFrame(
        [
            {
                "": f"{r['likelihood']}, {r['run']}",
                "cells/s": f"{r['cells/s']['median']:.0f} ({r['cells/s']['min']:.0f}-{r['cells/s']['max']:.0f})",
                "times scvi-tools": f"{r['times scvi-tools']['median']:.2f}",
                "first epoch s": f"{r['first epoch s']['median']:.2f}",
                "not captured because": (r["not captured because"] or "").split("\n")[0],
            }
            for r in rows
        ]
    )
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
