"""Ctrl-C at any stage of a fit: the best state so far is kept and reported, or the data are unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pytest

import vxpress as vx
from vxpress.bridge import fitting
from vxpress.bridge.fits import runner
from vxpress.bridge.fits.results import Results
from vxpress.bridge.health import choice, cure
from vxpress.core.training import Training

STAGES: dict[str, tuple[Any, str]] = {
    "encoding": (runner, "encode_views"),
    "diagnosing": (fitting, "diagnose_trained"),
    "judging a cure": (cure, "log_likelihood"),
    "choosing": (choice, "log_likelihoods"),
    "reading out": (runner, "fit_readout"),
    "decoding": (fitting, "_results"),
    "writing": (Results, "write"),
}
QUICK = {"n_latent": 3, "n_hidden": 8, "max_epochs": 2, "batch_size": 64, "validation_fraction": 0.2}


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes the first ``times`` calls of a function, given by object and name, end in Ctrl-C."""

    def install(place: Any, name: str, times: int = 1) -> None:
        real, n_calls = getattr(place, name), [0]

        def stopped(*args: Any, **kwargs: Any) -> Any:
            n_calls[0] += 1
            out = real(*args, **kwargs)
            if n_calls[0] <= times:
                raise KeyboardInterrupt
            return out

        monkeypatch.setattr(place, name, stopped)

    return install


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_after_training_keeps_the_fit(
    adata: ad.AnnData, interrupt: Callable[..., None], stage: str, warned: list[str]
) -> None:
    adata.var["highly_variable"] = np.arange(adata.n_vars) % 3 != 0
    further = {"judging a cure": {"cure": True}, "choosing": {"likelihood": "auto"}}.get(stage, {})
    expected = adata.copy()
    vx.tl.fit_vae(expected, **QUICK)
    interrupt(*STAGES[stage])
    vx.tl.fit_vae(adata, **QUICK, **further)
    assert adata.uns["vae"]["params"]["stopped"] == "interrupted"
    assert "interrupted" in " ".join(warned)
    assert "choice" not in adata.uns["vae"]
    np.testing.assert_array_equal(adata.obsm["X_vae"], expected.obsm["X_vae"])
    np.testing.assert_array_equal(adata.layers["vae_normalized"], expected.layers["vae_normalized"])


@pytest.mark.parametrize("stage", ["encoding", "diagnosing", "reading out", "decoding"])
def test_a_second_interrupt_discards_the_fit(adata: ad.AnnData, interrupt: Callable[..., None], stage: str) -> None:
    adata.var["highly_variable"] = np.arange(adata.n_vars) % 3 != 0
    before = adata.copy()
    interrupt(*STAGES[stage], times=2)
    with pytest.raises(KeyboardInterrupt):
        vx.tl.fit_vae(adata, **QUICK)
    assert "vae" not in adata.uns
    assert list(adata.obs) == list(before.obs)
    assert list(adata.obsm) == list(before.obsm)


def test_an_incompletely_recorded_epoch_is_removed_from_the_history(
    adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, n_calls = Training.record, [0]

    def half(self: Training, *args: Any) -> float:
        n_calls[0] += 1
        if n_calls[0] == 3:
            self.outcome.history["reconstruction_train"].append(0.0)
            raise KeyboardInterrupt
        return record(self, *args)

    monkeypatch.setattr(Training, "record", half)
    vx.tl.fit_vae(adata, **(QUICK | {"max_epochs": 9}))
    assert {len(values) for values in adata.uns["vae"]["history"].values()} == {2}
