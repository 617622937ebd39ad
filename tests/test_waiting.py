"""Idle threads sleep, unless somebody decided otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vxpress._waiting import DECIDED, SPIN_COUNT, loaded_runtimes


def output(code: str, **environment: str) -> str:
    """What a new process that runs ``code`` prints."""
    clean = {name: value for name, value in os.environ.items() if name not in DECIDED}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True, timeout=300
    ).stdout.strip()


SPIN_COUNT_NOW = "; import os; print(os.environ.get('GOMP_SPINCOUNT'))"


def test_importing_asks_for_it():
    assert output("import vxpress" + SPIN_COUNT_NOW) == SPIN_COUNT


@pytest.mark.parametrize(
    ("environment", "expected"), [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_what_the_user_set_stays(environment: dict[str, str], expected: str):
    assert output("import vxpress" + SPIN_COUNT_NOW, **environment) == expected


# processor time per step of a two-threaded loop whose second thread is kept waiting for a thousandth of a second
WAITS = """
import {first}, {second}, ctypes, time, os
import torch, vxpress
from vxpress._entry import entry
from vxpress._waiting import loaded_runtimes
torch.set_num_threads(2)
entry(lambda: None)()
torch.empty(1 << 18).fill_(1.0)
[runtime] = [ctypes.CDLL(path) for path in loaded_runtimes() if "torch" in path]
# threads of the team wait at its end for the one that calls back into Python and sleeps there
CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
work = CALL(lambda _: time.sleep(0.004) if runtime.omp_get_thread_num() == 0 else None)
runtime.GOMP_parallel.argtypes = [CALL, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
start = time.process_time()
for _ in range(50):
    runtime.GOMP_parallel(work, None, 2, 0)
print(time.process_time() - start)
"""


@pytest.mark.skipif(not loaded_runtimes(), reason="no OpenMP runtime of GNU's here")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="threads that share one processor do not spin")
def test_threads_sleep_whichever_is_imported_first():
    spinning = float(output(WAITS.format(first="torch", second="vxpress"), GOMP_SPINCOUNT="300000"))
    torch_first = float(output(WAITS.format(first="torch", second="vxpress")))
    vxpress_first = float(output(WAITS.format(first="vxpress", second="torch")))
    assert max(torch_first, vxpress_first) < spinning / 3
