"""Cells that stay on disk."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, stdev
from typing import Any

from _tables.registry import Row, mean, mean_range, number, one, pick, results, spread, table

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


def _mean(values: Sequence[float], digits: int) -> str:
    return mean_range(values, digits) if len(values) > 1 else number(values[0], digits)


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
        *(_mean([run[score] for run in found], 2) for score in ("elbo", "iwae")),
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
    ours, digits = pick(runs("fits"), store="collection"), 1
    base = median(run["seconds"]["fit"] for run in ours)
    out: list[Row] = [
        [
            "cells in the collection", "epochs", "minibatch", "one epoch, s", "all epochs, s", "times vxpress", "`encode`, s",
            "peak memory, GB", "ELBO of test cells", "IWAE",
        ],
        [
            "vxpress, sorted", number(ours[0]["epochs"], 0), "512", "", _range([run["seconds"]["fit"] for run in ours], 0), "1.0",
            _range([run["seconds"]["encode"] for run in ours], 0), _gigabytes(ours, "peak"),
            mean_range([run["elbo"] for run in ours], digits), mean_range([run["iwae"] for run in ours], digits),
        ],
    ]  # fmt: skip
    for run in pick(runs("scvi"), epochs_given=None):
        short = one_epoch(run)
        all_epochs = run["epochs"] * short["fit"]
        out.append([
            "scvi-tools, " + ("shuffled" if run["settings"]["shuffle"] else "sorted"), number(run["epochs"], 0),
            f"{run['batch_size']:,}", number(short["fit"], 0), number(all_epochs, 0), number(all_epochs / base, 1),
            number(short["encode"], 0), _gigabytes([run], "peak"), number(run["elbo"], digits), number(run["iwae"], digits),
        ])  # fmt: skip
    return out


def one_epoch(run: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of a run of scvi-tools with one epoch and the same settings."""
    return one(runs("scvi"), settings=run["settings"], epochs_given=1)["seconds"]


def summary() -> list[tuple[str, str, str, str, str]]:
    """Return the lines of the first page: a million cells, four times as many, and scvi-tools."""
    memory, disk = pick(runs("fits"), store="memory"), pick(runs("fits"), store="collection")
    scale, (large,) = 1e9, pick(runs("large"), store="h5ad")
    times = median(seconds(run) for run in disk) / median(seconds(run) for run in memory)
    peak = max(run["memory"]["peak"] for run in disk) / scale
    by_seed = {run["seed"]: run["elbo"] for run in memory}
    less = mean([run["elbo"] - by_seed[run["seed"]] for run in disk])
    noise = stdev(by_seed.values())
    small = median(run["memory"]["peak"] for run in pick(runs("fits"), store="h5ad")) / scale
    more = large["memory"]["peak"] / scale
    peer = max(pick(runs("scvi"), epochs_given=None), key=lambda run: run["elbo"])
    faster = peer["epochs"] * one_epoch(peer)["fit"] / median(run["seconds"]["fit"] for run in disk)
    better = mean([run["elbo"] for run in disk]) - peer["elbo"]
    return [
        (
            "A million cells in a collection on disk, compared with in memory",
            f"{times:.2f} times the time, {peak:.1f} GB, ELBO {less:+.2f} nats (sd between seeds {noise:.2f})",
            "met" if times <= 2 and peak <= 4 and abs(less) <= 2 * noise else "**missed**",
            "on_disk",
            "on-disk-fits",
        ),
        (
            "Memory of four million cells on disk, compared with a million",
            f"{more:.1f} and {small:.1f} GB",
            "met" if more <= 1.1 * small else "**missed**",
            "on_disk",
            "on-disk-fits",
        ),
        (
            "A million cells in a collection, compared with scvi-tools",
            f"{faster:.0f} times faster, ELBO {better:+.1f} nats",
            "met" if faster >= 5 and better > 0 else "**missed**",
            "on_disk",
            "on-disk-scvi",
        ),
    ]
