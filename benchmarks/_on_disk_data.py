"""Simulated cells on disk, of any number: sorted by batch and cell type, written in blocks.

    python benchmarks/_on_disk_data.py FOLDER --cells 1000000

Writes ``cells.h5ad``, ``cells.zarr`` (format 3, sharded) and, with Python 3.12 or later and annbatch,
``collection.zarr`` (cells in the order of the file) and ``shuffled.zarr`` (shuffled by annbatch). ``test.h5ad`` holds
further cells of the same distribution, in random order. Existing files are kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from numba import njit
from scipy import sparse

BATCHES, TYPES, PROGRAMS = 10, 20, 6
TEST_CELLS = 2_000
BLOCK = 10_000
# as annbatch's: a chunk holds 64 cells; one shard, which is written at once, holds a multiple of them
CELLS_PER_CHUNK, CHUNKS_PER_SHARD = 64, 1_024
HDF5_CHUNK = 32_768


@njit(cache=True)
def _draw(log_share: np.ndarray, library: np.ndarray, theta: np.ndarray, uniform: np.ndarray, out: np.ndarray) -> None:
    """Draw negative binomial counts by inversion; shares are the softmax of ``log_share`` over genes."""
    n, genes = log_share.shape
    for i in range(n):
        total = 0.0
        for g in range(genes):
            out[i, g] = np.exp(log_share[i, g])
            total += out[i, g]
        scale = library[i] / total
        for g in range(genes):
            mean, size, u = out[i, g] * scale, theta[g], uniform[i, g]
            p = np.exp(-size * np.log1p(mean / size))
            below, count, ratio = p, 0, mean / (mean + size)
            while u > below and p > 1e-12:
                p *= ratio * (count + size) / (count + 1)
                count += 1
                below += p
            out[i, g] = count


@dataclass(frozen=True)
class Simulation:
    """Types with marker genes, batches that change every gene, and programs that vary within types."""

    base_g: np.ndarray
    type_kg: np.ndarray
    batch_bg: np.ndarray
    program_dg: np.ndarray
    theta_g: np.ndarray
    share_bk: np.ndarray
    library: float

    @classmethod
    def of(cls, genes: int, seed: int) -> Simulation:
        """Draw the parameters."""
        rng = np.random.default_rng(seed)
        marker_kg = rng.random((TYPES, genes)) < 0.1
        return cls(
            rng.normal(0.0, 1.2, genes),
            np.where(marker_kg, rng.normal(0.5, 1.2, (TYPES, genes)), 0.0),
            rng.normal(0.0, 0.25, (BATCHES, genes)),
            rng.normal(0.0, 0.15, (PROGRAMS, genes)),
            2.0 * np.exp(rng.normal(0.0, 0.5, genes)),
            rng.dirichlet(np.full(TYPES, 3.0), BATCHES),
            0.135 * genes,
        )

    def labels(self, cells: int) -> tuple[np.ndarray, np.ndarray]:
        """Return batch and type of every cell, sorted by batch and then by type."""
        ends = np.rint(np.cumsum(self.share_bk.ravel() / BATCHES) * cells).astype(int)
        group = np.searchsorted(ends, np.arange(cells), side="right").clip(max=BATCHES * TYPES - 1)
        return group // TYPES, group % TYPES

    def counts(self, batch_n: np.ndarray, type_n: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
        """Draw the counts of some cells."""
        n, genes = len(batch_n), len(self.base_g)
        log_share = rng.normal(size=(n, PROGRAMS)) @ self.program_dg
        log_share += self.base_g
        log_share += self.type_kg[type_n]
        log_share += self.batch_bg[batch_n]
        library = self.library * np.exp(rng.normal(-0.08, 0.4, n))
        out = np.empty((n, genes))
        _draw(log_share, library, self.theta_g, rng.random((n, genes)), out)
        return sparse.csr_matrix(out.astype(np.float32))

    def obs(self, batch_n: np.ndarray, type_n: np.ndarray) -> pd.DataFrame:
        """Return the table of cells."""
        names = ("batch", batch_n, BATCHES), ("cell_type", type_n, TYPES)
        columns = {key: pd.Categorical.from_codes(codes, [f"{key}_{i}" for i in range(n)]) for key, codes, n in names}
        return pd.DataFrame(columns, index=pd.RangeIndex(len(batch_n)).astype(str))

    def var(self) -> pd.DataFrame:
        """Return the table of genes."""
        return pd.DataFrame(index=pd.RangeIndex(len(self.base_g)).astype(str))


def write(folder: Path, cells: int, genes: int, seed: int = 0) -> None:
    """Write all files that are missing; what is written counts only once it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    simulation = Simulation.of(genes, seed)
    makers = {
        "test.h5ad": lambda path: _test(path, simulation, seed),
        "cells.h5ad": lambda path: _h5ad(path, simulation, cells, seed),
        "cells.zarr": lambda path: _zarr(path, folder / "cells.h5ad"),
        "collection.zarr": lambda path: _collection(path, folder / "cells.h5ad", shuffle=False),
        "shuffled.zarr": lambda path: _collection(path, folder / "cells.h5ad", shuffle=True),
    }
    for name, make in makers.items():
        if (folder / name).exists():
            continue
        partial = folder / f"partial-{name}"
        if partial.is_dir():
            shutil.rmtree(partial)
        try:
            make(partial)
        except ImportError as error:
            print(f"{name}: left out, {error}")
            continue
        partial.rename(folder / name)
        print(f"{name}: {size(folder / name) / 1e9:.2f} GB", flush=True)
    (folder / "about.json").write_text(json.dumps({"cells": cells, "genes": genes, "seed": seed}) + "\n")


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def _test(path: Path, simulation: Simulation, seed: int) -> None:
    rng = np.random.default_rng([seed, 1])
    group = rng.choice(BATCHES * TYPES, TEST_CELLS, p=simulation.share_bk.ravel() / BATCHES)
    batch_n, type_n = group // TYPES, group % TYPES
    counts = simulation.counts(batch_n, type_n, rng)
    ad.AnnData(counts, obs=simulation.obs(batch_n, type_n), var=simulation.var()).write_h5ad(path)


def _h5ad(path: Path, simulation: Simulation, cells: int, seed: int) -> None:
    batch_n, type_n = simulation.labels(cells)
    obs, var = simulation.obs(batch_n, type_n), simulation.var()
    ad.AnnData(sparse.csr_matrix((cells, len(var)), dtype=np.float32), obs=obs, var=var).write_h5ad(path)

    def blocks() -> Iterator[sparse.csr_matrix]:
        for i, start in enumerate(range(0, cells, BLOCK)):
            rows = slice(start, start + BLOCK)
            yield simulation.counts(batch_n[rows], type_n[rows], np.random.default_rng([seed, 2, i]))

    with h5py.File(path, "r+") as file:
        x = file["X"]
        for name, dtype in (("data", np.float32), ("indices", np.int32)):
            del x[name]
            x.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(HDF5_CHUNK,))
        ends = [np.zeros(1, np.int64)]
        for block in blocks():
            stop = int(ends[-1][-1]) + block.nnz
            for name in ("data", "indices"):
                x[name].resize((stop,))
                x[name][stop - block.nnz :] = getattr(block, name)
            ends.append(block.indptr[1:] + ends[-1][-1])
        del x["indptr"]
        x["indptr"] = np.concatenate(ends)


def _zarr(path: Path, h5ad: Path) -> None:
    import zarr
    from zarr.codecs import BloscCodec

    with h5py.File(h5ad, "r") as file, ad.settings.override(zarr_write_format=3):
        x = file["X"]
        obs, var = ad.io.read_elem(file["obs"]), ad.io.read_elem(file["var"])
        shape = tuple(x.attrs["shape"])
        ad.AnnData(sparse.csr_matrix(shape, dtype=np.float32), obs=obs, var=var).write_zarr(path)
        group = zarr.open_group(path, mode="r+", use_consolidated=False)["X"]
        chunk = max(1, CELLS_PER_CHUNK * len(x["data"]) // shape[0])
        shard = chunk * CHUNKS_PER_SHARD
        codec = BloscCodec(cname="lz4", clevel=3, shuffle="shuffle")
        for name in ("data", "indices"):
            old = x[name]
            del group[name]
            new = group.create_array(
                name, shape=old.shape, dtype=old.dtype, chunks=(chunk,), shards=(shard,), compressors=(codec,)
            )
            for start in range(0, len(old), shard):
                new[start : start + shard] = old[start : start + shard]
        indptr = x["indptr"][:]
        del group["indptr"]
        group.create_array("indptr", data=indptr)
        zarr.consolidate_metadata(path)


def _collection(path: Path, h5ad: Path, *, shuffle: bool) -> None:
    from annbatch import DatasetCollection

    # memory for a collection grows with its datasets, so there are several of them
    settings: dict[str, Any] = {"dataset_size": 500_000, "shuffle": shuffle, "rng": np.random.default_rng(0)}
    DatasetCollection(path, mode="w").add_adatas([h5ad], **settings)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.folder, args.cells, args.genes, args.seed)


if __name__ == "__main__":
    main()
