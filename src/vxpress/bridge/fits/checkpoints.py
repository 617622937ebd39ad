"""The checkpoints of a fit: a folder with one file for each of its trainings, in the order in which they run.

A fit may have several trainings: further models, attempts of a cure, candidates for a likelihood. Which ones follows from data
and settings, so a fit that continues comes to the same ones again, and reads those that are complete.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
import torch
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._signals import StopRequests
from vxpress._whole import remove_leftovers
from vxpress.bridge.fits.open_files import as_path
from vxpress.bridge.fits.sealed_file import CRAFTED, Kind, read_sealed, write_sealed
from vxpress.core.parallel import current_world
from vxpress.core.training.checkpoint import Checkpoint

try:
    import fcntl
except ImportError:  # Windows: two fits that use one folder are not noticed
    fcntl = None  # type: ignore[assignment]

Resume: TypeAlias = bool | Literal["auto"]

KIND = Kind("checkpoint 1", "checkpoint", 2**26)
NAME = "training_{}.safetensors"
NUMBERED = re.compile(r"training_([0-9]+)\.safetensors")
LOCK = "lock"


@dataclass(frozen=True)
class Checkpointing:
    """The arguments of :func:`fit_vae` about checkpoints: folder, minutes between two of them, and whether to continue."""

    folder: Path
    minutes: float
    resume: Resume

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Checkpointing | None:
        """Check the arguments; None without a folder."""
        folder, minutes, resume = (given[name] for name in ("checkpoint_dir", "checkpoint_minutes", "resume"))
        if not isinstance(resume, bool) and resume != "auto":
            msg = f"resume={resume!r} was given; True, False or 'auto' is expected."
            raise ValueError(msg)
        check_range("checkpoint_minutes", minutes, 0.0, math.inf)
        if folder is None:
            if resume:
                msg = (
                    f"resume={resume!r} needs the folder of the checkpoints: pass checkpoint_dir= too, or leave it out."
                )
                raise ValueError(msg)
            return None
        for name in ("rng", "split_rng"):
            if given[name] is None:
                msg = (
                    f"{name}=None takes a new seed in every call, so a fit could not be continued from checkpoint_dir=. Pass a "
                    f"number, for example {name}=0."
                )
                raise ValueError(msg)
        return cls(as_path("checkpoint_dir", folder), minutes, resume)


class Checkpoints:
    """The checkpoints of a fit in a folder; an error is raised if the folder cannot be used."""

    def __init__(self, asked: Checkpointing, requests: StopRequests) -> None:
        self.folder, self.minutes, self.requests = asked.folder, asked.minutes, requests
        self.lock: IO[bytes] | None = None
        # with several processes, the first one reads and writes
        current_world().once(lambda: self._open(asked.resume))
        self.n_trainings, self.progress = 0, ""
        requests.text = self.text

    def _open(self, resume: Resume) -> None:
        self.lock = _prepared(self.folder)
        try:
            found = sorted(path.name for path in self.folder.glob(NAME.format("*")))
            _check_resume(self.folder, found, resume)
        except BaseException:
            self.close()
            raise

    def next(self) -> Checkpoint:
        """Return the checkpoint of the next training of the fit."""
        self.n_trainings += 1
        return Checkpoint(TrainingFile(self, self.n_trainings), 60.0 * self.minutes, self.requests)

    def of_other_fit(self, differences: str) -> ValueError:
        """Return the error for a checkpoint of other data or settings."""
        return ValueError(
            f"checkpoint_dir={str(self.folder)!r} holds checkpoints of another fit: {differences}. Pass the data, settings and seeds "
            "of that fit to continue it, or choose another folder to start this one."
        )

    def text(self) -> str:
        """Say how the fit can be continued."""
        if not any(self.folder.glob(NAME.format("*"))):
            return (
                f"there was nothing to store yet in checkpoint_dir={str(self.folder)!r}, so the same call starts anew"
            )
        reached = f" ({self.progress})" if self.progress else ""
        return f"checkpoint_dir={str(self.folder)!r} holds its state{reached}; the same call with resume=True (--resume) continues"

    def close(self) -> None:
        """Let other fits use the folder."""
        if self.lock is not None:
            self.lock.close()


@contextmanager
def stored_on_request(asked: Checkpointing) -> Iterator[Checkpoints]:
    """Within the block, checkpoints can be written, and a signal to terminate stores one and raises ``Stopped``."""
    with StopRequests(lambda: "") as requests:
        checkpoints = Checkpoints(asked, requests)
        try:
            yield checkpoints
        finally:
            checkpoints.close()


class TrainingFile:
    """The state of one training, in a file that is replaced when the next state is complete."""

    def __init__(self, checkpoints: Checkpoints, number: int) -> None:
        self.checkpoints, self.number = checkpoints, number
        self.path = checkpoints.folder / NAME.format(number)

    def load(self) -> dict[str, Any] | None:
        """Return the stored state; None if there is none. Raises ``ValueError`` if the file is damaged."""
        if not self.path.exists():
            return None
        state, made_by = _read(self.path)
        self.checkpoints.progress = _reached(self.number, state)
        logg.info(f"    continuing from {self.path} ({self.checkpoints.progress}, stored at {made_by['time']})")
        differing = [
            f"{name} {made_by[name]} (here {value})" for name, value in _here().items() if made_by.get(name) != value
        ]
        if differing:
            logg.warning(
                f"{self.path.name} was written with {', '.join(differing)}. The fit continues, but its last digits may differ from "
                "those of a fit that was never stopped."
            )
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the stored state, or warn that it could not be replaced."""
        tensors: dict[str, np.ndarray] = {}
        made_by = {**_here(), "time": datetime.now(UTC).isoformat(timespec="seconds")}
        tree = _pack({"state": state, "made by": made_by}, "", tensors)
        try:
            write_sealed(KIND, self.path, "checkpoint", tree, tensors)
        except OSError as error:
            logg.warning(
                f"The checkpoint {self.path} could not be written: {os.strerror(error.errno) if error.errno else error}. The fit "
                f"continues, an earlier checkpoint is kept, and the next attempt is in {self.checkpoints.minutes:g} minutes."
            )
        else:
            self.checkpoints.progress = _reached(self.number, state)


def reached(folder: Path) -> tuple[Path, str] | None:
    """Return the last checkpoint in a folder and how far it is; None if there is none that can be read."""
    with suppress(*CRAFTED):
        if (found := _last(folder)) is not None:
            return found[0], _reached(found[1], found[2])
    return None


def read_by_blocks(folder: Path) -> bool | None:
    """Return whether the fit of the last checkpoint visits cells by blocks, as for counts on disk; None if there is none."""
    with suppress(*CRAFTED):
        if (found := _last(folder)) is not None:
            return "ByBlock" in found[2]["belongs to"]["order of cells"]
    return None


def _last(folder: Path) -> tuple[Path, int, dict[str, Any]] | None:
    """Return the last checkpoint in a folder, its number and its state; None if there is none that can be read."""
    found = {
        path: int(number[1]) for path in folder.glob(NAME.format("*")) if (number := NUMBERED.fullmatch(path.name))
    }
    if not found:
        return None
    last = max(found, key=lambda path: found[path])
    with suppress(OSError, *CRAFTED):
        return last, found[last], _read(last)[0]
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a fit that has been stored, and the folder if nothing else is in it."""
    with suppress(OSError):
        for path in [*folder.glob(NAME.format("*")), folder / LOCK]:
            path.unlink(missing_ok=True)
        folder.rmdir()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a stored state, and what it was made by. Raises ``ValueError`` if the file is damaged."""
    try:
        _, tree, tensors = read_sealed(KIND, path)
        stored = _unpack(tree, tensors)
        state, made_by = stored["state"], stored["made by"]
    except OSError as error:
        msg = f"{str(path)!r} cannot be read: {error.strerror or error}"
        raise OSError(error.errno, msg) from error
    except CRAFTED as error:
        msg = f"{error} The fit cannot continue from {str(path)!r}; remove that file to run its training anew."
        raise ValueError(msg) from error
    return dict(state), made_by


def _reached(number: int, state: Mapping[str, Any]) -> str:
    of_several = f"training {number}, " if number > 1 else ""
    if state["finished"]:
        return f"{of_several}complete"
    n_epochs = len(state["outcome"]["history"]["lr"])
    return f"{of_several}step {state['outcome']['n_steps']}, after {n_epochs} of {state['belongs to']['training.max_epochs']} epochs"


def _here() -> dict[str, Any]:
    """Return what the last digits of a fit depend on, besides its settings."""
    return {"vxpress": version("vxpress"), "torch": torch.__version__}


def _prepared(folder: Path) -> IO[bytes] | None:
    """Create the folder if needed, and return the open file that holds its lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # the same kind of write as that of a checkpoint
        probe = folder / ".probe"
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as error:
        msg = (
            f"checkpoint_dir={str(folder)!r} cannot be written to: {error.strerror or error}. Choose a folder that can, or leave "
            "checkpoint_dir= out"
        )
        raise OSError(error.errno, msg) from error
    remove_leftovers(folder)
    if fcntl is None:
        return None
    lock = (folder / LOCK).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return lock  # a file system without locks
        lock.close()
        msg = f"checkpoint_dir={str(folder)!r} is used by another fit that is running. Wait for it, or choose another folder."
        raise RuntimeError(msg) from error
    return lock


def _check_resume(folder: Path, found: list[str], resume: Resume) -> None:
    if resume is True and not found:
        msg = (
            f"resume=True, but checkpoint_dir={str(folder)!r} holds no checkpoint. resume='auto' continues if there is one, and starts "
            "a new fit if not."
        )
        raise FileNotFoundError(msg)
    if resume is False and found:
        msg = (
            f"checkpoint_dir={str(folder)!r} holds checkpoints of an earlier fit ({', '.join(found)}). Continue it with resume=True or "
            "resume='auto', or choose another folder; a fit that has been stored needs its checkpoints no more, so remove them."
        )
        raise FileExistsError(msg)


def _pack(value: Any, name: str, tensors: dict[str, np.ndarray]) -> Any:
    """Convert a state to JSON; tensors are moved to ``tensors`` and replaced by a reference."""
    if isinstance(value, Mapping):
        return {key: _pack(part, f"{name}/{key}", tensors) for key, part in value.items()}
    if isinstance(value, list):
        return [_pack(part, f"{name}/{i}", tensors) for i, part in enumerate(value)]
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().contiguous().numpy()
        return {"$tensor": name}
    return value


def _unpack(tree: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    if isinstance(tree, list):
        return [_unpack(part, tensors) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if set(tree) == {"$tensor"}:
        return torch.from_numpy(tensors[tree["$tensor"]].copy())
    return {key: _unpack(part, tensors) for key, part in tree.items()}
