"""``fit_vae`` in two processes: the same results in both, and an end with an error if one of them is lost."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vxpress as vx

from ._fit import FITS, SMALL, cells
from ._launch import torchrun


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, float]:
    """Folder of the results of both processes, and status, output and time of the end."""
    folder: Path = tmp_path_factory.mktemp("fits")
    return folder, *torchrun("_fit.py", folder, VXPRESS_RANK_TIMEOUT="4"), time.time()


@pytest.fixture(scope="module")
def both(launched: tuple[Path, int, str, float]) -> list[dict[str, Any]]:
    """Results of both processes, by the name of the settings."""
    folder, _, output, _ = launched
    assert (folder / "happened").exists(), output
    return [pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in range(2)]


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return list(first) == list(second) and all(_same(value, second[key]) for key, value in first.items())
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    kind = np.asarray(first).dtype.kind
    return bool(np.array_equal(np.asarray(first), np.asarray(second), equal_nan=kind == "f"))


@pytest.mark.parametrize("name", list(FITS))
def test_both_processes_have_the_same_results(both: list[dict[str, Any]], name: str) -> None:
    first, second = both[0][name], both[1][name]
    assert _same(first, second)
    assert np.isfinite(first["obsm"]["X_vae"]).all()


def test_held_out_cells_are_those_of_one_process(both: list[dict[str, Any]]) -> None:
    adata = cells()
    vx.tl.fit_vae(adata, "batch", **SMALL)
    assert list(adata.obs["vae_split"]) == list(both[0]["default"]["split"])
    expected = adata.uns["vae"]["history"]["elbo_validation"]
    found = both[0]["default"]["uns"]["history"]["elbo_validation"]
    assert found == pytest.approx(expected, abs=abs(expected[-1] - expected[0]))


def test_a_fit_that_was_stopped_continues_to_the_same_bits_in_all_processes(both: list[dict[str, Any]]) -> None:
    for results in both:
        assert results["stopped"] == 143
        for part in ("obsm", "layers", "uns"):
            assert _same(results["continued"][part], results["default"][part])


def test_minibatches_that_are_too_small_to_share_are_named(both: list[dict[str, Any]]) -> None:
    for results in both:
        assert results["small minibatches"].startswith("ValueError")
        assert "batch_size=" in results["small minibatches"]


def test_other_cells_in_one_process_are_an_error_in_both(both: list[dict[str, Any]]) -> None:
    for results in both:
        assert results["other cells"].startswith("RankError: Process 1 has other data than process 0")
        assert "library size of each cell" in results["other cells"]


@pytest.mark.parametrize("n_processes", ["1", ""])
def test_one_process_under_torchrun_gives_the_bits_of_a_plain_fit(
    monkeypatch: pytest.MonkeyPatch, n_processes: str
) -> None:
    plain, launched = cells(), cells()
    vx.tl.fit_vae(plain, "batch", **SMALL)
    environment = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": n_processes,
        "MASTER_ADDR": "nowhere",
        "MASTER_PORT": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    vx.tl.fit_vae(launched, "batch", **SMALL)
    assert _same(dict(plain.obsm), dict(launched.obsm))
    assert _same(plain.uns["vae"]["history"], launched.uns["vae"]["history"])


def test_a_process_that_hangs_ends_the_others_with_its_name(launched: tuple[Path, int, str, float]) -> None:
    folder, status, output, ended = launched
    assert status != 0
    assert "Process 1 of 2" in output
    assert "neither worked nor waited for the others for 4 s" in output
    # with the patience of 4 seconds; it is 25 by default
    assert ended - float((folder / "happened").read_text()) < 30
