"""Fit cells that stay on disk, compared with the same cells in memory and with scvi-tools on an annbatch collection.

    python benchmarks/_on_disk_data.py DATA --cells 1000000
    python benchmarks/on_disk.py DATA --parts readers order fits scvi
    python benchmarks/on_disk.py MORE_DATA --parts large

``DATA`` is a folder of ``_on_disk_data.py``; its cells are sorted by batch and type. Every run is a process of its own.

``readers``: cells per second of each way to read the cells once, in blocks in random order, mixed in a buffer.
``order``: how much minibatches of several block and buffer sizes resemble minibatches of a full shuffle.
``fits``: ``fit_vae`` and ``encode`` of all cells, in memory and from each kind of file: seconds, peak memory, and the
held-out ELBO of the test cells, for several seeds. ``scvi``: the same with ``setup_annbatch``; ``--scvi-python`` is a
Python with scvi-tools and a version of annbatch that it supports. ``large``: one fit of more cells.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

STORES = {"h5ad": "cells.h5ad", "zarr": "cells.zarr", "collection": "collection.zarr", "shuffled": "shuffled.zarr"}
TEST = "test.h5ad"


class Memory:
    """Largest memory of this process: resident (as the system counts it) and its anonymous part, looked at every 20 ms.

    The anonymous part leaves out pages of files, which the system gives up when it needs memory.
    """

    def __init__(self) -> None:
        self.anonymous = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        Path("/proc/self/clear_refs").write_text("5")
        self.before = self._read("RssAnon")
        self._thread.start()

    @staticmethod
    def _read(name: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        return 0

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.anonymous = max(self.anonymous, self._read("RssAnon"))

    def now(self) -> int:
        """Return the anonymous memory at present."""
        return self._read("RssAnon")

    def stop(self) -> dict[str, int]:
        """Return the peaks in bytes."""
        self._done.set()
        self._thread.join()
        return {"peak": self._read("VmHWM"), "anonymous": self.anonymous, "before": self.before}


class Clock:
    """Seconds of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Any:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def _subset(adata: Any, cells: int) -> Any:
    return adata[:cells] if cells < adata.n_obs else adata


def fit_child(args: argparse.Namespace) -> dict[str, Any]:
    """Fit and encode once, in memory or from a file."""
    import anndata as ad
    import numpy as np
    from _speed import set_threads, simulated
    from fit_ours import judge_fit

    import vxpress as vx

    set_threads(args.threads)
    vx.tl.fit_vae(simulated(500, args.genes), "batch", max_epochs=1, denoised=False, device="cpu")
    memory, clock = Memory(), Clock()

    with clock("open"):
        if args.store == "memory":
            adata = ad.read_h5ad(args.data / STORES["h5ad"])
        else:
            adata = vx.io.open_store(args.data / STORES[args.store])
    annotation = memory.now() - memory.before
    with clock("fit"):
        vx.tl.fit_vae(adata, "batch", denoised=False, device="cpu", rng=args.seed, max_epochs=args.max_epochs)
    with clock("encode"):
        vx.tl.encode(adata, key_added="encoded", device="cpu")
    peaks = memory.stop()
    scores, _ = judge_fit(adata, _test(args), n_samples=args.samples)
    stored = adata.uns["vae"]
    return {
        "store": args.store, "seed": args.seed, "cells": adata.n_obs, "seconds": clock.seconds, "memory": peaks | {"opened": annotation},
        "epochs": len(stored["history"]["lr"]), "elbo": float(scores.elbo_n.mean()), "iwae": float(scores.iwae_n.mean()),
        "elbo_sem": float(scores.elbo_n.std() / np.sqrt(len(scores.elbo_n))),
        "elbo_train": float(stored["history"]["elbo_train"][-1]),
        "elbo_validation": float(stored["history"]["elbo_validation"][-1]),
    }  # fmt: skip


def _test(args: argparse.Namespace) -> Any:
    import anndata as ad

    return ad.read_h5ad(args.data / TEST)[: args.test_cells].copy()


def _scvi_collection(args: argparse.Namespace, settings: str) -> Path:
    return args.data / f"scvi-{'shuffled' if json.loads(settings).get('shuffle') else 'sorted'}.zarr"


def collection_child(args: argparse.Namespace) -> dict[str, Any]:
    """Make the collection of scvi-tools."""
    import scvi

    memory, clock = Memory(), Clock()
    path, settings = _scvi_collection(args, args.settings), json.loads(args.settings)
    with clock("collection"):
        scvi.model.SCVI.setup_annbatch(str(path), [str(args.data / STORES["h5ad"])], "batch", **settings)
    return {"settings": settings, "seconds": clock.seconds, "memory": memory.stop()}


def scvi_child(args: argparse.Namespace) -> dict[str, Any]:
    """Fit scvi-tools to a collection of annbatch, by default with its own settings, and encode all cells."""
    import numpy as np
    import scvi
    import torch
    from _judge import judge

    torch.set_num_threads(args.threads)
    scvi.settings.seed = args.seed
    warnings.filterwarnings("ignore")
    memory, clock = Memory(), Clock()
    settings = json.loads(args.settings)
    with clock("open"):
        module = scvi.model.SCVI.setup_annbatch(
            str(_scvi_collection(args, args.settings)), batch_key="batch", rebuild=False, **settings
        )
    model = scvi.model.SCVI(registry=module.registry)
    train: dict[str, Any] = {} if args.epochs is None else {"max_epochs": args.epochs}
    with clock("fit"):
        model.train(datamodule=module, accelerator="cpu", enable_progress_bar=False, logger=False, **train)
    with clock("encode"):
        model.get_latent_representation(dataloader=module.inference_dataloader())
    peaks = memory.stop()

    test, network = _test(args), model.module.eval()
    codes = np.searchsorted(module.batch_labels, test.obs["batch"].astype(str).to_numpy())
    library = torch.log(torch.from_numpy(np.asarray(test.X.sum(1), dtype=np.float32)))

    def posterior(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        out = network.inference(torch.from_numpy(test.X[rows].toarray()), torch.from_numpy(codes[rows])[:, None])
        return out["qz"].loc, out["qz"].scale

    def decoder(z: torch.Tensor, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        n = z.shape[0]
        index = torch.from_numpy(codes[rows])[:, None].repeat(n, 1)
        px = network.generative(z.reshape(-1, z.shape[-1]), library[rows].repeat(n, 1), index)["px"]
        shape = (n, len(rows), -1)
        return px.mu.reshape(shape), px.theta.expand_as(px.mu).reshape(shape), px.zi_logits.reshape(shape)

    scores = judge(test.X.tocsr(), posterior, decoder, n_samples=args.samples)
    return {
        "settings": settings, "epochs_given": args.epochs, "seed": args.seed, "cells": module.n_obs, "epochs": model.trainer.current_epoch,
        "batch_size": module.batch_size, "seconds": clock.seconds, "memory": peaks,
        "elbo": float(scores.elbo_n.mean()), "iwae": float(scores.iwae_n.mean()),
        "elbo_sem": float(scores.elbo_n.std() / np.sqrt(len(scores.elbo_n))), "version": scvi.__version__,
    }  # fmt: skip


def _orders(n: int, block: int, buffer: int, batch_size: int, seed: int) -> dict[str, Callable[[], Iterable[Any]]]:
    """Return the minibatches of an epoch by every package, as row numbers."""
    import numpy as np
    import torch
    from annbatch.samplers import RandomSampler
    from scdataset import BlockShuffling, scDataset

    from vxpress.core.data.sampler import ByBlock, Shuffled, number_of_minibatches

    rows, k = torch.arange(n), number_of_minibatches(n, batch_size)

    def of_annbatch() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        sampler = RandomSampler(chunk_size=block, preload_nchunks=buffer, batch_size=batch_size, rng=rng)
        for request in sampler.sample(n):
            read = np.concatenate([np.arange(part.start, part.stop) for part in request["requests"]])
            yield from (read[split] for split in request["splits"])

    def of_scdataset() -> Iterable[np.ndarray]:
        blocks = BlockShuffling(block_size=block)
        return scDataset(np.arange(n), blocks, batch_size, fetch_factor=block * buffer // batch_size, seed=seed)

    return {
        "shuffled": Shuffled(rows, k, seed).epoch,
        "vxpress": ByBlock(rows, k, seed, block=block, buffer=buffer).epoch,
        "annbatch": of_annbatch,
        "scDataset": of_scdataset,
    }


def order_child(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare the types and batches in a minibatch with those of a minibatch of a full shuffle."""
    import anndata as ad
    import h5py
    import numpy as np

    with h5py.File(args.data / STORES["h5ad"], "r") as file:
        obs = ad.io.read_elem(file["obs"])
    group_n = obs.groupby(["batch", "cell_type"], observed=True).ngroup().to_numpy()
    share_k = np.bincount(group_n) / len(group_n)

    def chi_square(part: Any) -> float:
        expected_k = len(part) * share_k
        count_k = np.bincount(group_n[np.asarray(part)], minlength=len(share_k))
        return float((((count_k - expected_k) ** 2) / expected_k).sum() / (len(share_k) - 1))

    out = []
    for batch_size, block, buffer in ((512, 128, 1_441), (512, 128, 256), (4_096, 256, 32)):
        for name, epoch in _orders(len(group_n), block, buffer, batch_size, args.seed).items():
            if name == "vxpress" or buffer < 1_000:
                ratio = float(np.mean([chi_square(part) for part in epoch()]))
                out.append({"order": name, "batch_size": batch_size, "block": block, "buffer": buffer, "ratio": ratio})
    return out


# rows that are read together, how many such blocks are mixed, and the size of a minibatch, for all readers
BLOCK, BUFFER, MINIBATCH = 128, 256, 512


def _source(adata: Any) -> Any:
    """Return the cells of an AnnData as a fit reads them, but never load them, even if they are few."""
    import numpy as np
    import torch

    from vxpress.bridge.read import survey
    from vxpress.bridge.read.counts import read_counts
    from vxpress.core.covariates import Covariates

    survey.MEMORY_BYTES = 0
    n = adata.n_obs
    covariates = Covariates(torch.zeros(n, 0, dtype=torch.long), torch.zeros(n, 0))
    return read_counts(adata, None, np.ones(adata.n_vars, dtype=bool)).cells(torch.zeros(n, 1), covariates)


def _by_vxpress(args: argparse.Namespace, store: str, codecs: str) -> Iterator[int]:
    import torch

    import vxpress as vx
    from vxpress.bridge.read import annbatch, zarr_codecs
    from vxpress.core.data.sampler import number_of_minibatches

    for module, left_out in ((zarr_codecs, codecs != "zarrs"), (annbatch, args.reader.startswith("vxpress alone"))):
        if left_out:
            module.find_spec = lambda name: find_spec(name) if name == "zarr" else None
    source = _source(vx.io.open_store(args.data / STORES[store]))
    # windows of the same number of cells as the other readers
    source.limit = source.n_bytes // len(source) * BLOCK * BUFFER
    rows = torch.arange(len(source))
    sampler = source.sampler(rows, number_of_minibatches(len(rows), MINIBATCH), args.seed)
    yield 0
    for batch in source.sparse_batches(sampler.epoch()):
        yield len(batch.rows)


def _by_annbatch(args: argparse.Namespace, store: str, codecs: str) -> Iterator[int]:
    import numpy as np
    from annbatch import DatasetCollection, Loader

    collection = DatasetCollection(args.data / STORES[store], mode="r")
    loader = Loader(
        chunk_size=BLOCK, preload_nchunks=BUFFER, batch_size=MINIBATCH, shuffle=True, drop_last=False, to=None,
        preload_to_gpu=False, rng=np.random.default_rng(args.seed),
    ).use_collection(collection)  # fmt: skip
    yield 0
    for batch in loader:
        yield batch["X"].shape[0]


def _by_scdataset(args: argparse.Namespace, store: str, codecs: str) -> Iterator[int]:
    import anndata as ad
    import h5py
    import zarr
    from scdataset import BlockShuffling, scDataset

    path = args.data / STORES[store]
    adata = ad.AnnData(
        ad.io.sparse_dataset((h5py.File(path) if store == "h5ad" else zarr.open_group(path, mode="r"))["X"])
    )
    yield 0
    order, factor = BlockShuffling(block_size=BLOCK), BLOCK * BUFFER // MINIBATCH
    for batch in scDataset(
        adata, order, MINIBATCH, fetch_factor=factor, fetch_transform=lambda part: part.to_memory().X
    ):
        yield batch.shape[0]


READERS: dict[str, Callable[[argparse.Namespace, str, str], Iterator[int]]] = {
    "vxpress": _by_vxpress, "vxpress alone": _by_vxpress, "annbatch": _by_annbatch, "scDataset": _by_scdataset,
}  # fmt: skip
ALL_READERS = (
    "vxpress alone:h5ad:", "vxpress alone:zarr:zarr", "vxpress alone:zarr:zarrs", "vxpress:zarr:zarrs",
    "vxpress alone:collection:zarr", "vxpress alone:collection:zarrs", "vxpress:collection:zarrs",
    "annbatch:collection:zarrs", "annbatch:collection:zarr", "scDataset:h5ad:", "scDataset:zarr:zarrs", "scDataset:zarr:zarr",
)  # fmt: skip


def reader_child(args: argparse.Namespace) -> dict[str, Any]:
    """Read minibatches in one way, until enough cells were read or all of them."""
    import torch
    import zarr

    torch.set_num_threads(args.threads)
    reader, store, codecs = args.reader.split(":")
    pipelines = {"zarrs": "zarrs.ZarrsCodecPipeline", "zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline"}
    if codecs and not reader.startswith("vxpress"):
        zarr.config.set({"codec_pipeline.path": pipelines[codecs]})
    memory, n = Memory(), 0
    minibatches = READERS[reader](args, store, codecs)
    next(minibatches)
    start, used = time.perf_counter(), time.process_time()
    for size in minibatches:
        n += size
        if n >= args.reader_cells:
            break
    seconds, used = time.perf_counter() - start, time.process_time() - used
    return {
        "reader": reader, "store": store, "codecs": codecs, "seed": args.seed, "cells_per_second": n / seconds,
        "cells_per_cpu_second": n / used, "memory": memory.stop(),
    }  # fmt: skip


def readers(args: argparse.Namespace) -> Iterator[Any]:
    """Read the same cells in every way, in turn."""
    for seed in args.seeds:
        for reader in args.readers:
            yield child(args, "reader", reader=reader, seed=seed)


def child(args: argparse.Namespace, what: str, python: str = sys.executable, **settings: Any) -> Any:
    """Run one measurement in a new process."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if value is not None]
    shared = [
        f"--{name}={getattr(args, name.replace('-', '_'))}" for name in ("threads", "genes", "samples", "reader-cells")
    ]
    command = [python, __file__, str(args.data), "--child", what, f"--test-cells={args.test_cells}", *shared, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found), flush=True)
    return found


def order(args: argparse.Namespace) -> Iterator[Any]:
    """Measure the randomness of minibatches."""
    yield from child(args, "order")


def fits(args: argparse.Namespace) -> Iterator[Any]:
    """Fit from every store, with the stores in turn."""
    for seed in args.seeds:
        for store in args.stores:
            yield child(args, "fit", store=store, seed=seed, max_epochs=args.max_epochs)


def large(args: argparse.Namespace) -> Iterator[Any]:
    """Fit once from every store on disk."""
    for store in args.stores:
        if store != "memory":
            yield child(args, "fit", store=store, seed=args.seeds[0], max_epochs=args.max_epochs)


def scvi(args: argparse.Namespace) -> Iterator[Any]:
    """Fit scvi-tools, to cells in the order of the file and to shuffled ones; collections are made before."""
    for settings in args.scvi_settings:
        given = {"settings": settings, "epochs": args.epochs, "seed": args.seeds[0]}
        if not _scvi_collection(args, settings).exists():
            child(args, "collection", args.scvi_python, **given)
        yield child(args, "scvi", args.scvi_python, **given)


CHILDREN: dict[str, Callable[[argparse.Namespace], Any]] = {
    "fit": fit_child, "scvi": scvi_child, "collection": collection_child, "order": order_child, "reader": reader_child,
}  # fmt: skip
PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Any]]] = {
    "readers": readers, "order": order, "fits": fits, "scvi": scvi, "large": large,
}  # fmt: skip
# what tells the runs of a part apart
KEYS = ("order", "reader", "store", "codecs", "settings", "epochs_given", "batch_size", "block", "buffer", "seed")


def record(part: str, run: dict[str, Any], setting: dict[str, Any]) -> None:
    """Add a run to the results; it replaces the same run of before. Runs of other data are removed."""
    from _speed import RESULTS, save

    path = RESULTS / "on_disk.json"
    known = json.loads(path.read_text()).get(part, {}) if path.exists() else {}
    kept = known.get("runs", []) if {key: known.get(key) for key in setting} == setting else []
    kept = [other for other in kept if any(other.get(key) != run.get(key) for key in KEYS)]
    save("on_disk", {part: {"runs": [*kept, run], **setting}})


def main() -> None:
    """Run the requested parts and write ``results/on_disk.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--stores", nargs="+", default=["memory", *STORES], choices=["memory", *STORES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--readers", nargs="+", default=ALL_READERS, help="READER:STORE:DECODER")
    parser.add_argument("--reader-cells", type=int, default=500_000, help="cells that each reader reads")
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--test-cells", type=int, default=1_000)
    parser.add_argument("--samples", type=int, default=100, help="samples of the bound on test cells")
    parser.add_argument("--scvi-python", default=sys.executable)
    parser.add_argument("--scvi-settings", nargs="+", default=['{"shuffle": false}', '{"shuffle": true}'])
    parser.add_argument("--max-epochs", type=int, help="epochs of vxpress; by default its own choice")
    parser.add_argument("--epochs", type=int, help="epochs of scvi-tools; by default its own choice")
    parser.add_argument("--dry", action="store_true", help="do not save the results")
    for name in ("child", "store", "settings", "seed", "reader"):
        parser.add_argument(
            f"--{name}",
            type=int if name == "seed" else str,
            default=0 if name == "seed" else None,
            help=argparse.SUPPRESS,
        )
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.child:
        found = CHILDREN[args.child](args)
        print(json.dumps(found))
        return
    setting = {"data": json.loads((args.data / "about.json").read_text()), "threads": args.threads}
    for part in args.parts:
        for run in PARTS[part](args):
            if not args.dry:
                record(part, run, setting)


if __name__ == "__main__":
    main()
