"""Fits in forked processes, which have one thread, and in others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

# in a process of its own: threads that tests before it have started, and a test that hangs, do no harm
CODE = """
import multiprocessing, sys, threading, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
import vxpress as vx
from vxpress._entry import entry

adata = vx.datasets.simulate(400, 300, n_batches=2, rng=1)

def fit(_=None):
    a = adata.copy()
    vx.tl.fit_vae(a, "batch", max_epochs=1, n_latent=3, n_hidden=64, denoised=False)
    return a.obsm["X_vae"]

class Fits(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, i):
        return torch.from_numpy(fit())

fitted = adata.copy()

def neighbors(_):
    try:
        vx.pp.neighbors(fitted)
    except RuntimeError as error:
        return str(error)

def in_pool(function=fit):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.map_async(function, [0]).get(timeout=120)[0]

torch.set_num_threads(1)
expected = fit()
torch.set_num_threads(2)
found = {}
vx.tl.fit_vae(fitted, "batch", max_epochs=1, n_latent=3, n_hidden=64, denoised=False)
torch.empty(1 << 20).exp_()
found["after a fit"] = in_pool()
found["data loader"] = next(iter(torch.utils.data.DataLoader(Fits(), num_workers=1, timeout=120)))[0].numpy()
inside, leave = threading.Event(), threading.Event()

@entry
def wait():
    inside.set()
    leave.wait()

# the other thread holds the default dtype; it does not compute, which no fork is safe against
torch.set_default_dtype(torch.float64)
other = threading.Thread(target=wait)
other.start()
inside.wait()
found["during a call"] = in_pool()
leave.set()
other.join()
assert torch.get_default_dtype() == torch.float64
torch.set_default_dtype(torch.float32)
assert torch.get_num_threads() == 2
# numba's threads, which a fit does not start, cannot be used after a fork
vx.pp.neighbors(fitted)
assert "spawn" in in_pool(neighbors)
print(*(f"{name}: {np.array_equal(value, expected)}" for name, value in found.items()), sep="\\n")
"""


def test_a_forked_process_fits_with_one_thread():
    done = subprocess.run([sys.executable, "-c", CODE], check=False, capture_output=True, text=True, timeout=500)
    assert done.stdout.splitlines() == ["after a fit: True", "data loader: True", "during a call: True"], done.stderr[
        -2000:
    ]
