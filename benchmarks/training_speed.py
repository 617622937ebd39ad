"""Compare training throughput with scvi-tools and with the floor, the time of the necessary arithmetic.

    python benchmarks/training_speed.py

Both train the same layers (one hidden layer of 128, 10 latent dimensions, batch norm) on the same simulated cells in
the same run, in turn, with the same threads; vxpress with the minibatch size of scvi-tools and with its default. The IWAE
bound that each reached on test cells is reported. The floor is measured in the same run, part by part, each by the faster
of the routines of torch and vxpress: the products of the input and output layers forward and backward (bfloat16 if the
processor supports it), one exp and one log per cell and gene (three for ZINB), and the optimizer's pass over the weights.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from statistics import median

import numpy as np
import pandas as pd
import torch
from _judge import judge
from _speed import alternate, save, set_threads, simulated, spread
from anndata import AnnData
from numba import njit, prange

from vxpress.core import rule
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts
from vxpress.core.kernels.input_layer import InputProduct
from vxpress.core.kernels.vector import exp32, log1p32
from vxpress.core.model import VAE, build
from vxpress.core.settings import preset_settings
from vxpress.core.training import train
from vxpress.core.training.optimizer import _CompiledAdam

HIDDEN, LATENT = 128, 10


def as_cells(adata: AnnData) -> Cells:
    """Counts and library in the format of the core."""
    library = np.log(np.asarray(adata.X.sum(1)))
    nothing = Covariates(torch.zeros(adata.n_obs, 0, dtype=torch.int64), torch.zeros(adata.n_obs, 0))
    return Cells(Counts.from_scipy(adata.X), torch.tensor(library, dtype=torch.float32), nothing)


class Ours:
    """vxpress on the same cells. Every run trains a new model; the last one is kept for scoring."""

    def __init__(self, cells: Cells, likelihood: str, batch_size: int, epochs: int, *, plain: bool = False) -> None:
        self.cells, self.epochs, self.plain = cells, epochs, plain
        self.config = ModelConfig(
            n_genes=cells.counts.n_genes, likelihood=likelihood, n_latent=LATENT, n_hidden=HIDDEN, norm="batch",
            condition_output=False,
        )  # fmt: skip
        self.batch_size = batch_size
        self.model: VAE | None = None

    def __call__(self) -> float:
        """Measure the cells per second."""
        rows, held_out = torch.arange(len(self.cells)), torch.arange(0)
        config = TrainConfig(max_epochs=self.epochs, batch_size=self.batch_size)
        self.model = build(self.config, 0)
        self.model.start_from(self.cells, rows)
        start = time.perf_counter()
        if self.plain:
            with rule.plain():
                train(self.model, self.cells, rows, held_out, config, seed=0)
        else:
            train(self.model, self.cells, rows, held_out, config, seed=0)
        return self.epochs * len(rows) / (time.perf_counter() - start)

    def iwae(self, test: AnnData) -> float:
        """Compute the bound in nats per test cell."""
        cells, model = as_cells(test), self.model

        def posterior(rows: np.ndarray):
            q = model.posterior(cells.batch(torch.from_numpy(rows)))["z"]
            return q.loc, q.scale

        def decoder(z: torch.Tensor, rows: np.ndarray):
            repeated = torch.from_numpy(rows).repeat(z.shape[0])
            distribution = model.likelihood(
                {"z": z.flatten(0, 1)}, cells.covariates[repeated], cells.log_library_n1[repeated]
            )
            base, shape = getattr(distribution, "base", distribution), (*z.shape[:2], -1)
            gate = distribution.gate_logits.reshape(shape) if base is not distribution else None
            return base.mean.reshape(shape), base.log_theta.exp().reshape(shape), gate

        return float(judge(test.X, posterior, decoder).iwae_n.mean())


class Scvi:
    """scvi-tools on the same cells."""

    def __init__(self, adata: AnnData, likelihood: str, epochs: int) -> None:
        self.adata, self.likelihood, self.epochs = adata.copy(), likelihood, epochs

    def __call__(self) -> float:
        """Measure the cells per second of the epochs alone."""
        import scvi
        from lightning.pytorch import Callback

        seconds: list[float] = []

        class Timer(Callback):
            def on_train_epoch_start(self, *_) -> None:
                self.start = time.perf_counter()

            def on_train_epoch_end(self, *_) -> None:
                seconds.append(time.perf_counter() - self.start)

        scvi.settings.seed = 0
        scvi.model.SCVI.setup_anndata(self.adata)
        self.model = scvi.model.SCVI(self.adata, gene_likelihood=self.likelihood)
        self.model.train(
            max_epochs=self.epochs, train_size=1.0, accelerator="cpu", enable_progress_bar=False, logger=False,
            callbacks=[Timer()],
        )  # fmt: skip
        return self.epochs * self.adata.n_obs / sum(seconds)

    def iwae(self, test: AnnData) -> float:
        """Compute the bound in nats per test cell."""
        module = self.model.module.eval()
        library = torch.log(torch.from_numpy(np.asarray(test.X.sum(1), dtype=np.float32)))

        def posterior(rows: np.ndarray):
            x = torch.from_numpy(test.X[rows].toarray())
            q = module.inference(x, torch.zeros(len(rows), 1, dtype=torch.int64))["qz"]
            return q.loc, q.scale

        def decoder(z: torch.Tensor, rows: np.ndarray):
            n = z.shape[0]
            batch = torch.zeros(n * len(rows), 1, dtype=torch.int64)
            px = module.generative(z.reshape(-1, z.shape[-1]), library[rows].repeat(n, 1), batch)["px"]
            shape = (n, len(rows), -1)
            gate = px.zi_logits.reshape(shape) if self.likelihood == "zinb" else None
            return px.mu.reshape(shape), px.theta.expand_as(px.mu).reshape(shape), gate

        return float(judge(test.X, posterior, decoder).iwae_n.mean())


def milliseconds(function: Callable[[], object], repeats: int = 60) -> float:
    """Measure the median time of a call after a warm-up."""
    for _ in range(5):
        function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * median(times)


@njit(parallel=True, error_model="numpy")
def _exp(x, out):
    for i in prange(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = exp32(x[i, j])


@njit(parallel=True, error_model="numpy")
def _log(x, out):
    for i in prange(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = log1p32(x[i, j])


def floor(cells: Cells, n: int, likelihood: str) -> dict[str, float]:
    """Measure the milliseconds of the necessary parts of a step of ``n`` cells."""
    g = cells.counts.n_genes
    dtype = rule.product_dtype(n, HIDDEN, g, training=True)
    f, w, x = torch.randn(n, HIDDEN).to(dtype), torch.randn(g, HIDDEN).to(dtype), torch.randn(n, g).to(dtype)
    out, d_w, d_f = (
        torch.empty(n, g, dtype=dtype),
        torch.empty(g, HIDDEN, dtype=dtype),
        torch.empty(n, HIDDEN, dtype=dtype),
    )
    output = sum(
        milliseconds(call)
        for call in (
            lambda: torch.mm(f, w.t(), out=out),
            lambda: torch.mm(x.t(), f, out=d_w),
            lambda: torch.mm(x, w, out=d_f),
        )
    )
    dense = milliseconds(lambda: torch.mm(x, w, out=d_f)) + milliseconds(lambda: torch.mm(x.t(), f, out=d_w))
    sparse = _sparse_input(cells, n)
    logits, kept = torch.randn(n, g), torch.empty(n, g)
    a, b = logits.abs().numpy(), kept.numpy()
    elementwise = min(milliseconds(lambda: torch.exp(logits, out=kept)), milliseconds(lambda: _exp(a, b)))
    elementwise += min(milliseconds(lambda: torch.log(kept, out=logits)), milliseconds(lambda: _log(a, b)))
    heads = 1 + (likelihood == "zinb")
    times = {
        "input products": min(dense, sparse),
        "output products": heads * output,
        "exp and log": (3 if likelihood == "zinb" else 1) * elementwise,
        "optimizer": _optimizer(g * HIDDEN * (1 + heads)),
    }
    return times | {"total": sum(times.values())}


def _sparse_input(cells: Cells, n: int) -> float:
    g = cells.n_genes
    weight, d_table = torch.randn(g, HIDDEN).t(), torch.zeros(g, HIDDEN)
    product = InputProduct(cells.batch(torch.arange(n)), weight, torch.zeros(HIDDEN), None)
    there = milliseconds(lambda: product.forward(ordered=True))
    d_out = product.forward(ordered=True)
    return there + milliseconds(lambda: product.add_gradient(d_out, d_table))


def _optimizer(n_weights: int) -> float:
    weight = torch.nn.Parameter(torch.randn(n_weights))
    weight.grad = torch.randn(n_weights)
    adam = torch.optim.AdamW([weight], fused=True)
    ours = _CompiledAdam(TrainConfig(max_epochs=1), weight, torch.zeros(n_weights), [0])
    loss = torch.zeros(())
    return min(milliseconds(adam.step), milliseconds(lambda: ours.step(loss, 0.01, 0.9)))


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--likelihoods", nargs="+", default=["nb", "zinb"])
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    adata = simulated(args.cells + 1_000, args.genes, n_block=args.cells + 1_000)
    adata, test = adata[: args.cells].copy(), adata[args.cells :].copy()
    cells = as_cells(adata)
    density = len(cells.counts.data) / (len(cells) * cells.n_genes)
    print(f"{args.cells} x {args.genes}, {density:.1%} not zero, {args.threads} threads")
    set_threads(args.threads)
    rows, default = [], preset_settings().sized(args.cells).batch_size
    for likelihood in args.likelihoods:
        runs: dict[str, Scvi | Ours] = {
            "scvi-tools, 128": Scvi(adata, likelihood, args.epochs),
            "ours, 128": Ours(cells, likelihood, 128, args.epochs),
            f"ours, {default}": Ours(cells, likelihood, default, args.epochs),
            "ours without compiled loops, 128": Ours(cells, likelihood, 128, 1, plain=True),
        }
        Ours(cells, likelihood, 128, 1)(), Ours(cells, likelihood, default, 1)()
        print(f"{likelihood}: {args.repeats} rounds, about {20 * args.epochs // 6 + 5} s each", flush=True)
        speeds = alternate(runs, args.repeats)
        # the model of the one-epoch warm-up is not scored
        floors = {n: floor(cells, n, likelihood) for n in {128, default}}
        for name, run in runs.items():
            n = int(name.rsplit(", ", 1)[1])
            cells_per_s = spread(speeds[name])
            step = 1e3 * n / cells_per_s["median"]
            ratios = [a / b for a, b in zip(speeds[name], speeds["scvi-tools, 128"], strict=True)]
            rows.append(
                {
                    "likelihood": likelihood,
                    "run": name,
                    "cells/s": cells_per_s,
                    "times scvi-tools": spread(ratios),
                    "step_ms": step,
                    "floor_ms": floors[n],
                    "over the floor": step / floors[n]["total"],
                    "epochs": run.epochs,
                    "IWAE": run.iwae(test),
                }
            )
    table = pd.DataFrame(
        [
            {
                "": f"{r['likelihood']}, {r['run']}",
                "cells/s": f"{r['cells/s']['median']:.0f} ({r['cells/s']['min']:.0f}-{r['cells/s']['max']:.0f})",
                "times scvi-tools": f"{r['times scvi-tools']['median']:.1f} ({r['times scvi-tools']['min']:.1f}-{r['times scvi-tools']['max']:.1f})",
                "step ms": f"{r['step_ms']:.2f}",
                "floor ms": f"{r['floor_ms']['total']:.2f}",
                "x floor": f"{r['over the floor']:.2f}",
                "epochs": r["epochs"],
                "IWAE": f"{r['IWAE']:.2f}",
            }
            for r in rows
        ]
    )
    print(table.to_string(index=False))
    print(save("training_speed", {"density": density, "rows": rows}))


if __name__ == "__main__":
    main()
