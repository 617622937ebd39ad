"""``torchrun -m vxpress fit``: one of the processes writes and reports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np

from ._fit import cells


def test_one_process_writes_the_file_and_reports(tmp_path: Path) -> None:
    source, target = tmp_path / "counts.h5ad", tmp_path / "fitted.h5ad"
    cells().write_h5ad(source)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vxpress"]
    settings = ["--batch-key", "batch", "--n-latent", "3", "--max-epochs", "2", "--batch-size", "64"]
    found = subprocess.run(
        [*command, "fit", source, "-o", target, *settings],
        check=False, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert [line.split()[0] for line in found.stdout.splitlines()] == ["read", "fitted", "under-trained:", "wrote"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts.h5ad", "fitted.h5ad"]
    adata = ad.read_h5ad(target)
    assert np.isfinite(adata.obsm["X_vae"]).all()
    assert len(adata.uns["vae"]["history"]["elbo_train"]) == 2
