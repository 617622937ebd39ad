"""The memory of a fit of counts on disk does not grow with the number of cells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

FEW, MANY, GENES = 20_000, 140_000, 300
FIT = """
import sys
import vxpress as vx
from vxpress.bridge.read import survey
from vxpress.core.data import Stored
from vxpress.core.training import dispersion
dispersion.KEPT_ENTRIES = 2**20
survey.MEMORY_BYTES, Stored.__init__.__kwdefaults__["limit"] = 0, 2**21
adata = vx.io.open_store(sys.argv[1])
vx.tl.fit_vae(adata, n_latent=5, n_hidden=16, max_epochs=1, denoised=False, progress=False)
vx.tl.log_likelihood(adata, n_samples=1, progress=False)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def _peak(path: Path) -> int:
    """Return the largest memory of a process that fits the cells, in bytes."""
    run = subprocess.run([sys.executable, "-c", FIT, str(path)], capture_output=True, text=True, check=True)
    return 1024 * int(run.stdout.split()[-1])


def _write(path: Path, n_cells: int) -> int:
    """Write cells with about as many molecules in every gene; return the memory that their counts would take."""
    rng = np.random.default_rng(0)
    x = sparse.vstack(
        [sparse.csr_matrix(rng.poisson(4, (10_000, GENES)).astype(np.float32))] * (n_cells // 10_000), "csr"
    )
    AnnData(x).write_h5ad(path)
    with h5py.File(path) as file:
        return 8 * len(file["X/data"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory of a process is read from /proc")
def test_memory_does_not_grow_with_the_cells(tmp_path: Path) -> None:
    few, many = tmp_path / "few.h5ad", tmp_path / "many.h5ad"
    more_counts = _write(many, MANY) - _write(few, FEW)
    assert _peak(many) - _peak(few) < more_counts / 2
