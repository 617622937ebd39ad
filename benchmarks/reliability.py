"""Interrupt, kill or starve running calls at random moments, and check what remains.

    python benchmarks/reliability.py interrupts --n 40
    python benchmarks/reliability.py all

Every trial prints a row and adds its counts to ``results/reliability.json``. ``page`` writes them into
``docs/reliability.md``, which explains them.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import anndata as ad
import joblib
import numpy as np
import scanpy as sc
import torch
from _speed import RESULTS, save

import vxpress as vx

QUICK: dict[str, Any] = {"n_latent": 3, "n_hidden": 16, "batch_size": 64, "max_epochs": 30, "early_stopping": False}
SHORT = QUICK | {"max_epochs": 4}
FILE = RESULTS / "reliability.json"
PAGE = RESULTS.parent.parent / "docs" / "reliability.md"
REST = {
    "kills": "`kill -9` during a write over an older file",
    "stops": "SIGTERM during `vxpress fit`",
    "full_disk": "a full disk",
    "read_only": "a read-only folder",
    "no_cache": "no folder to store compiled code",
    "processes": "fits in processes",
}
# counts whose name on the page is longer than in the results
LABELS = {
    "said, naming the file": "the error names the file",
    "left something": "hidden folder left",
    "left after the next write": "hidden folder left after the next write",
    "old file as it was": "old file unchanged",
}
SUFFIXES = (".h5ad", ".zarr", ".safetensors")


# what is looked at before and after


def fingerprint(adata: ad.AnnData) -> str:
    """Compute a hash of everything in an AnnData."""
    slots = {name: dict(getattr(adata, name)) for name in ("obsm", "varm", "obsp", "layers", "uns")}
    return str(joblib.hash((adata.X.data, adata.obs, adata.var, slots)))


def global_state() -> dict[str, Any]:
    """Return the state of the process that a call may change but must restore."""
    return {
        "torch generator": joblib.hash(torch.get_rng_state().numpy()),
        "numpy generator": joblib.hash(np.random.get_state()),  # noqa: NPY002
        "grad mode": torch.is_grad_enabled(),
        "default type": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads of torch": torch.get_num_threads(),
        "verbosity": sc.settings.verbosity,
        "handler of Ctrl-C": signal.getsignal(signal.SIGINT),
    }


def cells(n: int = 400, *, fitted: bool = False, seed: int = 0) -> ad.AnnData:
    """Simulate cells in two batches, with a fit if requested."""
    adata = vx.datasets.simulate(n, 60, n_groups=3, n_batches=2, library_mean=300, rng=seed)
    if fitted:
        vx.tl.fit_vae(adata, "batch", **SHORT)
    return adata


# Ctrl-C


class Interrupter:
    """Send Ctrl-C to this process after a delay; only signals that arrive within the call count."""

    def __init__(self) -> None:
        self.inside, self.delivered = False, 0
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, *_: Any) -> None:
        if self.inside:
            self.delivered += 1
            raise KeyboardInterrupt

    def run(self, call: Callable[[], Any], delay: float) -> str:
        """Run a call and return how it ended: "raised", "returned", or the name of another error."""
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        self.delivered = 0
        timer.start()
        try:
            try:
                self.inside = True
                call()
                self.inside = False
                return "returned"
            finally:
                self.inside = False
        except KeyboardInterrupt:
            return "raised"
        except Exception as error:  # noqa: BLE001 - every other error is a finding
            traceback.print_exc()
            return type(error).__name__
        finally:
            timer.cancel()
            timer.join()


def calls() -> dict[str, tuple[Callable[[], ad.AnnData], Callable[[ad.AnnData], Any]]]:
    """List long calls by name, with the function that makes their AnnData."""
    plain, fitted, larger, few = cells(), cells(fitted=True), cells(600), cells(120)
    other, calibration = cells(200, seed=1), cells(200, seed=2)
    for name, part in (("query", other), ("calibration", calibration)):
        part.obs_names = [f"{name} {i}" for i in range(part.n_obs)]
    two = cells()
    for key, changed in (("vae", {}), ("two", {"n_latent": 2})):
        # compare needs 200 cells that no fit has seen
        vx.tl.fit_vae(two, "batch", validation_fraction=0.6, key_added=key, **(SHORT | changed))
    query = other.copy()
    query.obs["batch"] = "new"
    return {
        "fit_vae": (plain.copy, lambda a: vx.tl.fit_vae(a, "batch", **QUICK)),
        "fit_vae, nothing held out": (plain.copy, lambda a: vx.tl.fit_vae(a, validation_fraction=0.0, **QUICK)),
        "fit_vae, cure": (few.copy, lambda a: vx.tl.fit_vae(a, beta=100.0, cure=True, **SHORT)),
        "fit_vae, likelihood='auto'": (larger.copy, lambda a: vx.tl.fit_vae(a, likelihood="auto", **SHORT)),
        "fit_vae, prior='flow'": (few.copy, lambda a: vx.tl.fit_vae(a, prior="flow", **SHORT)),
        "fit_prior": (fitted.copy, lambda a: vx.tl.fit_prior(a, "mixture", max_steps=300)),
        "encode, fine_tune": (query.copy, lambda a: vx.tl.encode(a, fitted, fine_tune=20)),
        "encode, genes missing": (other[:, ::2].copy, lambda a: vx.tl.encode(a, fitted)),
        "denoise, interval": (fitted.copy, lambda a: vx.tl.denoise(a, interval=0.9)),
        "outliers": (other.copy, lambda a: vx.tl.outliers(a, fitted, calibration=calibration)),
        "compare": (two.copy, lambda a: vx.tl.compare(a, n_samples=200)),
        "rank_genes_groups": (fitted.copy, lambda a: vx.tl.rank_genes_groups(a, "group")),
        "diagnose": (fitted.copy, lambda a: vx.tl.diagnose(a, gaps=True, n_cells=60)),
    }


def one_call(
    make: Callable[[], ad.AnnData], call: Callable[[ad.AnnData], Any], n: int, most: float, rng: np.random.Generator
) -> dict[str, int]:
    """Interrupt a call ``n`` times; count the outcomes, and check that the call still works afterwards."""
    reference, counts, press = make(), collections.Counter(), Interrupter()
    call(make())  # compiled
    start = time.perf_counter()
    call(reference)
    seconds = time.perf_counter() - start
    end = time.perf_counter() + most
    while counts["interrupted"] < n and time.perf_counter() < end:
        adata = make()
        before, state = fingerprint(adata), global_state()
        ended = press.run(lambda adata=adata: call(adata), float(rng.uniform(0, seconds)))
        if not press.delivered:
            counts["too late"] += 1
            continue
        counts["interrupted"] += 1
        same, fit = fingerprint(adata) == before, adata.uns.get("vae")
        if ended == "returned":
            kept = fit is not None and str(fit["params"]["stopped"]) == "interrupted"
            counts["kept, and on record" if kept else "lost"] += 1
        elif ended == "raised":
            whole = _results(adata) == _results(reference)
            counts["data as before" if same else "all written" if whole else "data changed"] += 1
        else:
            counts[ended] += 1
        counts["state of the process changed"] += global_state() != state
        torch.set_grad_enabled(True)  # the next trial is independent
    again = make()
    call(again)
    counts["works as before"] = int(_results(again) == _results(reference))
    counts.pop("too late", None)
    return {"ms": round(1000 * seconds), **counts}


def _results(adata: ad.AnnData) -> str:
    """Compute a hash of what a call wrote, without times."""
    uns = {name: value for name, value in adata.uns.items() if name != "vae"} | {
        "weights": adata.uns.get("vae", {}).get("weights")
    }
    return str(joblib.hash((adata.obs, dict(adata.obsm), dict(adata.layers), uns)))


def interrupts(n: int, only: str | None, most: float) -> dict[str, Any]:
    """Send Ctrl-C at a random moment of each long call."""
    rng, out = np.random.default_rng(0), {}
    for name, (make, call) in calls().items():
        if only is None or any(part in name for part in only.split(",")):
            out[name] = one_call(make, call, n, most, rng)
            print(f"  {name:30}", out[name], flush=True)
    return out


# signals and limits of the system, each in a process of its own


def in_child(work: Callable[[], int], *, after: Callable[[int], None] = lambda _: None) -> int:
    """Run ``work`` in a forked process and ``after`` with its id in this one; return its status, negative for a signal."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        status = 99
        try:
            with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                status = work()
        except BaseException:  # noqa: BLE001 - reported by the status
            traceback.print_exc()
        os._exit(status)
    after(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def writer(adata: ad.AnnData, path: Path) -> Callable[[], int]:
    """Write a file in one of three formats; status 0 means success, 1 an expected error of the system."""

    def write() -> int:
        from vxpress import _command_output

        try:
            if path.suffix == ".safetensors":
                vx.save_model(adata, path)
            else:
                _command_output.write(adata, path, overwrite=True)
        except OSError as error:
            return 1 if path.name in str(error) else 2
        return 0

    return write


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return vx.load_model(path)
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


def large(n: int, suffix: str) -> ad.AnnData:
    """Make cells with a dense layer and a fit, except for zarr, where writing the many small entries of a fit is slow."""
    adata = cells(n, fitted=suffix != ".zarr")
    adata.layers["more"] = np.random.default_rng(0).normal(size=adata.shape)
    return adata


def hidden(folder: Path) -> list[Path]:
    """List hidden files, which should not remain."""
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def wait_for(found: Callable[[], object], seconds: float = 20.0) -> bool:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        if found():
            return True
        time.sleep(0.001)
    return False


def kills(n: int, *_: Any) -> dict[str, Any]:
    """Send ``kill -9`` at a random moment while an older file is overwritten."""
    out, rng = {}, np.random.default_rng(1)
    for suffix in SUFFIXES:
        old, new = large(60, suffix), large(400, suffix)
        counts: collections.Counter[str] = collections.Counter()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            target = folder / f"a{suffix}"
            start = time.perf_counter()
            writer(new, target)()
            seconds = time.perf_counter() - start
            while counts["killed"] < n:
                if target.is_dir():
                    shutil.rmtree(target)
                writer(old, target)()
                delay = float(rng.uniform(0, seconds))

                def kill(pid: int, folder: Path = folder, delay: float = delay) -> None:
                    wait_for(lambda: hidden(folder))  # it has begun
                    time.sleep(delay)
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

                if in_child(writer(new, target), after=kill) != -signal.SIGKILL:
                    counts["too late"] += 1
                    continue
                counts["killed"] += 1
                counts["left something"] += bool(hidden(folder))
                if target.exists():
                    _read(target)
                    counts["old or new file whole"] += 1
                writer(old, folder / f"other{suffix}")()
                counts["left after the next write"] += bool(hidden(folder))
        counts.pop("too late", None)
        out[suffix] = dict(counts)
        print(f"  {suffix:30}", out[suffix], flush=True)
    return out


def stops(n: int, *_: Any) -> dict[str, Any]:
    """Send SIGTERM at a random moment of ``vxpress fit``."""
    from vxpress import _cli

    counts: collections.Counter[str] = collections.Counter()
    rng = np.random.default_rng(2)
    with tempfile.TemporaryDirectory() as name:
        source, folder = Path(name) / "in.h5ad", Path(name) / "out"
        cells(1000).write_h5ad(source)
        arguments = ["fit", str(source), "-o", str(folder / "a.h5ad"), "--max-epochs", "60", "--n-latent", "3"]
        folder.mkdir()
        start = time.perf_counter()
        in_child(lambda: _cli.main(arguments))
        seconds = time.perf_counter() - start
        while counts["stopped"] < n:
            shutil.rmtree(folder)
            folder.mkdir()
            delay = float(rng.uniform(0.05 * seconds, seconds))

            def stop(pid: int, delay: float = delay) -> None:
                time.sleep(delay)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

            status = in_child(lambda: _cli.main(arguments), after=stop)
            if status == 0:
                continue  # it had ended
            counts["stopped"] += 1
            counts["status 143"] += status in (143, -signal.SIGTERM)
            written = folder / "a.h5ad"
            counts["left something"] += bool(hidden(folder))
            if written.exists():
                found = ad.read_h5ad(written).uns["vae"]["params"]
                counts["best state written, and on record"] += str(found["stopped"]) == "interrupted"
            else:
                counts["nothing written"] += 1
    return dict(counts)


def full_disk(n: int, *_: Any) -> dict[str, Any]:
    """Write to a full disk, with room for none to all but one byte of the file."""
    out, rng = {}, np.random.default_rng(3)
    for suffix in SUFFIXES:
        adata = large(400, suffix)
        counts: collections.Counter[str] = collections.Counter()
        with tempfile.TemporaryDirectory() as name:
            target = Path(name) / f"a{suffix}"
            write = writer(adata, target)
            write()
            files = [path for path in target.rglob("*") if path.is_file()] if target.is_dir() else [target]
            largest = max(path.stat().st_size for path in files)
            for _ in range(n):
                before = {path: path.read_bytes() for path in files}
                room = int(rng.integers(largest))

                def limited(room: int = room, write: Callable[[], int] = write) -> int:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
                    return write()

                counts["tried"] += 1
                counts[{0: "written", 1: "said, naming the file"}.get(in_child(limited), "another error")] += 1
                counts["old file as it was"] += all(path.read_bytes() == data for path, data in before.items())
                counts["left something"] += bool(hidden(target.parent))
        out[suffix] = dict(counts)
        print(f"  {suffix:30}", out[suffix], flush=True)
    return out


def read_only(*_: Any) -> dict[str, Any]:
    """Write to a read-only folder, as a user who is not root."""
    out, adata = {}, cells(60, fitted=True)
    for suffix in SUFFIXES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            target = folder / f"a{suffix}"
            write = writer(adata, target)
            write()
            folder.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IROTH | stat.S_IXOTH)

            def as_nobody(write: Callable[[], int] = write) -> int:
                if not os.geteuid():
                    os.setuid(65534)
                return write()

            status = in_child(as_nobody)
            folder.chmod(stat.S_IRWXU)
            out[suffix] = {"said, naming the file": int(status == 1), "left something": len(hidden(folder))}
            _read(target)
    return out


# other ways to run


def _fit(seed: int) -> str:
    torch.set_num_threads(1)
    adata = cells(100)
    vx.tl.fit_vae(adata, rng=seed, **SHORT)
    return str(joblib.hash(adata.obsm["X_vae"]))


def processes(n: int, *_: Any) -> dict[str, Any]:
    """Fit in processes of joblib and, after a fit in this process, in forked processes and in a worker of a data loader."""
    seeds = list(range(n))
    expected = [_fit(seed) for seed in seeds]
    loky = joblib.Parallel(n_jobs=2)(joblib.delayed(_fit)(seed) for seed in seeds)
    counts = {"fits": n, "joblib: same bits": sum(a == b for a, b in zip(loky, expected, strict=True))}
    for name, work in (("forked", _forked), ("data loader", _loaded)):
        found = [work(seed) for seed in seeds]
        counts[f"{name}: same bits"] = sum(a == b for a, b in zip(found, expected, strict=True))
        counts[f"{name}: error that says what to do"] = sum("spawn" in a or "num_workers" in a for a in found)
        counts[f"{name}: hangs"] = found.count("hangs")
    return counts


def _send(seed: int, pipe: Any) -> None:
    try:
        pipe.send(_fit(seed))
    except Exception as error:  # noqa: BLE001 - reported
        pipe.send(str(error))


def _forked(seed: int, seconds: float = 60.0) -> str:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_send, args=(seed, there), daemon=True)
    child.start()
    found = here.recv() if here.poll(seconds) else "hangs"
    child.kill()
    child.join()
    return str(found)


class _Fits(torch.utils.data.Dataset[str]):
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> str:
        return _fit(self.seed)


def _loaded(seed: int, seconds: float = 60.0) -> str:
    loader = torch.utils.data.DataLoader(_Fits(seed), num_workers=1, timeout=seconds, batch_size=None)
    try:
        return str(next(iter(loader)))
    except RuntimeError as error:
        return "hangs" if "timed out" in str(error) else str(error)


NO_CACHE = """
import sys
import vxpress as vx
adata = vx.datasets.simulate(60, 20, rng=0)
vx.tl.fit_vae(adata, max_epochs=2, n_latent=2, n_hidden=4)
sys.exit(0 if adata.obsm["X_vae"].shape == (60, 2) else 3)
"""


def no_cache(n: int, *_: Any) -> dict[str, Any]:
    """Fit with a read-only package and home, so that compiled code cannot be cached; needs root and ``unshare``."""
    counts = {"tried": 0, "fitted": 0}
    source = Path(vx.__file__).parent
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "vxpress"
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        sealed_off = f'mount --bind {name} {name} && mount -o remount,ro,bind {name} && exec {sys.executable} -W ignore -c "$CODE"'
        environment = os.environ | {
            "PYTHONPATH": name,
            "HOME": "/dev/null",
            "XDG_CACHE_HOME": "/dev/null/cache",
            "CODE": NO_CACHE,
        }
        for _trial in range(min(n, 3)):
            done = subprocess.run(
                ["unshare", "-m", "sh", "-c", sealed_off], env=environment, capture_output=True, check=False
            )
            counts["tried"] += 1
            counts["fitted"] += done.returncode == 0
    return counts


def _resources() -> dict[str, float]:
    status = Path("/proc/self/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return {
        "MB": int(resident.split()[1]) / 1024,
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "tasks": len(list(Path("/proc/self/task").iterdir())),
    }


def leaks(n: int, *_: Any) -> dict[str, Any]:
    """Measure memory, open files, threads and state of the process over many fits and encodings."""
    reference, out = cells(fitted=True), {}
    other, state = cells(300, seed=1), global_state()
    for name, call in (
        ("fits", lambda: vx.tl.fit_vae(cells(), "batch", **SHORT)),
        ("encodings", lambda: vx.tl.encode(other.copy(), reference)),
    ):
        for _ in range(n // 6):
            call()
        before = _resources()
        for _ in range(n):
            call()
        after = _resources()
        out[name] = {"n": n} | {f"{key} more": round(after[key] - before[key], 1) for key in before}
        out[name]["state of the process changed"] = int(global_state() != state)
    return out


TRIALS: dict[str, tuple[Callable[..., dict[str, Any]], int]] = {
    "interrupts": (interrupts, 40),
    "kills": (kills, 40),
    "stops": (stops, 40),
    "full_disk": (full_disk, 40),
    "read_only": (read_only, 1),
    "processes": (processes, 4),
    "no_cache": (no_cache, 1),
    "leaks": (leaks, 60),
}


# the page


def page() -> None:
    """Write the counts into ``docs/reliability.md``."""
    results = json.loads(FILE.read_text())
    text = PAGE.read_text()
    for name, lines in (
        ("interrupts", _interrupts_table(results)),
        ("rest", _rest_table(results)),
        ("leaks", _leaks_table(results)),
    ):
        start, end = f"<!-- {name} -->", "<!-- end -->"
        before, after = text.split(start)
        text = "\n".join([before + start, "", *lines, "", end + after.split(end, 1)[1]])
    PAGE.write_text(text)


def _measured(results: dict[str, Any], trial: str) -> str:
    versions, processor = results["machine"]["versions"], results["machine"]["processor"]
    return (
        f"`python benchmarks/reliability.py {trial}`, vxpress {versions['vxpress']}, torch {versions['torch']}, "
        f"Python {results['machine']['python']}, {processor}, one thread on a busy machine with two cores, "
        f"{results[trial]['date']}."
    )


def _interrupts_table(results: dict[str, Any]) -> list[str]:
    columns = ("interrupted", "kept, and on record", "data as before", "all written", "data changed", "lost")
    state = "state of the process changed"
    lines = [
        f"| call | {' | '.join(columns)} | state changed | works afterwards |",
        "| --- " * (len(columns) + 3) + "|",
    ]
    for name, counts in results["interrupts"].items():
        if name != "date":
            numbers = " | ".join(str(counts.get(column, 0)) for column in (*columns, state))
            lines.append(f"| `{name}` | {numbers} | {'yes' if counts['works as before'] else 'no'} |")
    return [*lines, "", _measured(results, "interrupts")]


def _rest_table(results: dict[str, Any]) -> list[str]:
    lines, dated = ["| trial | counts |", "| --- | --- |"], []
    for trial, what in REST.items():
        found = {name: value for name, value in results.get(trial, {}).items() if name != "date"}
        if not found:
            lines.append(f"| {what} | not measured yet for this release: `python benchmarks/reliability.py {trial}` |")
            continue
        parts = found if any(isinstance(value, dict) for value in found.values()) else {"": found}
        for part, counts in parts.items():
            of_it = f", `{part}`" if part else ""
            lines.append(
                f"| {what}{of_it} | {'; '.join(f'{LABELS.get(name, name)}: {value}' for name, value in counts.items())} |"
            )
        dated += ["", _measured(results, trial)] if found else []
    return [*lines, *dated]


def _leaks_table(results: dict[str, Any]) -> list[str]:
    found = {name: counts for name, counts in results.get("leaks", {}).items() if name != "date"}
    if not found:
        return ["Not measured yet for this release: `python benchmarks/reliability.py leaks`."]
    columns = list(next(iter(found.values())))
    lines = [f"| calls | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(str(counts[column]) for column in columns)} |" for name, counts in found.items()]
    return [*lines, "", _measured(results, "leaks")]


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress and log messages."""
    sc.settings.verbosity = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def main() -> None:
    """Run one trial or all of them, each in a new process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", choices=[*TRIALS, "all", "page"])
    parser.add_argument("--n", type=int, help="repetitions (default: 40; 60 for leaks)")
    parser.add_argument(
        "--only", help="for interrupts: only calls whose name contains one of these, separated by commas"
    )
    parser.add_argument("--most", type=float, default=float("inf"), help="for interrupts: most seconds per call")
    arguments = parser.parse_args()
    if arguments.trial == "page":
        page()
        return
    if arguments.trial == "all":
        for name in TRIALS:
            more = [] if arguments.n is None else ["--n", str(arguments.n)]
            subprocess.run([sys.executable, __file__, name, *more], check=True)
        page()
        return
    trial, n = TRIALS[arguments.trial]
    n = n if arguments.n is None else arguments.n
    torch.set_num_threads(1)
    start = time.perf_counter()
    with quiet():
        found = trial(n, arguments.only, arguments.most)
    print(arguments.trial, f"{time.perf_counter() - start:.0f} s", found, flush=True)
    known = json.loads(FILE.read_text()).get(arguments.trial, {}) if arguments.only and FILE.exists() else {}
    save("reliability", {arguments.trial: known | found | {"date": time.strftime("%Y-%m-%d")}})


if __name__ == "__main__":
    main()
