"""Time the jobs of a training step one by one, in one thread.

    python benchmarks/step_parts.py

The question is where the time of a step goes. The plan of a step of NB with layer norm is taken from a training on simulated cells;
then its jobs run one after another on the memory that the last step has left, each many times. A job finds its data in the cache
more often than in a whole step, so the sum is a little below the time of the step, which is given too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from _speed import save, set_threads, simulated
from training_speed import HIDDEN, LATENT, as_cells

from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.kernels import sparse_rows, step
from vxpress.core.kernels.frames import Plan, Round
from vxpress.core.model import build
from vxpress.core.training import train

# jobs by the names of their functions; every other one is among the small layers
PARTS = {
    "first layer": ("encode",),
    "gradient of the first layer and of the dispersions": ("dispersion_gradient", "table_gradient"),
    "weights in the order of the products": ("pack",),
    "dispersions and tables": ("dispersions", "fill_tables"),
    "logits, likelihood and its gradient": ("decode",),
    "gradient of the output layer": ("output_gradient",),
}
OTHERS = "norms, posterior and small layers"


class _Noted(Plan):
    """A plan that keeps the rounds it was made of."""

    last: tuple[Round, ...] = ()

    def __init__(self, *rounds: Round) -> None:
        super().__init__(*rounds)
        _Noted.last = rounds


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Return the least milliseconds of a call."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds)


def profile(cells: int, genes: int, repeats: int) -> dict[str, float]:
    """Return the milliseconds of every part of a step of ``cells`` cells, and of the whole."""
    data = as_cells(simulated(4 * cells, genes))
    config = ModelConfig(n_genes=genes, n_latent=LATENT, n_hidden=HIDDEN, norm="layer", condition_output=False)
    model, rows = build(config, 0), torch.arange(len(data))
    model.start_from(data, rows)
    with patch.object(step, "Plan", _Noted):
        settings = TrainConfig(max_epochs=2, batch_size=cells, refit_dispersion=False)
        train(model, data, rows, rows[:0], settings, seed=0)
    found = dict.fromkeys((*PARTS, OTHERS), 0.0)
    for steps, n_parts in (task for round_ in _Noted.last for task in round_):
        for job, frame in steps:
            name = job.function.__name__
            if job is sparse_rows.sort:
                continue
            part = next((part for part, names in PARTS.items() if name in names), OTHERS)
            # the first layer puts entries in gene order, at places that are counted before
            first = [[([(sparse_rows.sort, frame)], 1)]] if job is sparse_rows.encode else []
            alone = Plan(*first, [([(job, frame)], n_parts)])
            found[part] += fastest(lambda alone=alone: alone.run(1), repeats)
    whole = Plan(*_Noted.last)
    return found | {"whole": fastest(lambda: whole.run(1), repeats)}


def main() -> None:
    """Print the table and write ``results/step_parts.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--cells", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--repeats", type=int, default=100)
    args = parser.parse_args()
    set_threads(1)
    found = {str(n): profile(n, args.genes, args.repeats) for n in args.cells}
    for part in found[str(args.cells[0])]:
        print(f"{part:<55}" + "".join(f"{found[n][part]:>8.2f}" for n in found))
    print(save("step_parts", {"milliseconds": found}))


if __name__ == "__main__":
    main()
