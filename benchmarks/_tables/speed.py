"""Time and memory."""

from __future__ import annotations

from statistics import median
from typing import Any

from _tables.registry import REPORTED, Row, number, pick, ranged, results, spread, table

# most seconds of a fit of a million cells on processors with bfloat16 and others
WITH_BFLOAT16, WITHOUT = 45, 90


def reach(values: list[float], digits: int) -> str:
    """Format smallest to largest, or one number if they agree."""
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"{low}&nbsp;to&nbsp;{high}"


@table("time-to-elbo", ("time_to_elbo", "rows"), command="python benchmarks/time_to_elbo.py", kinds=["time"])
def time_to_elbo() -> list[Row]:
    """Time to the quality of scvi-tools."""
    rows: list[Row] = [
        [
            "data set",
            "scvi-tools, whole fit, s",
            "vxpress, whole call, s (times faster)",
            "to its final ELBO, s",
            "(a)",
            "(b)",
            "(c)",
            "IWAE, scvi-tools / vxpress",
        ]
    ]
    for name in REPORTED:
        found = pick(results("time_to_elbo")["rows"], set=name)
        column = {key: [row[key] for row in found] for key in found[0] if key != "set"}
        rows.append(
            [
                name,
                number(found[0]["peer_s"], 0),
                f"{reach(column['ours_s'], 1)} ({reach(column['a_whole_call'], 0)})",
                reach(column["ours_to_final_s"], 1),
                *(reach(column[key], 0) for key in "abc"),
                f"{number(found[0]['peer_iwae'], 1)} / {number(median(column['ours_iwae']), 1)}",
            ]
        )
    return rows


def _rate(row: dict[str, Any]) -> list[str]:
    """Return name, cells per second and their ratio to those of scvi-tools."""
    run = row["run"].replace("ours", "vxpress").replace("the host", "host memory")
    times = spread(row["times scvi-tools"], 1) if "scvi" not in run else "1.0"
    return [f"{row['likelihood'].upper()}, {run}", spread(row["cells/s"], 0), times]


@table(
    "throughput", ("training_speed", "rows"), command="python benchmarks/training_speed.py --repeats 3", kinds=["time"]
)
def throughput() -> list[Row]:
    """Cells per second of training."""
    rows: list[Row] = [
        ["run", "cells/s", "times scvi-tools", "ms per step", "floor, ms", "times the floor", "epochs", "IWAE"]
    ]
    for row in results("training_speed")["rows"]:
        floor = [number(row["step_ms"], 1), number(row["floor_ms"]["total"], 1), number(row["over the floor"], 1)]
        rows.append([*_rate(row), *floor, str(row["epochs"]), number(row["IWAE"], 1)])
    return rows


@table("step-parts", ("step_parts", "milliseconds"), command="python benchmarks/step_parts.py", kinds=["time"])
def step_parts() -> list[Row]:
    """Where the time of a training step goes."""
    found = results("step_parts")["milliseconds"]
    sizes = list(found)
    rows: list[Row] = [["one thread, ms", *(f"{size} cells" for size in sizes)]]
    for part in found[sizes[0]]:
        rows.append([part, *(number(found[size][part], 2) for size in sizes)])
    return rows


@table(
    "throughput-settings",
    ("throughput", "rows"),
    command="python benchmarks/throughput.py --repeats 3 --cells 3072",
    kinds=["time"],
)
def throughput_settings() -> list[Row]:
    """Cells per second in settings that users have."""
    found = results("throughput")["rows"]
    names = list(found[0]["runs"])
    rows: list[Row] = [
        ["setting", f"{names[0]}, cells/s", *(f"{name}: cells/s (times scvi-tools)" for name in names[1:])]
    ]
    for row in found:
        runs = row["runs"]
        ours = [
            f"{number(runs[name]['cells/s']['median'], 0)} ({spread(runs[name]['times'], 1)})" for name in names[1:]
        ]
        rows.append([row["setting"], spread(runs[names[0]]["cells/s"], 0), *ours])
    return rows


@table(
    "whole-call",
    ("whole_call", "rows"),
    ("whole_call", "stages"),
    command="python benchmarks/whole_call.py",
    kinds=["time"],
)
def whole_call() -> list[Row]:
    """A whole call compared with PCA, and its stages."""
    found = results("whole_call")
    names = [row["set"] for row in found["rows"]]
    rows: list[Row] = [["s, median (range)", *names]]
    kinds = [kind for kind in found["rows"][0] if kind not in ("set", "genes", "ratio")]
    rows += [[kind, *(spread(row[kind]) for row in found["rows"])] for kind in kinds]
    rows.append(
        [
            "times PCA; aim: 4",
            *(
                f"{spread(row['ratio'], 1)}, {'met' if row['ratio']['median'] <= 4 else '**missed**'}"
                for row in found["rows"]
            ),
        ]
    )
    for stage in found["stages"][names[0]]:
        rows.append([f"of this, {stage}", *(number(found["stages"][name][stage]["median"]) for name in names)])
    return rows


@table("gpu", ("gpu", "rows"), command="python benchmarks/gpu.py --epochs 4", kinds=["time"])
def gpu() -> list[Row]:
    """Cells per second of training on a GPU."""
    rows: list[Row] = [["run", "cells/s", "times scvi-tools", "first epoch, s"]]
    for row in results("gpu")["rows"]:
        rows.append([*_rate(row), number(row["first epoch s"]["median"], 1)])
    return rows


@table("kernels", ("kernels", "rows"), command="python benchmarks/kernels.py")
def kernels() -> list[Row]:
    """Compiled and plain versions with many nonzero entries."""
    rows: list[Row] = [["cells", "genes", "not zero", "NB, compiled / plain, ms", "first layer, sparse / dense, ms"]]
    for row in results("kernels")["rows"]:
        pairs = (("nb compiled", "nb plain"), ("input sparse", "input dense"))
        times = [" / ".join(number(row[key], 1) for key in pair) for pair in pairs]
        rows.append([str(row["cells"]), number(row["genes"], 0), f"{100 * row['density']:.0f} %", *times])
    return rows


@table(
    "after-training", ("after_training", "seconds"), command="python benchmarks/after_training.py --repeats 3 --draws 5"
)
def after_training() -> list[Row]:
    """Encoding and denoising."""
    rows: list[Row] = [
        ["100,000 cells x 2,000 genes, 5 draws", "vxpress, s", "scvi-tools, s", "times faster", "aim: 5"]
    ]
    for name, found in results("after_training")["seconds"].items():
        aim = "met" if found["times"] >= 5 else "**missed**"
        rows.append([name, spread(found["vxpress"]), spread(found["scvi-tools"]), number(found["times"], 1), aim])
    return rows


@table(
    "parts-of-a-fit", ("after_training", "parts"), command="python benchmarks/after_training.py --repeats 3 --draws 5"
)
def parts_of_a_fit() -> list[Row]:
    """Diagnosis and refit as shares of a fit."""
    rows: list[Row] = [["default fit of 10,000 cells x 2,000 genes", "s", "share of the fit"]]
    found = results("after_training")["parts"]
    for name, seconds in found.items():
        rows.append([name, spread(seconds), f"{100 * seconds['median'] / found['whole fit']['median']:.0f} %"])
    return rows


@table("growth", ("scaling", "epochs"), command="python benchmarks/scaling.py", kinds=["time"])
def growth() -> list[Row]:
    """Time per epoch by number of cells."""
    rows: list[Row] = [
        [
            "cells x 2,000 genes, simulated",
            "s per epoch",
            "cells/s",
            "time relative to linear growth",
            "ELBO after 2 epochs",
        ]
    ]
    for size, found in results("scaling")["epochs"]["sizes"].items():
        rates = [number(found["cells_per_second"], 0), number(found["times_linear"])]
        rows.append([f"{int(size):,}", spread(found), *rates, number(found["elbo_validation"], 1)])
    return rows


def _memory_row(found: dict[str, Any], above: float) -> list[str]:
    """Return the peak memory of a fit, and whether it meets the aim."""
    counts, peak = found["counts_bytes"] / 1e6, above / 1e6
    allowed = 1.5 * counts + 500
    what = f"peak memory of a fit of {found['cells']:,} cells above the process that holds the counts ({number(counts, 0)} MB)"
    aim = f"1.5 times the counts plus 500 MB, {number(allowed, 0)} MB: {'met' if peak <= allowed else '**missed**'}"
    return [what, f"{number(peak, 0)} MB", aim]


def most_seconds(whole: dict[str, Any]) -> int:
    """Return the aim for a million cells on the processor of a measurement."""
    return WITH_BFLOAT16 if whole["machine"]["features"]["avx512_bf16"] else WITHOUT


@table("memory", ("scaling", "memory"), ("scaling", "whole"), command="python benchmarks/scaling.py", kinds=["time"])
def memory() -> list[Row]:
    """Peak memory, and a whole call on a million cells."""
    found, whole = results("scaling")["memory"], results("scaling")["whole"]
    seconds = most_seconds(whole)
    return [
        ["what", "measured", "aim"],
        _memory_row(found["runs"][0], found["above_baseline_bytes"]["median"]),
        _memory_row(whole, whole["above_baseline_bytes"]),
        [
            f"{whole['cells']:,} cells at the defaults, from the call to its return ({whole['epochs']} epochs, {whole['steps']:,} steps)",
            f"{whole['seconds']:.0f} s",
            f"{seconds} s on a processor {'with' if seconds == WITH_BFLOAT16 else 'without'} bfloat16: {'met' if whole['seconds'] <= seconds else '**missed**'}",
        ],
    ]


@table("busy-machine", ("busy_machine", "medians"), command="python benchmarks/busy_machine.py", kinds=["time"])
def busy_machine() -> list[Row]:
    """The same fit next to other programs, with one thread, two, and the number that follows the load."""
    found = results("busy_machine")["medians"]
    rows: list[Row] = [
        ["other programs on two cores", "threads of the fit", "s, median (range)", "threads it used", "times the quiet time", "at fair shares",
         "times one thread"],
    ]  # fmt: skip
    for others, settings in found.items():
        for name, row in settings.items():
            low, high = row["range"]
            rows.append(
                [
                    others, name, f"{row['wall']:.2f} ({ranged(low, high)})", f"{row['threads']:.2f}", f"{row['over_quiet']:.2f}",
                    f"{row['over_fair']:.2f}", f"{row['over_one_thread']:.2f}",
                ]
            )  # fmt: skip
    return rows


@table("busy-machine-aims", ("busy_machine", "medians"), command="python benchmarks/busy_machine.py", kinds=["time"])
def busy_machine_aims() -> list[Row]:
    """Aims of a fit next to two busy programs, at the number of threads that follows the load."""
    found = results("busy_machine")["medians"]["two loops"]
    # programs of others, which none of the times are without
    before = results("busy_machine")["before"]
    rows: list[Row] = [["next to two loops", "torch imported first", "vxpress imported first", "aim"]]
    both = found["automatic, torch first"], found["automatic"]
    for what, name, aim in (
        ("times the quiet time with the number of threads that it used", "over_quiet", 1.5),
        ("the same, at fair shares", "over_fair", 1.0),
        ("times the time of one thread", "over_one_thread", 1.1),
    ):
        values = [row[name] for row in both]
        verdict = "met" if max(values) <= aim else "**missed**"
        if before > 0.2:
            verdict = f"not judged, because other programs used {before:.1f} processors before"
        goal = "" if name == "over_fair" else f"{aim:g}: {verdict}"
        rows.append([what, *(f"{value:.2f}" for value in values), goal])
    return rows


@table(
    "first-call",
    ("latency", "imports"),
    ("latency", "fits"),
    ("latency", "compilation"),
    command="python benchmarks/latency.py",
    kinds=["time"],
)
def first_call() -> list[Row]:
    """Imports and the first call."""
    found = results("latency")

    def judged(value: float, aim: float) -> str:
        return f"{aim:g}: {'met' if value <= aim else '**missed**'}"

    beyond, first, second = found["imports"]["beyond"], found["fits"]["first"]["call"], found["fits"]["second"]["call"]
    processor = found["fits"]["first"]["processor"]
    return [
        ["what", "s, median (range)", "aim, s"],
        ["`import vxpress` beyond `import scanpy`", number(beyond), judged(beyond, 0.3)],
        ["first fit ever of the embedded data, with the import of torch", spread(first, 1), judged(first["median"], 8)],
        ["the same call in a second process", spread(second, 1), judged(second["median"], 4)],
        ["processor time of the first process with all imports", spread(processor, 1), judged(processor["median"], 5)],
        *(
            [
                f"processor time of compilation in the first fit of 10,000 x 2,000, {name.upper()}",
                spread(compiled, 1),
                judged(compiled["median"], 10),
            ]
            for name, compiled in found["compilation"].items()
        ),
    ]
