"""Calls for few cells and genes start at once: nothing is compiled for them, and their results are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vxpress as vx
from vxpress.core import rule

CALLS = """
import numba.core.event
import vxpress as vx

class Compilations(numba.core.event.Listener):
    def on_start(self, event):
        print("compiled", event.data["dispatcher"].py_func.__qualname__)

    def on_end(self, event):
        pass

numba.core.event.register("numba:compile", Compilations())
adata = vx.datasets.simulate(300, 80, n_batches=2, n_groups=2, rng=0)
adata.var["highly_variable"] = [g < 60 for g in range(80)]
for settings in ({}, {"likelihood": "zinb", "library": "latent"}, {"prior": "vamp"}, {"objective": "iwae"}):
    vx.tl.fit_vae(adata, "batch", max_epochs=2, n_latent=4, n_hidden=16, **settings)
    vx.tl.encode(adata)
    vx.tl.denoise(adata)
    vx.tl.log_likelihood(adata, n_samples=3)
    vx.tl.diagnose(adata)
vx.tl.rank_genes_groups(adata, "group")
print("done")
"""


def test_nothing_is_compiled_for_small_data(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CALLS],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n")[:-1] == ["done"]


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_small_fits_agree_with_compiled_ones(likelihood: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = vx.datasets.simulate(200, 60, n_batches=2, n_groups=2, rng=0)
    found = []
    for limit in (rule.SMALL, 0):
        monkeypatch.setattr(rule, "SMALL", limit)
        cells = adata.copy()
        # without thinning, whose random numbers differ
        options = vx.tl.FitOptions(thinning=0.0)
        vx.tl.fit_vae(cells, "batch", likelihood=likelihood, max_epochs=3, n_latent=4, n_hidden=16, options=options)
        vx.tl.log_likelihood(cells, n_samples=2)
        found.append(cells)
    small, compiled = found
    np.testing.assert_allclose(small.obsm["X_vae"], compiled.obsm["X_vae"], atol=2e-2)
    name = "vae_log_likelihood"
    np.testing.assert_allclose(small.obs[name], compiled.obs[name], rtol=1e-3)
    assert small.obsm["X_vae"].tobytes() != compiled.obsm["X_vae"].tobytes()


# with 290, the training cells alone are few
@pytest.mark.parametrize("n_small", [200, 290])
def test_few_cells_of_a_large_fit_have_the_same_bits(monkeypatch: pytest.MonkeyPatch, n_small: int) -> None:
    adata = vx.datasets.simulate(300, 60, rng=0)
    monkeypatch.setattr(rule, "SMALL", n_small * 60)
    vx.tl.fit_vae(adata, max_epochs=1, n_latent=4, n_hidden=16)
    few = adata[:100].copy()
    del few.obsm["X_vae"]
    vx.tl.encode(few)
    np.testing.assert_array_equal(few.obsm["X_vae"], adata.obsm["X_vae"][:100])
