"""Does a fit that is killed at a random moment continue, and is a file ever damaged?

    python benchmarks/kills.py                 # 100 kills
    python benchmarks/kills.py --kills 10

A process fits one or two models with checkpoints and writes the results: half of them by ``vxpress fit``, which replaces an older
output, half by ``vx.io.write_results`` into the store that holds the counts; as ``.h5ad`` or as ``.zarr``. It is killed
with SIGKILL: within a step of the training, while a checkpoint is written, between these, or while the results are written, each
at a random moment of a random occurrence. A checkpoint is written after every step, more often than by default, so that many
kills meet one. Then every file is read: checkpoints against their checksums, and the output, which has to be the old one or the
new one. The same call continues the fit, or is killed again. The result is compared bit by bit with that of a run that nobody killed.

Processes are forked from one that has imported everything, so that a run takes seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from _speed import save, set_threads

import vxpress as vx
from vxpress import _cli
from vxpress.bridge.fits import checkpoints
from vxpress.bridge.fits.sealed_file import read_sealed
from vxpress.core.training import Training

N_CELLS, N_GENES = 600, 200
SETTINGS = {"max_epochs": 5, "batch_size": 64, "n_latent": 5, "batch_key": "batch"}
# of a format; a zarr store of two models has so many small arrays that reading and writing it take most of the time
N_FITS = {"h5ad": 2, "zarr": 1}
# what writes the output, and its format, in turn
WAYS = tuple((how, kind) for kind in ("h5ad", "zarr", "h5ad") for how in ("vxpress fit", "write_results"))
# what a process tells: it takes steps, writes a checkpoint, does something else, writes the output, has written it
STEP, CHECKPOINT, OTHER, WRITING, WRITTEN = b"s", b"c", b"o", b"w", b"e"
PHASES = {
    STEP: "in a step of the training",
    CHECKPOINT: "while a checkpoint is written",
    OTHER: "before, between and after trainings",
    WRITING: "while the output is written",
}
PATIENCE = 300.0


@dataclass
class Told:
    """What a process has told, with the time of each."""

    marks: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def durations(self, mark: bytes) -> list[float]:
        """Return the seconds from every mark of a kind to the next mark."""
        return [
            after - at for one, at, after in zip(self.marks, self.times, self.times[1:], strict=False) if one == mark
        ]


def report(pipe: int) -> None:
    """Let this process tell through a pipe what it does."""

    def around(place: Any, attribute: str, before: bytes, after: bytes) -> None:
        whole = getattr(place, attribute)

        def reporting(*args: Any, **kwargs: Any) -> Any:
            os.write(pipe, before)
            found = whole(*args, **kwargs)
            os.write(pipe, after)
            return found

        setattr(place, attribute, reporting)

    around(Training, "step", STEP, OTHER)
    around(checkpoints, "write_sealed", CHECKPOINT, OTHER)
    around(_cli, "write", WRITING, WRITTEN)
    around(vx.io, "write_results", WRITING, WRITTEN)


@contextmanager
def started(work: Callable[[], int], log: Path) -> Iterator[tuple[int, int]]:
    """Run ``work`` in a forked process; yield its number and the end of the pipe."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(here)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            report(there)
            status = work()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
    os.close(there)
    try:
        yield child, here
    finally:
        os.close(here)


def listen(pipe: int, until: Callable[[Told], bool] = lambda _: False) -> Told:
    """Read what a process tells until it ends, or until a condition holds."""
    told = Told()
    while not until(told):
        found = os.read(pipe, 1)
        if not found:
            break
        told.marks.append(found)
        told.times.append(time.monotonic())
    return told


def whole_run(work: Callable[[], int], log: Path) -> tuple[int, Told]:
    """Run a process to its end; return its status and what it told."""
    with started(work, log) as (child, pipe):
        told = listen(pipe)
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), told


def killed_run(work: Callable[[], int], log: Path, mark: bytes, number: int, delay: float) -> tuple[bool, Told]:
    """Kill a process some seconds after it has told a mark for a number of times; return whether it was still running."""
    with started(work, log) as (child, pipe):
        told = listen(pipe, lambda told: told.marks.count(mark) >= number)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        rest = listen(pipe)
        _, status = os.waitpid(child, 0)
    told.marks += rest.marks
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL, told


class Trial:
    """One fit in a folder of its own, killed until it is left to end."""

    def __init__(self, folder: Path, how: str, kind: str) -> None:
        self.folder, self.how, self.kind = folder, how, kind
        self.output, self.checkpoints = folder / f"out.{kind}", folder / "checkpoints"
        self.log = folder / "log"
        self.settings: dict[str, Any] = SETTINGS | {"n_fits": N_FITS[kind]}

    def command(self) -> int:
        """Fit, or continue, and write; return the exit status."""
        if self.how == "write_results":
            adata = vx.io.open_store(self.output, "r+")
            vx.tl.fit_vae(adata, **self.settings, checkpoint_dir=self.checkpoints, checkpoint_minutes=0, resume="auto")
            vx.io.write_results(adata)
            return 0
        settings = [
            word for name, value in self.settings.items() for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        return _cli.main(
            ["fit", str(self.folder.parent / "in.h5ad"), "-o", str(self.output), "--overwrite", *settings,
             "--checkpoint-dir", str(self.checkpoints), "--checkpoint-minutes", "0", "--resume"]
        )  # fmt: skip

    def prepare(self, old: ad.AnnData) -> None:
        """Write the older output."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        (old.write_zarr if self.kind == "zarr" else old.write_h5ad)(self.output)

    def read(self) -> ad.AnnData:
        """Read the output."""
        return ad.read_zarr(self.output) if self.kind == "zarr" else ad.read_h5ad(self.output)

    def damaged(self, new: dict[str, Any]) -> list[str]:
        """Return what is wrong with the files after a kill."""
        wrong = []
        for path in self.checkpoints.glob("training_*.safetensors"):
            try:
                read_sealed(checkpoints.KIND, path)
            except (ValueError, OSError) as error:
                wrong.append(f"checkpoint: {error}")
        if not self.output.exists():
            # a folder is replaced by two moves; the next write restores it
            return [*wrong, "absent"]
        try:
            found = self.read()
        except Exception as error:  # noqa: BLE001 - of any reader
            return [*wrong, f"output: {error}"]
        if "vae" in found.uns and not same(contents(found), new):
            wrong.append("output: neither the old nor the new one")
        if "vae" not in found.uns and found.uns.get("old") != 1:
            wrong.append("output: incomplete")
        return wrong

    def stored_steps(self) -> int:
        """Return how many steps of all trainings the checkpoints hold."""
        total = 0
        for path in self.checkpoints.glob("training_*.safetensors"):
            _, tree, _ = read_sealed(checkpoints.KIND, path)
            total += tree["state"]["outcome"]["n_steps"]
        return total


def contents(adata: ad.AnnData) -> dict[str, Any]:
    """Return all that a fit writes."""
    arrays = {
        f"{place}/{name}": np.asarray(value)
        for place in ("obsm", "layers")
        for name, value in getattr(adata, place).items()
    }
    return arrays | {"sha256": str(adata.uns["vae"]["sha256"]), "diagnostics": str(adata.uns["vae"]["diagnostics"])}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Compare bit by bit."""
    return one.keys() == other.keys() and all(np.array_equal(value, other[name]) for name, value in one.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_threads(1)
    rng = np.random.default_rng(args.seed)
    old = vx.datasets.simulate(N_CELLS, N_GENES, n_batches=2, rng=0)
    # load what the processes need: they are forked from this one
    warm = old.copy()
    vx.tl.fit_vae(warm, max_epochs=1, batch_key="batch")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        old.write_h5ad(root / "in.h5ad")
        old.uns["old"] = 1
        reference, spans = {}, {}
        for way in dict.fromkeys(WAYS):
            trial = Trial(root / "reference", *way)
            trial.prepare(old)
            status, told = whole_run(trial.command, trial.log)
            assert status == 0, trial.log.read_text()
            reference[way], spans[way] = contents(trial.read()), told
            print(way, f"{told.times[-1] - told.times[0]:.1f} s", Counter(told.marks), flush=True)
        found = run_trials(args.kills, rng, root, old, reference, spans)
    print(found, flush=True)
    if args.kills >= 100:
        save("kills", {"kills": found})


def run_trials(
    n_kills: int,
    rng: np.random.Generator,
    root: Path,
    old: ad.AnnData,
    reference: dict[Any, Any],
    spans: dict[Any, Told],
) -> dict[str, Any]:
    """Kill processes until that many were running when they were killed, and let every fit end."""
    phases = list(PHASES)
    counts: dict[str, Counter[str]] = {name: Counter() for name in PHASES.values()}
    lost: list[int] = []
    wrong: list[str] = []
    n_done = n_fits = n_same = n_left = 0
    while n_done < n_kills:
        way = WAYS[n_fits % len(WAYS)]
        trial = Trial(root / f"fit{n_fits}", *way)
        trial.prepare(old)
        n_fits += 1
        before = 0
        while n_done < n_kills:
            mark = phases[rng.integers(len(phases))]
            seconds = spans[way].durations(mark)
            number = int(rng.integers(1, len(seconds) + 1))
            # a resumed run has fewer steps than a whole one
            number = min(number, max(1, int(number * 0.8)))
            running, told = killed_run(
                trial.command, trial.log, mark, number, rng.uniform(0, 1.2 * seconds[number - 1])
            )
            if not running:
                break  # it has ended before
            at = PHASES.get(told.marks[-1] if told.marks else OTHER, "after the output was written")
            n_done += 1
            counts.setdefault(at, Counter())["kills"] += 1
            for what in trial.damaged(reference[way]):
                counts[at]["absent" if what == "absent" else "damaged"] += 1
                if what != "absent":
                    wrong.append(f"{at}: {what}")
            if WRITTEN not in told.marks:
                now = trial.stored_steps()
                lost.append(before + told.marks.count(STEP) - now)
                before = now
            if rng.random() < 0.5:
                break
        status, _ = whole_run(trial.command, trial.log)
        good = status == 0 and same(contents(trial.read()), reference[way])
        n_same += good
        if not good:
            wrong.append(f"fit {n_fits - 1} ({way}): status {status}\n{trial.log.read_text()[-2000:]}")
        # fit_vae leaves its checkpoints, the command does not
        expected = {"log", trial.output.name, *(["checkpoints"] if trial.how == "write_results" else [])}
        n_left += len({path.name for path in trial.folder.iterdir()} - expected)
        print(f"{n_done} kills, {n_fits} fits, {n_same} the same; {wrong}", flush=True)
        shutil.rmtree(trial.folder)
    return {
        "phases": {name: dict(found) for name, found in counts.items()},
        "fits": n_fits, "same": n_same, "leftovers": n_left, "wrong": wrong,
        "steps": spans[WAYS[0]].marks.count(STEP), "most steps lost": max(lost), "mean steps lost": float(np.mean(lost)),
    }  # fmt: skip


if __name__ == "__main__":
    main()
