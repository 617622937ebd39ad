"""Time compiled and plain versions over minibatch sizes, genes and densities: the basis of the rule that selects them.

    python benchmarks/kernels.py

Likelihood: NB or ZINB value and all gradients, by compiled loops and by the plain distributions under autograd, both from
the same features. Input: the encoder's first product and its gradient, from compressed rows and as a dense float32 product
(including log1p and writing the dense minibatch). Plain versions are skipped if their temporaries would not fit.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from itertools import product
from statistics import median

import numpy as np
import pandas as pd
import torch
from _speed import alternate, save, set_threads
from scipy import sparse

from vxpress.core import rule
from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Batch, Cells, Counts
from vxpress.core.kernels.input_layer import input_product
from vxpress.core.model import VAE, build

HIDDEN, MOST_PLAIN_ENTRIES = 128, 6_000_000


def cells_of(n: int, g: int, density: float) -> Cells:
    """Draw cells with this share of nonzero entries; counts are mostly 1 and 2, as in real data."""
    rng = np.random.default_rng(0)
    x = sparse.random(n, g, density, format="csr", dtype=np.float32, random_state=0)
    x.data = rng.geometric(0.6, x.nnz).astype(np.float32)
    nothing = Covariates(torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0))
    library = torch.tensor(np.log(np.asarray(x.sum(1)).reshape(-1, 1) + 1), dtype=torch.float32)
    return Cells(Counts.from_scipy(x), library, nothing)


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """Measure the milliseconds of a call."""

    def call() -> float:
        start = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - start)

    return call


def likelihood(model: VAE, batch: Batch) -> None:
    """Compute value and gradients from fixed features."""
    z = torch.zeros(len(batch.rows), model.config.n_latent)
    model.log_likelihood({"z": z}, batch)["rna"].mean().backward()
    model.zero_grad()


def dense_input(batch: Batch, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Compute the dense first product, forward and backward."""
    x = batch.counts.dense().log1p()
    torch.nn.functional.linear(x, weight, bias).sum().backward()
    weight.grad = None


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 256, 1024, 4096])
    parser.add_argument("--genes", nargs="+", type=int, default=[500, 2_000, 20_000])
    parser.add_argument("--densities", nargs="+", type=float, default=[0.02, 0.1, 0.3, 0.5])
    parser.add_argument("--likelihoods", nargs="+", default=["nb", "zinb"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    set_threads(args.threads)
    rows = []
    for n, g, density in product(args.batch_sizes, args.genes, args.densities):
        cells = cells_of(n, g, density)
        batch = cells.batch(torch.arange(n))
        row: dict[str, float] = {"cells": n, "genes": g, "density": density}
        fits = n * g <= MOST_PLAIN_ENTRIES
        for distribution in args.likelihoods:
            config = ModelConfig(
                n_genes=g, likelihood=distribution, n_hidden=HIDDEN, norm="batch", condition_output=False
            )
            model = build(config, 0).train()

            def plain(model: VAE = model, batch: Batch = batch) -> None:
                with rule.plain():
                    likelihood(model, batch)

            functions = {"compiled": lambda model=model, batch=batch: likelihood(model, batch)} | (
                {"plain": plain} if fits else {}
            )
            row |= measured(functions, distribution, args.repeats)
        weight = torch.randn(g, HIDDEN).t().requires_grad_()
        bias = torch.zeros(HIDDEN)
        functions = {
            "sparse": lambda: input_product(batch, weight, bias, None).sum().backward(),  # noqa: B023 - called in this round
            "dense": lambda: dense_input(batch, weight, bias),  # noqa: B023
        }
        row |= measured(functions, "input", args.repeats)
        rows.append(row)
        print(
            pd.DataFrame([row]).to_string(index=False, float_format="{:.2f}".format, header=len(rows) == 1), flush=True
        )
    print(save("kernels", {"rows": rows}))


def measured(functions: dict[str, Callable[[], None]], label: str, repeats: int) -> dict[str, float]:
    """Measure the median milliseconds of each after a warm-up."""
    for function in functions.values():
        function()
    times = alternate({name: timed(function) for name, function in functions.items()}, repeats)
    return {f"{label} {name}": median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
