"""Map a held-out batch with scArches in scvi-tools and store the latent means for ``benchmarks/mapping.py``.

    python benchmarks/mapping_scvi.py --threads 1

Needs scvi-tools (``pip install ".[benchmark]"``).  Architecture and query training are those of the scArches
tutorial of scvi-tools; the reference is trained for ``--epochs``. Writes one ``.npz`` per data set, batch and seed; existing
files are kept.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _mapping import HELD_OUT, load_task, tasks

ARCHITECTURE = {
    "use_layer_norm": "both",
    "use_batch_norm": "none",
    "encode_covariates": True,
    "dropout_rate": 0.2,
    "n_layers": 2,
}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}


def fit(name: str, held_out: str, seed: int, epochs: int, query_epochs: int) -> dict[str, np.ndarray]:
    """Fit one reference and map one query."""
    import scvi

    scvi.settings.seed = seed
    reference, query = load_task(name, held_out)
    scvi.model.SCVI.setup_anndata(reference, batch_key="batch")
    model = scvi.model.SCVI(reference, **ARCHITECTURE)
    start = (time.perf_counter(), time.process_time())
    model.train(max_epochs=epochs, **QUIET)
    middle = (time.perf_counter(), time.process_time())
    mapped = scvi.model.SCVI.load_query_data(query, model)
    mapped.train(max_epochs=query_epochs, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    latent_query = mapped.get_latent_representation()
    end = (time.perf_counter(), time.process_time())
    return {
        "reference": model.get_latent_representation(),
        "query": latent_query,
        "wall_reference": np.array(middle[0] - start[0]),
        "wall_query": np.array(end[0] - middle[0]),
        "cpu_reference": np.array(middle[1] - start[1]),
        "cpu_query": np.array(end[1] - middle[1]),
        "epochs": np.array([epochs, query_epochs]),
        "version": np.array(scvi.__version__),
    }


def main() -> None:
    """Fit every data set, batch and seed without a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(HELD_OUT))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--query-epochs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "cache")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for name, held_out in tasks(args.sets):
            path = args.out / f"scarches-{name}-{held_out.replace('/', '_')}-{seed}.npz"
            if path.exists():
                continue
            result = fit(name, held_out, seed, args.epochs, args.query_epochs)
            np.savez_compressed(path, **result)
            print(
                f"{path.name}: reference {result['cpu_reference']:.0f} s, query {result['cpu_query']:.0f} s of CPU time",
                flush=True,
            )


if __name__ == "__main__":
    main()
