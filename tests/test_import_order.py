"""A fit is the same, and starts the same threads, whichever of torch and vxpress was imported first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import os, threading
before = dict(os.environ)
import {first}
import torch, vxpress as vx
import hashlib, numpy as np, scanpy as sc

def tasks():
    return set(map(int, os.listdir("/proc/self/task"))) if os.path.isdir("/proc/self/task") else set()

torch.set_num_threads(2)
adata = vx.datasets.simulate(300, 280, n_batches=2, library_mean=400, rng=2)
known = tasks()
vx.tl.fit_vae(adata, "batch", max_epochs=1, n_hidden=64, n_latent=4, progress=False, n_threads=2)
vx.tl.encode(adata)
vx.tl.log_likelihood(adata, n_samples=3)
print(hashlib.sha256(adata.obsm["X_vae"].tobytes() + adata.layers["vae_normalized"].tobytes()).hexdigest())
print(torch.get_num_threads())
print(len(tasks() - known - {{thread.native_id for thread in threading.enumerate()}}))
# packages that vxpress imports set variables of their own
print({{name for name, value in os.environ.items() if "GOMP" in name or "OMP_" in name}} - set(before))
"""


def _printed(first: str) -> list[str]:
    # threads of BLAS, which numpy starts, are not those of this package
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")} | {
        "OPENBLAS_NUM_THREADS": "1"
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE.format(first=first)],
        env=environment, check=False, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-4:]


@pytest.fixture(scope="module")
def torch_first() -> list[str]:
    return _printed("torch")


def test_the_order_of_imports_changes_nothing(torch_first: list[str]) -> None:
    assert _printed("vxpress") == torch_first


def test_calls_start_only_threads_of_python_and_change_no_setting(torch_first: list[str]) -> None:
    """Threads of OpenMP, torch's and numba's, would wait for work, and for each other, by spinning."""
    assert torch_first[1:] == ["2", "0", "set()"]
