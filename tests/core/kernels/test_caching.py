"""Compiled code is kept where the user may write, shared by processes, and not needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core import caching

from vxpress.core.kernels import adam_rows
from vxpress.core.kernels.frames import Frame, Job, Plan

# prints a result of compiled code, how often it was found in the cache, and whether there is one
CODE = """
import sys
import numpy as np
from numba.core import caching
if "read-only" in sys.argv:
    ensure = caching._CacheLocator.ensure_cache_path
    def refuse(self):
        if self.get_cache_path().endswith("__pycache__"):
            raise PermissionError(30, "Read-only file system")
        ensure(self)
    caching._CacheLocator.ensure_cache_path = refuse
from vxpress.core.kernels import adam_rows
from vxpress.core.kernels.frames import Frame
from vxpress.core.kernels.team import CACHED

frame = Frame(adam_rows.WEIGHTS)
frame.update({
    adam_rows.G: np.array([3.0, 4.0], np.float32), adam_rows.CUTS: np.array([[0], [2]]), adam_rows.N_TENSORS: 1,
    adam_rows.SQUARES: np.zeros(1),
})
adam_rows.square.compiled.ctypes(frame.address, 0, 0)
print(round(float(frame[adam_rows.SQUARES][0]), 5), adam_rows.square.compiled.cache_hits, CACHED["cache"])
"""


def _start(*args: str, **environment: str) -> subprocess.Popen[str]:
    kept = {key: value for key, value in os.environ.items() if key not in {"NUMBA_CACHE_DIR", "XDG_CACHE_HOME"}}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", CODE, *args], env=kept | environment, **pipes)  # type: ignore[call-overload,no-any-return]


def _found(process: subprocess.Popen[str]) -> list[str]:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out.split()


def test_processes_that_start_together_share_the_cache(tmp_path: Path) -> None:
    together = [_start(NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    for found in [_found(process) for process in together]:
        assert found[0] == "25.0"
    assert _found(_start(NUMBA_CACHE_DIR=str(tmp_path))) == ["25.0", "1", "True"]


@pytest.mark.skipif(sys.platform != "linux", reason="sets the user's cache as Linux does")
def test_code_is_kept_in_the_users_cache_if_the_package_is_read_only(tmp_path: Path) -> None:
    assert _found(_start("read-only", XDG_CACHE_HOME=str(tmp_path))) == ["25.0", "0", "True"]
    assert list(tmp_path.rglob("adam_rows.square*.nbi"))
    assert _found(_start("read-only", XDG_CACHE_HOME=str(tmp_path))) == ["25.0", "1", "True"]


@pytest.mark.skipif(sys.platform != "linux", reason="sets the user's cache as Linux does")
def test_nothing_is_kept_if_the_user_may_write_nowhere(tmp_path: Path) -> None:
    nowhere = tmp_path / "a file"
    nowhere.touch()
    assert _found(_start("read-only", XDG_CACHE_HOME=str(nowhere))) == ["25.0", "0", "False"]


def test_a_full_disk_only_costs_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    frame = Frame(adam_rows.WEIGHTS)
    Plan([([(adam_rows.square, frame)], 0)], [([], 1)]).run(1)
    monkeypatch.setattr(caching.IndexDataCacheFile, "save", fail)
    monkeypatch.setattr(caching.IndexDataCacheFile, "load", lambda *_: None)
    square = Job(adam_rows.square.function)
    frame.update({
        adam_rows.G: np.array([3.0, 4.0], np.float32), adam_rows.CUTS: np.array([[0], [2]]), adam_rows.N_TENSORS: 1,
        adam_rows.SQUARES: np.zeros(1),
    })  # fmt: skip
    Plan([([(square, frame)], 1)]).run(1)
    assert frame[adam_rows.SQUARES][0] == 25.0
