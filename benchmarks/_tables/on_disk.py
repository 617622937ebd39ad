"""Cells that stay on disk."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from _tables.registry import Row, mean_range, number, pick, ranged, results, spread, table

STORES = {
    "memory": "in memory",
    "h5ad": "`.h5ad`",
    "zarr": "zarr, sharded",
    "collection": "annbatch collection, sorted",
    "shuffled": "annbatch collection, shuffled",
}
READERS = {"vxpress alone": "vxpress", "vxpress": "vxpress, through annbatch"}
DECODERS = {"": "", "zarr": "zarr's own", "zarrs": "zarrs"}
READ = "python benchmarks/on_disk.py DATA --parts readers"
FIT = "python benchmarks/on_disk.py DATA --parts fits"


def runs(part: str) -> list[dict[str, Any]]:
    """Return the runs of a part."""
    return results("on_disk")[part]["runs"]


def _range(values: Sequence[float], digits: int) -> str:
    values = list(values)
    if len(values) == 1:
        return number(values[0], digits)
    return spread({"median": median(values), "min": min(values), "max": max(values)}, digits)


def _gigabytes(found: Sequence[dict[str, Any]], name: str) -> str:
    return number(max(run["memory"][name] for run in found) / 1e9, 2)


def seconds(run: dict[str, Any]) -> float:
    """Return the time of fit_vae and encode, with what was read for them before."""
    return sum(run["seconds"][name] for name in ("open", "fit", "encode") if name in run["seconds"])


@table("on-disk-readers", ("on_disk", "readers"), command=READ, kinds=["time"])
def readers() -> list[Row]:
    """Cells per second of each way to read."""
    out: list[Row] = [
        ["reader", "store", "decoder of zarr", "cells/s", "cells per second of processor time", "peak memory, GB"]
    ]
    ways = dict.fromkeys((run["reader"], run["store"], run["codecs"]) for run in runs("readers"))
    for reader, store, codecs in ways:
        found = pick(runs("readers"), reader=reader, store=store, codecs=codecs)
        rates = (_range([run[key] for run in found], 0) for key in ("cells_per_second", "cells_per_cpu_second"))
        out.append([READERS.get(reader, reader), STORES[store], DECODERS[codecs], *rates, _gigabytes(found, "peak")])
    return out


@table("on-disk-order", ("on_disk", "order"), command="python benchmarks/on_disk.py DATA --parts order")
def order() -> list[Row]:
    """Composition of minibatches."""
    out: list[Row] = [
        [
            "order",
            "cells in a block",
            "cells mixed at a time",
            "cells in a minibatch",
            "variance, times that of a full shuffle",
        ]
    ]
    for run in runs("order"):
        full = run["order"] == "shuffled"
        sizes = ["", "all"] if full else [f"{run['block']:,}", f"{run['block'] * run['buffer']:,}"]
        name = "full shuffle" if full else run["order"]
        out.append([name, *sizes, f"{run['batch_size']:,}", number(run["ratio"], 1)])
    return out


def _fit_row(name: str, found: Sequence[dict[str, Any]], base: float) -> Row:
    total = [seconds(run) for run in found]
    return [
        f"{found[0]['cells']:,}",
        name,
        _range([run["seconds"]["fit"] for run in found], 0),
        _range([run["seconds"]["encode"] for run in found], 0),
        number(median(total) / base, 2),
        _gigabytes(found, "peak"),
        _gigabytes(found, "anonymous"),
        mean_range([run["elbo"] for run in found], 2),
        mean_range([run["iwae"] for run in found], 2),
    ]


@table("on-disk-fits", ("on_disk", "fits"), ("on_disk", "large"), command=FIT, kinds=["time", "likelihood"])
def fits() -> list[Row]:
    """Time, memory and likelihood of fits."""
    out: list[Row] = [
        [
            "cells", "counts", "`fit_vae`, s", "`encode`, s", "both and opening, times in memory", "peak memory, GB",
            "of it anonymous, GB", "ELBO of test cells", "IWAE",
        ]
    ]  # fmt: skip
    base = median(seconds(run) for run in pick(runs("fits"), store="memory"))
    for part in ("fits", "large"):
        for store, name in STORES.items():
            found = pick(runs(part), store=store)
            if found:
                scale = found[0]["cells"] / runs("fits")[0]["cells"]
                out.append(_fit_row(name, found, base * scale))
    return out


@table(
    "on-disk-scvi", ("on_disk", "fits"), ("on_disk", "scvi"), command="python benchmarks/on_disk.py DATA --parts fits scvi",
    kinds=["time", "likelihood"],
)  # fmt: skip
def scvi() -> list[Row]:
    """vxpress and scvi-tools on a collection."""
    out: list[Row] = [
        [
            "run",
            "epochs",
            "minibatch",
            "fit and encode, s",
            "times vxpress",
            "peak memory, GB",
            "ELBO of test cells",
            "IWAE",
        ]
    ]
    ours = pick(runs("fits"), store="collection")
    base = median(seconds(run) for run in ours)
    epochs = ranged(min(run["epochs"] for run in ours), max(run["epochs"] for run in ours), 0)
    row = ["vxpress, sorted", epochs, "512", _range([seconds(run) for run in ours], 0), "1.0", _gigabytes(ours, "peak")]
    out.append([*row, mean_range([run["elbo"] for run in ours], 1), mean_range([run["iwae"] for run in ours], 1)])
    for run in runs("scvi"):
        name = "scvi-tools, " + ("shuffled" if run["settings"].get("shuffle") else "sorted")
        out.append([
            name, number(run["epochs"], 0), f"{run['batch_size']:,}", number(seconds(run), 0),
            number(seconds(run) / base, 1), _gigabytes([run], "peak"), number(run["elbo"], 1), number(run["iwae"], 1),
        ])  # fmt: skip
    return out
