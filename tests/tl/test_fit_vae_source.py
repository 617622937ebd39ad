"""Where the counts of a fit are kept."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

import vxpress as vx
from vxpress.bridge import fitting
from vxpress.core.covariates import Covariates
from vxpress.core.data import SOURCES, Counts, Mapped, Rows, Source

QUICK: dict[str, Any] = {"n_latent": 3, "n_hidden": 8, "max_epochs": 2, "batch_size": 64}


def _fit(source: str | None, **arguments: Any) -> ad.AnnData:
    adata = vx.datasets.simulate(300, 30, n_groups=2, n_batches=2, library_mean=80, rng=3)
    adata.var["chosen"] = np.arange(30) % 3 > 0
    vx.tl.fit_vae(
        adata, batch_key="batch", mask_var="chosen", options=vx.tl.FitOptions(source=source), **QUICK, **arguments
    )
    return adata


@pytest.fixture(scope="module")
def default() -> ad.AnnData:
    return _fit(None)


@pytest.mark.parametrize("source", ["resident", "streamed"])
def test_resident_and_streamed_counts_give_the_same_fit(default: ad.AnnData, source: str) -> None:
    adata = _fit(source)
    for name in ("X_vae", "X_vae_var"):
        np.testing.assert_array_equal(adata.obsm[name], default.obsm[name])
    np.testing.assert_array_equal(adata.layers["vae_normalized"], default.layers["vae_normalized"])
    assert adata.uns["vae"]["sha256"] == default.uns["vae"]["sha256"]


def test_counts_in_files_are_fitted_in_blocks(default: ad.AnnData) -> None:
    # one block holds all of these few cells, so the order is another one, but just as random
    adata = _fit("mapped", library="latent")
    reference = _fit(None, library="latent")
    assert (adata.obs["vae_split"] == reference.obs["vae_split"]).all()
    assert not np.array_equal(adata.obsm["X_vae"], reference.obsm["X_vae"])
    bounds = [float(a.uns["vae"]["history"]["elbo_validation"][-1]) for a in (adata, reference)]
    assert bounds[0] == pytest.approx(bounds[1], rel=0.02)
    readout = [np.asarray(a.layers["vae_normalized"])[:, ~a.var["chosen"]] for a in (adata, reference)]
    np.testing.assert_allclose(readout[0].mean(0), readout[1].mean(0), rtol=0.05)


class OneByOne(Source):
    """A source from outside: a list with the dense counts of each cell."""

    def __init__(self, cells: list[torch.Tensor], log_library_n1: torch.Tensor, covariates: Covariates) -> None:
        self.cells, self.log_library_n1, self.covariates = cells, log_library_n1, covariates

    @classmethod
    def of(cls, counts: Counts, log_library_n1: torch.Tensor, covariates: Covariates, device: torch.device) -> OneByOne:
        cells = list(counts.dense(torch.arange(len(counts))))
        return cls(cells, log_library_n1.to(device), covariates.to(device))

    @property
    def n_genes(self) -> int:
        return len(self.cells[0])

    def read(self, rows: torch.Tensor) -> Rows:
        return Rows(rows, None, torch.stack([self.cells[row] for row in rows.tolist()]))


@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
def test_a_registered_source_gives_the_same_fit(likelihood: str) -> None:
    SOURCES.register("one_by_one", OneByOne)
    try:
        found, expected = (_fit(source, likelihood=likelihood) for source in ("one_by_one", None))
    finally:
        SOURCES.remove("one_by_one")
    np.testing.assert_array_equal(found.obsm["X_vae"], expected.obsm["X_vae"])
    np.testing.assert_array_equal(found.layers["vae_normalized"], expected.layers["vae_normalized"])


def test_the_source_is_not_part_of_the_fit(default: ad.AnnData) -> None:
    assert not any("source" in name and "library" not in name for name in default.uns["vae"]["params"])
    assert "source" not in default.uns["vae"]["params"]["train"]


def test_an_unknown_source_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match="source='tape' is not known; choose one of 'resident', 'streamed', 'mapped'"):
        _fit("tape")


def test_the_diagnosis_reads_the_same_source(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    diagnose, read_of_files = fitting.diagnose_trained, Mapped.read

    def counted(source: Mapped, rows: torch.Tensor) -> Rows:
        read.append(len(rows))
        return read_of_files(source, rows)

    def during(*arguments: Any) -> dict[str, Any]:
        read.clear()
        found = diagnose(*arguments)
        read_by_diagnosis.extend(read)
        return found

    read_by_diagnosis: list[int] = []
    monkeypatch.setattr(Mapped, "read", counted)
    monkeypatch.setattr(fitting, "diagnose_trained", during)
    _fit("mapped")
    assert sum(read_by_diagnosis) > 0
