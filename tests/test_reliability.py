"""A short form of ``benchmarks/reliability.py``: real signals at random moments, and what many calls leave behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import joblib  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch

import vxpress as vx

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
FIT: dict[str, Any] = {"n_latent": 3, "n_hidden": 8, "max_epochs": 10, "batch_size": 64, "early_stopping": False}


def _held(adata: ad.AnnData) -> str:
    slots = {name: dict(getattr(adata, name)) for name in ("obsm", "varm", "layers", "uns")}
    return str(joblib.hash((adata.obs, adata.var, slots)))


class Press:
    """Presses Ctrl-C after a while; what arrives after the call is passed by."""

    def __init__(self) -> None:
        self.inside = self.arrived = False

    def handle(self, *_: object) -> None:
        if self.inside:
            self.arrived = True
            raise KeyboardInterrupt

    def during(self, call: Callable[[], Any], delay: float) -> bool:
        """Whether the call ended by the interrupt."""
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        self.arrived = False
        timer.start()
        try:
            self.inside = True
            call()
            self.inside = False
        except KeyboardInterrupt:
            return True
        finally:
            self.inside = False
            timer.cancel()
            timer.join()
        return False


@pytest.fixture
def press() -> Iterator[Press]:
    out = Press()
    before = signal.signal(signal.SIGINT, out.handle)
    yield out
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fit", "fit, nothing held out", "encode"])
def test_ctrl_c_at_any_moment_keeps_the_fit_or_the_data(
    fitted: ad.AnnData, adata: ad.AnnData, press: Press, name: str
) -> None:
    panel = adata[:, ::2].copy()
    call: Callable[[ad.AnnData], Any] = {
        "fit": lambda a: vx.tl.fit_vae(a, "batch", **FIT),
        "fit, nothing held out": lambda a: vx.tl.fit_vae(a, validation_fraction=0.0, **FIT),
        "encode": lambda a: vx.tl.encode(a, fitted),
    }[name]
    data = panel if name == "encode" else adata
    expected = data.copy()
    call(data.copy())
    start = time.perf_counter()
    call(expected)
    seconds, state = time.perf_counter() - start, torch.get_rng_state()
    n_arrived = 0
    for delay in np.random.default_rng(0).uniform(0, seconds, 6):
        cells = data.copy()
        before = _held(cells)
        raised = press.during(partial(call, cells), float(delay))
        if not press.arrived:
            continue
        n_arrived += 1
        if raised:
            # it may have come when all was written
            assert _held(cells) in (before, _held(expected))
        else:
            assert str(cells.uns["vae"]["params"]["stopped"]) == "interrupted"
        torch.set_grad_enabled(True)  # what a call leaves of it is tested where it is set
        assert torch.equal(torch.get_rng_state(), state)
    assert n_arrived
    call(data)
    np.testing.assert_array_equal(data.obsm["X_vae"], expected.obsm["X_vae"])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux shows them")
def test_many_fits_and_encodings_leave_no_files_and_threads(fitted: ad.AnnData, adata: ad.AnnData) -> None:
    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))

    def both() -> None:
        vx.tl.fit_vae(adata.copy(), **(FIT | {"max_epochs": 1}))
        vx.tl.encode(adata.copy(), fitted)

    both()
    before = held()
    for _ in range(8):
        both()
    files, tasks = held()
    assert files == before[0]
    # threads of other tests may end meanwhile, and a library may start one of its own late; a leak would be one per round
    assert tasks < before[1] + 8
