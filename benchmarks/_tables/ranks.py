"""Several processes."""

from __future__ import annotations

from statistics import stdev

from _tables.registry import REPORTED, Row, mean, number, pick, results, spread, table
from vxpress.core.settings import preset_settings

COMMAND = "python benchmarks/ranks.py --parts"

# the estimate: cells and genes of the data, and cells of a minibatch for each GPU
CELLS, GENES, HELD_OUT, PER_GPU = 100_000_000, 2_000, 0.1, 512
# bytes per second and seconds per message between GPUs of a machine (NVLink) and between machines (one adapter of 200 Gb/s)
WITHIN, BETWEEN = (100e9, 10e-6), (25e9, 20e-6)
GPUS_PER_MACHINE = 8
# launches that the exchange adds to a step on a GPU
LAUNCHES = 100e-6
# a slower network: one adapter of 10 Gb/s
SLOW = (1.25e9, 50e-6)


def ring(n: int, n_bytes: float, network: tuple[float, float]) -> float:
    """Return the seconds of a sum over ``n`` places that pass their messages on in a ring."""
    rate, latency = network
    return 2 * (n - 1) * (latency + n_bytes / n / rate) if n > 1 else 0.0


def exchange(n_gpus: int, n_bytes: float, between: tuple[float, float]) -> float:
    """Return the seconds of a sum over the GPUs of each machine, and then over the machines."""
    machines = max(1, n_gpus // GPUS_PER_MACHINE)
    return ring(min(n_gpus, GPUS_PER_MACHINE), n_bytes, WITHIN) + ring(machines, n_bytes / GPUS_PER_MACHINE, between)


def measured() -> tuple[float, float]:
    """Return the seconds of a step of 512 cells on one GPU, and the bytes of a message of as many genes."""
    (on_gpu,) = pick(results("gpu")["rows"], likelihood="nb", run="ours, 512")
    message = results("ranks")["message"]
    assert message["genes"] == GENES
    return PER_GPU / on_gpu["cells/s"]["median"], message["bytes"]


@table("ranks-throughput", ("ranks", "throughput"), command=f"{COMMAND} throughput", kinds=["time"])
def throughput() -> list[Row]:
    """Cells per second."""
    found = results("ranks")["throughput"]
    rows: list[Row] = [["processes", "cells/s, median (range)", "ratio in the same round"]]
    one, two = found["rates"].items()
    rows.append([one[0], spread(one[1], 0), "1"])
    rows.append([two[0], spread(two[1], 0), spread(found["ratio"])])
    return rows


@table("ranks-quality", ("ranks", "quality"), command=f"{COMMAND} quality", kinds=["likelihood"])
def quality() -> list[Row]:
    """Held-out ELBO."""
    rows: list[Row] = [["data set", "1 process", "2 processes", "difference", "standard deviation over seeds"]]
    for name in REPORTED:
        one, two = (run["elbo"] for run in pick(results("ranks")["quality"]["rows"], set=name))
        noise = max(stdev(one), stdev(two))
        rows.append([name, _mean(one), _mean(two), number(mean(two) - mean(one), sign=True), number(noise)])
    return rows


def ratio() -> float:
    """Return the throughput of two processes relative to one."""
    return results("ranks")["throughput"]["ratio"]["median"]


def within_noise() -> list[bool]:
    """Return for each data set whether the ELBOs differ by less than an error of two means would explain."""
    pairs = [[run["elbo"] for run in pick(results("ranks")["quality"]["rows"], set=name)] for name in REPORTED]
    errors = [((stdev(one) ** 2 + stdev(two) ** 2) / len(one)) ** 0.5 for one, two in pairs]
    # 2.78: of Student's t distribution with four degrees of freedom
    return [abs(mean(two) - mean(one)) < 2.78 * error for (one, two), error in zip(pairs, errors, strict=True)]


def _mean(values: list[float]) -> str:
    return number(mean(values), 2)


@table("ranks-steps", ("ranks", "steps"), command=f"{COMMAND} steps", kinds=["time"])
def steps() -> list[Row]:
    """Parts of a step."""
    rows: list[Row] = [
        ["genes", "message, MB", "step, ms", "computation, ms", "exchange with waiting, ms", "exchange alone, ms"]
    ]
    for row in results("ranks")["steps"]["rows"]:
        times = [number(row[name]) for name in ("step", "computation", "exchange", "exchange alone")]
        rows.append([number(row["genes"], 0), number(row["bytes"] / 1e6), *times])
    return rows


@table("ranks-delay", ("ranks", "delay"), command=f"{COMMAND} delay", kinds=["time"])
def delay() -> list[Row]:
    """The model of a slower network."""
    rows: list[Row] = [["delay, ms", "step, ms", "predicted, ms", "difference", "cells/s"]]
    for row in results("ranks")["delay"]["rows"]:
        off = 100 * (row["step"] / row["predicted step"] - 1)
        rows.append(
            [
                number(row["delay"], 0), number(row["step"]), number(row["predicted step"]),
                f"{number(off, 1, sign=True)} %", number(row["cells/s"], 0),
            ]
        )  # fmt: skip
    return rows


@table("ranks-estimate", ("ranks", "message"), ("gpu", "rows"), command=f"{COMMAND} message", kinds=["time"])
def estimate() -> list[Row]:
    """The estimate for many GPUs."""
    computation, n_bytes = measured()
    n_train = round(CELLS * (1 - HELD_OUT))
    n_epochs = preset_settings(None).max_epochs(n_train, CELLS - n_train)
    rows: list[Row] = [
        [
            "GPUs", "network between machines", "exchange, ms", "step, ms", "efficiency", "cells/s", "steps per epoch",
            f"{n_epochs} epochs, minutes", "counts to read per machine, GB/s",
        ]
    ]  # fmt: skip
    for n_gpus, name, between in (
        (1, "", BETWEEN), (8, "", BETWEEN), (64, "200 Gb/s", BETWEEN), (64, "10 Gb/s", SLOW)
    ):  # fmt: skip
        message = exchange(n_gpus, n_bytes, between) + (LAUNCHES if n_gpus > 1 else 0.0)
        step = computation + message
        rate = n_gpus * PER_GPU / step
        n_steps = n_train / (n_gpus * PER_GPU)
        # validation and encoding visit cells in about the time of a step
        visits = n_epochs * CELLS + CELLS
        read = rate / max(1, n_gpus // GPUS_PER_MACHINE) * _bytes_per_cell()
        rows.append(
            [
                number(n_gpus, 0), name, number(1e3 * message), number(1e3 * step), number(computation / step), number(rate, 0),
                number(n_steps, 0), number(visits / rate / 60, 1), number(read / 1e9, 1),
            ]
        )  # fmt: skip
    return rows


def _bytes_per_cell() -> float:
    """Return the bytes of a cell's counts as sparse numbers of four bytes with four of its gene, at a density of a tenth."""
    return 8 * 0.1 * GENES
