from __future__ import annotations

import signal
from typing import Any

import anndata as ad
import numpy as np
import pytest

from vxpress._keys import Keys
from vxpress.bridge.fits.results import Results


def test_all_or_nothing() -> None:
    adata = ad.AnnData(np.zeros((3, 2), dtype=np.float32), obs={"keep": [1, 2, 3]}, uns={"u": "old"})
    results = Results(
        obs={"keep": [4, 5, 6], "new": [1, 1, 1]},
        obsm={"X": np.zeros((3, 2))},
        varm={"L": np.zeros((2, 2)), "bad": np.zeros((99, 2))},
        uns={"u": "new"},
    )
    with pytest.raises(ValueError, match="99"):
        results.write(adata)
    assert adata.obs["keep"].tolist() == [1, 2, 3]
    assert list(adata.obs) == ["keep"]
    assert not len(adata.obsm)
    assert not len(adata.varm)
    assert adata.uns["u"] == "old"


def test_slots_follow_the_name_of_the_fit() -> None:
    default = Keys.of(None)
    assert (default.latent, default.latent_var, default.uns) == ("X_vae", "X_vae_var", "vae")
    assert Keys.of("vae") == default
    mine = Keys.of("mine")
    assert vars(mine) == {
        "latent": "mine",
        "latent_var": "mine_var",
        "normalized": "mine_normalized",
        "split": "mine_split",
        "library": "mine_library",
        "loadings": "mine_loadings",
        "uns": "mine",
        "view": "",
    }


@pytest.mark.parametrize("fails", [False, True])
def test_ctrl_c_during_writing_waits_until_all_results_or_none_are_written(fails: bool) -> None:
    class Pressed(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            for item in super().items():
                yield item
                signal.raise_signal(signal.SIGINT)

    adata = ad.AnnData(np.zeros((3, 2), dtype=np.float32))
    results = Results(obs=Pressed({"a": [1, 2, 3], "b": [1] * (2 if fails else 3)}), uns={"u": "new"})
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        results.write(adata)
    assert list(adata.obs) == ([] if fails else ["a", "b"])
    assert ("u" in adata.uns) != fails
    assert signal.getsignal(signal.SIGINT) == before
